"""The AR(1) path against dense Gaussian algebra, built step by step, and inside Pyro programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from eve_pyro.distributions import AR1
from eve_pyro.infer.local_elbo import LocalELBO

B, N, T, K = 3, 2, 5, 2
PHIS = (-0.99, -0.5, 0.0, 0.7, 0.99)
FORMS = ("stationary", "innovation")


def arguments(form, batch=(B, N), steps=T, dims=K, phi=None, step_phi=True):
    """Random arguments, every one varying by step unless ``step_phi`` is off; ``phi`` fixes the memory."""
    shape = (*batch, steps, dims)
    memory = torch.rand(*batch, steps if step_phi else 1, dims).double() * 1.9 - 0.95
    args = {
        "loc": torch.randn(shape).double(),
        "phi": memory if phi is None else torch.full_like(memory, phi),
        "scale": torch.randn(shape).double().mul(0.5).exp(),
    }
    if form == "innovation":
        args["innovation"] = torch.randn(shape).double().mul(0.5).exp()
    return args


def independent(batch=(B, N), steps=T, dims=K, family=Independent):
    loc, scale = torch.randn(*batch, steps, dims).double(), torch.rand(*batch, steps, dims).double() + 0.3
    return family(Normal(loc, scale), 2)


def dense_moments(loc, phi, scale, innovation=None):
    """Mean (..., K, T) and covariance (..., K, T, T), a row a step, from the definitions in the docstring."""
    loc, phi, scale = (each.mT for each in torch.broadcast_tensors(loc, phi, scale))
    rows = torch.zeros(*loc.shape, loc.shape[-1], dtype=loc.dtype)
    rows[..., 0, 0] = 1.0 if innovation is None else scale[..., 0].square()
    for t in range(1, loc.shape[-1]):
        rows[..., t, :t] = phi[..., t, None] * rows[..., t - 1, :t]
        rows[..., :t, t] = rows[..., t, :t]
        if innovation is None:
            rows[..., t, t] = 1.0
        else:
            noise = innovation.expand(loc.mT.shape).mT[..., t]
            rows[..., t, t] = phi[..., t].square() * rows[..., t - 1, t - 1] + noise.square()
    return loc, rows if innovation is not None else scale[..., None] * rows * scale[..., None, :]


def dense(fn, args=None):
    """The same path as a dense normal over the steps, a chain a batch entry (..., K)."""
    if isinstance(fn, Independent):
        return MultivariateNormal(fn.mean.mT, scale_tril=torch.diag_embed(fn.stddev.mT))
    return MultivariateNormal(*dense_moments(**args))


def pair(form, **options):
    args = arguments(form, **options)
    fn = AR1(**args)
    return fn, dense(fn, args)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("steps", [2, 3, 17, 64])
@pytest.mark.parametrize("form", FORMS)
def test_log_prob_is_the_dense_normals(form, steps, phi):
    args = arguments(form, steps=steps, phi=phi, step_phi=False)
    fn = AR1(**args)
    z = fn.rsample((4,))
    expected = dense(fn, args).log_prob(z.mT).sum(-1)
    torch.testing.assert_close(fn.log_prob(z), expected, rtol=1e-5, atol=1e-8)
    single = AR1(**{name: value.float() for name, value in args.items()})
    torch.testing.assert_close(single.log_prob(z.float()), expected.float(), rtol=1e-3, atol=1e-3 * steps)


@pytest.mark.parametrize("steps", [2, 3, 16, 17, 64])
@pytest.mark.parametrize("form", FORMS)
def test_moments_and_entropy_are_the_dense_normals(form, steps):
    fn, expected = pair(form, steps=steps)
    torch.testing.assert_close(fn.mean, expected.mean.mT)
    torch.testing.assert_close(fn.variance, expected.variance.mT)
    torch.testing.assert_close(fn.stddev, expected.variance.sqrt().mT)
    torch.testing.assert_close(fn.covariance, expected.covariance_matrix)
    lags = expected.covariance_matrix.diagonal(-1, -2, -1).mT  # (..., T - 1, K)
    torch.testing.assert_close(fn.lag_covariance[..., 1:, :], lags)
    assert not fn.lag_covariance[..., 0, :].any()
    torch.testing.assert_close(fn.entropy(), expected.entropy().sum(-1))


def test_without_innovation_the_marginals_are_the_stated_normals():
    args = arguments("stationary", phi=0.999)
    fn = AR1(**args)
    assert torch.equal(fn.mean, args["loc"])
    torch.testing.assert_close(fn.stddev, args["scale"])


def test_a_constant_innovation_at_the_stationary_value_is_the_stationary_path():
    args = arguments("stationary", step_phi=False)
    args["scale"] = args["scale"][..., :1, :]
    same = AR1(**args, innovation=args["scale"] * (1 - args["phi"].square()).sqrt())
    z = same.rsample()
    torch.testing.assert_close(same.variance, AR1(**args).variance)
    torch.testing.assert_close(same.log_prob(z), AR1(**args).log_prob(z))


@pytest.mark.parametrize("form", FORMS)
def test_samples_have_the_stated_moments(form):
    fn, expected = pair(form, batch=())
    draws, count = fn.sample((100_000,)).mT, 100_000  # (S, K, T)
    deviation, covariance = expected.stddev, expected.covariance_matrix
    centred = draws - expected.mean
    estimate = torch.einsum("skt,sku->ktu", centred, centred) / count
    assert ((draws.mean(0) - expected.mean).abs() < 5 * deviation / count**0.5).all()
    error = (deviation[..., None].square() * deviation[..., None, :].square() + covariance.square()).sqrt() / count**0.5
    assert ((estimate - covariance).abs() < 5 * error).all()


FAMILIES = {"torch independent": Independent, "pyro independent": dist.Independent}
SIDES = [(q, p) for q in (*FORMS, *FAMILIES) for p in (*FORMS, *FAMILIES) if not {q, p} <= FAMILIES.keys()]


@pytest.mark.parametrize(("q_form", "p_form"), SIDES)
@pytest.mark.parametrize("steps", [2, 17])
def test_kl_is_the_dense_normals(q_form, p_form, steps):
    def side(form):
        if form in FORMS:
            return pair(form, steps=steps)
        fn = independent(steps=steps, family=FAMILIES[form])
        return fn, dense(fn)

    (q, q_dense), (p, p_dense) = side(q_form), side(p_form)
    kl = kl_divergence(q, p)
    assert kl.shape == (B, N)
    torch.testing.assert_close(kl, kl_divergence(q_dense, p_dense).sum(-1))


@pytest.mark.parametrize("phi", [0.0, 0.99, -0.999])
@pytest.mark.parametrize("form", FORMS)
def test_kl_of_a_path_to_itself_is_nothing_even_in_float32(form, phi):
    args = {name: value.float() for name, value in arguments(form, steps=64, phi=phi).items()}
    assert kl_divergence(AR1(**args), AR1(**args)).abs().max() < 1e-5


BATCHES = [((B, N), (N,)), ((N,), (B, N)), ((4, B, 1), (B, N)), ((), (B, N)), ((B, 1), (1, N))]


@pytest.mark.parametrize(("q_batch", "p_batch"), BATCHES)
def test_kl_broadcasts_batches(q_batch, p_batch):
    full = torch.broadcast_shapes(q_batch, p_batch)
    q, p = AR1(**arguments("innovation", batch=q_batch)), AR1(**arguments("stationary", batch=p_batch))
    normals = independent(batch=q_batch)
    for left, right in ((q, p), (normals, p), (p, normals)):
        kl = kl_divergence(left, right)
        assert kl.shape == full
        torch.testing.assert_close(kl, kl_divergence(left.expand(full), right.expand(full)))


@st.composite
def paths(draw, shape):
    """Arguments of a path with memory, scale and innovation up to the edges, as constants or by step."""

    def values(allowed):
        steps = draw(st.sampled_from([1, shape[-2]]))
        size = steps * shape[-1]
        return torch.tensor(draw(st.lists(allowed, min_size=size, max_size=size))).double().view(steps, shape[-1])

    memory = st.one_of(st.sampled_from([-0.999, 0.0, 0.999]), st.floats(-0.999, 0.999))
    spread = st.floats(0.02, 20.0)
    args = {"loc": values(st.floats(-10, 10)).expand(shape), "phi": values(memory), "scale": values(spread)}
    if draw(st.booleans()):
        args["innovation"] = values(spread)
    return args


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(1, 3), max_size=2), st.integers(2, 9), st.integers(1, 3))
def test_any_path_is_its_dense_normal(data, batch, steps, dims):
    q_given, p_given = data.draw(paths((*batch, steps, dims))), data.draw(paths((steps, dims)))
    q, p = AR1(**q_given), AR1(**p_given)
    q_dense, p_dense = dense(q, q_given), dense(p, p_given)
    normals = Independent(Normal(q.mean, q.stddev), 2)
    z = p.sample(q.batch_shape)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(p.log_prob(z), p_dense.log_prob(z.mT).sum(-1), **close)
    for left, right, left_dense, right_dense in (
        (q, p, q_dense, p_dense),
        (normals, p, dense(normals), p_dense),
        (p, normals, p_dense, dense(normals)),
    ):
        kl = kl_divergence(left, right)
        assert (kl >= -1e-12 * steps * dims).all()
        torch.testing.assert_close(kl, kl_divergence(left_dense, right_dense).sum(-1), **close)


@pytest.mark.parametrize("phi", [0.0, 0.4, 0.999, -0.999])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form, phi):
    args = arguments(form, batch=(2,), steps=4, phi=phi)
    names, values = list(args), [value.requires_grad_() for value in args.values()]
    z, other, normals = torch.randn(2, 4, K).double(), AR1(**arguments("stationary", (2,), 4)), independent((2,), 4)

    def figures(*values):
        fn = AR1(**dict(zip(names, values, strict=True)))
        torch.manual_seed(1)
        kls = (
            kl_divergence(fn, other),
            kl_divergence(other, fn),
            kl_divergence(normals, fn),
            kl_divergence(fn, normals),
        )
        return fn.log_prob(z), fn.rsample(), fn.variance, fn.covariance, fn.entropy(), *kls

    assert torch.autograd.gradcheck(figures, values, eps=1e-7, rtol=1e-4)


@pytest.mark.parametrize("phi", [0.0, 0.999, -0.999])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_argument_and_are_finite_in_float32(form, phi):
    args = {name: value.float().requires_grad_() for name, value in arguments(form, steps=64, phi=phi).items()}
    fn, prior = AR1(**args), AR1(torch.zeros(64, K), torch.tensor(0.95), torch.tensor(1.0))
    z = fn.rsample((2,))
    loss = kl_divergence(fn, prior).sum() + kl_divergence(prior, fn).sum() + fn.log_prob(z).sum() + z.square().sum()
    loss.backward()
    for name, value in args.items():
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.any(), name


@pytest.mark.parametrize("form", FORMS)
def test_arguments_broadcast(form):
    """A prior's: loc by window, memory and scale by unit, all of them wider together than alone."""
    args = arguments(form, batch=(1,), steps=1, dims=1) | {"loc": torch.randn(B, 1, T, K).double()}
    args["phi"] = torch.tensor([0.3, -0.8]).double().view(N, 1, 1)
    fn = AR1(**args)
    assert (fn.batch_shape, fn.event_shape) == ((B, N), (T, K))
    full = AR1(**{name: value.expand(B, N, T, K) for name, value in args.items()})
    z = full.sample((4,))
    assert fn.rsample((4,)).shape == (4, B, N, T, K)
    for name in ("mean", "variance", "covariance", "lag_covariance"):
        torch.testing.assert_close(getattr(fn, name), getattr(full, name))
    torch.testing.assert_close(fn.log_prob(z), full.log_prob(z))
    torch.testing.assert_close(fn.log_prob(z[0, 0, 0]), full.log_prob(z[0, 0, 0]))
    torch.testing.assert_close(fn.entropy(), full.entropy())


@pytest.mark.parametrize("form", FORMS)
def test_expand_keeps_the_density(form):
    args = arguments(form, batch=(N,))
    fn = AR1(**args)
    wide = fn.expand(torch.Size([4, B, N]))
    assert (wide.batch_shape, wide.event_shape) == ((4, B, N), (T, K))
    z = wide.rsample()
    assert z.shape == (4, B, N, T, K)
    torch.testing.assert_close(wide.log_prob(z), fn.log_prob(z))
    torch.testing.assert_close(wide.variance, fn.variance.expand(z.shape))
    assert wide.entropy().shape == (4, B, N)
    assert fn.expand_by([2]).batch_shape == (2, N)
    with pytest.raises(RuntimeError):
        fn.expand(torch.Size([N + 1]))


def model(fn):
    def run():
        with pyro.plate("windows", B, dim=-2):
            with pyro.plate("units", N, dim=-1):
                z = pyro.sample("eve.z", fn)
            pyro.sample("y", dist.Normal(z.mean((-3, -2, -1)).unsqueeze(-1), 1.0), obs=torch.zeros(B, 1).double())

    return run


def guide(fn):
    with pyro.plate("windows", B, dim=-2), pyro.plate("units", N, dim=-1):
        pyro.sample("eve.z", fn)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("q_form", [*FORMS, "independent"])
def test_local_elbo_takes_the_closed_form_unit_by_unit(q_form, particles):
    args = arguments("stationary", batch=(N,))
    p = AR1(**args)
    q_given = None if q_form == "independent" else arguments(q_form)
    q = independent(family=dist.Independent) if q_given is None else AR1(**q_given)
    elbo = LocalELBO(num_particles=particles)
    loss = elbo.differentiable_loss(model(p), lambda: guide(q))
    expected = kl_divergence(dense(q, q_given), dense(p, args)).sum(-1)  # (B, N)
    assert elbo.terms.sampled_sites == ()
    torch.testing.assert_close(elbo.terms.units["eve.z"].kl, expected)
    torch.testing.assert_close(loss, expected.sum() - elbo.terms.log_likelihood.sum())


def test_traces_score_and_condition_as_the_distribution_does():
    p = AR1(**arguments("innovation", batch=(N,)))
    trace = poutine.trace(model(p)).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["eve.z"]["value"]
    assert z.shape == (B, N, T, K)
    torch.testing.assert_close(trace.nodes["eve.z"]["log_prob"], p.log_prob(z))
    conditioned = poutine.trace(poutine.condition(model(p), {"eve.z": z})).get_trace()
    torch.testing.assert_close(conditioned.log_prob_sum(), trace.log_prob_sum())


def test_other_families_have_no_closed_form():
    p = AR1(**arguments("stationary"))
    laplace = dist.Laplace(p.mean, p.stddev).to_event(2)
    for q, other in ((laplace, p), (p, laplace), (dist.Normal(p.mean, 1.0).to_event(1), p)):
        with pytest.raises(NotImplementedError, match="closed-form"):
            kl_divergence(q, other)
    with pytest.raises(ValueError, match=r"\(5, 1\) for q"):
        kl_divergence(independent(dims=1), p)


def test_a_points_kl_is_its_log_density():
    p = AR1(**arguments("stationary"))
    z = p.sample()
    torch.testing.assert_close(kl_divergence(dist.Delta(z, event_dim=2), p), -p.log_prob(z))


BAD = {
    "one step": (
        {"loc": torch.zeros(N, 1, K), "phi": torch.zeros(1, K), "scale": torch.ones(1, K)},
        "at least two steps",
    ),
    "no path": ({"loc": torch.zeros(T)}, "at least two steps"),
    "memory": ({"phi": torch.tensor([[0.5], [1.2], [0.1], [0.2], [0.3]])}, r"\|phi\| < 1, not 1\.2"),
    "unit root": ({"phi": torch.tensor(-1.0)}, r"\|phi\| < 1, not -1:"),
    "nan": ({"phi": torch.tensor(float("nan"))}, r"\|phi\| < 1, not nan"),
    "scale": ({"scale": torch.tensor(0.0)}, "a scale > 0, not 0"),
    "innovation": ({"innovation": torch.tensor(-0.5)}, r"an innovation > 0, not -0\.5"),
    "steps": ({"phi": torch.zeros(T - 1, K)}, r"must broadcast .* phi \(4, 2\)"),
    "loc": ({"loc": torch.full((T, K), float("nan"))}, "parameter loc"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    changed, message = BAD[case]
    good = {"loc": torch.zeros(N, T, K), "phi": torch.tensor(0.5), "scale": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=message):
        AR1(**(good | changed), validate_args=True)


def test_values_are_checked_only_where_validation_is_on():
    args = {"loc": torch.zeros(T, K), "phi": torch.tensor(1.2), "scale": torch.tensor(1.0)}
    AR1(**args, validate_args=False)
    with pyro.validation_enabled(False):
        AR1(**args)
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="phi"):
        AR1(**args)
    fn = AR1(**args | {"phi": torch.tensor(0.5)}, validate_args=True).expand(torch.Size([2]))
    with pytest.raises(ValueError, match=r"[Vv]alue"):
        fn.log_prob(torch.zeros(T + 1, K))
