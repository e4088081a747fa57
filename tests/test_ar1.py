"""The AR(1) path against dense Gaussian algebra: density, moments, draws, gradients, arguments."""

import pyro
import pytest
import torch
from ar1_paths import FORMS, B, K, N, T, arguments, dense, independent, pair
from torch.distributions import kl_divergence

from eve_pyro.config import load_recipe
from eve_pyro.distributions import AR1
from eve_pyro.priors import AR1Prior, StandardPrior

PHIS = (-0.99, -0.5, 0.0, 0.7, 0.99)


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


def test_numbers_stand_for_tensors():
    loc = torch.randn(B, N, 4, 2)
    value = torch.randn_like(loc)
    tensors = AR1(loc, torch.full((1, 1), 0.9), torch.full((1, 1), 2.0), torch.full((1, 1), 0.5))
    torch.testing.assert_close(AR1(loc, 0.9, 2.0, 0.5).log_prob(value), tensors.log_prob(value))
    with pytest.raises(ValueError, match=r"\|phi\| < 1"):
        AR1(loc, 1.0, 1.0, validate_args=True)


def test_a_path_with_an_innovation_may_grow():
    grown = AR1(torch.zeros(3, 1).double(), 1.5, 1.0, 0.5, validate_args=True)
    torch.testing.assert_close(grown.variance[:, 0], torch.tensor([1.0, 2.5, 5.875]).double())


def test_a_learned_persistence_stays_below_one_in_float32():
    prior = AR1Prior(StandardPrior(2), 2, 0.999999, learned=True)
    assert prior.phi[0].item() == pytest.approx(0.999999, abs=1e-7)
    with torch.no_grad():
        prior.raw_phi.copy_(torch.tensor([50.0, -50.0]).view(2, 1, 1))
    assert (prior.phi.abs() < 1).all()
    fn = prior(torch.zeros(1, 3, 1))
    density = fn.log_prob(fn.rsample())
    density.sum().backward()
    assert (fn.noise > 0).all()
    assert torch.isfinite(density).all()
    assert torch.isfinite(prior.raw_phi.grad).all()
    with pytest.raises(ValueError, match=r"not 0\.99999999"):
        AR1Prior(StandardPrior(2), 2, 0.99999999)
    with pytest.raises(ValueError, match=r"phi = 0\.99999999"):
        load_recipe("factor", {"phi": 0.99999999})
