"""KL between AR(1) paths against dense Gaussian algebra, by itself and inside Pyro programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from ar1_paths import FORMS, B, K, N, T, arguments, dense, independent, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch.distributions import Independent, Normal, kl_divergence

from eve_pyro.distributions import AR1
from eve_pyro.infer.local_elbo import LocalELBO

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


def test_a_points_kl_is_its_log_density():
    p = AR1(**arguments("stationary"))
    z = p.sample()
    torch.testing.assert_close(kl_divergence(dist.Delta(z, event_dim=2), p), -p.log_prob(z))


def test_other_families_have_no_closed_form():
    p = AR1(**arguments("stationary"))
    laplace = dist.Laplace(p.mean, p.stddev).to_event(2)
    for q, other in ((laplace, p), (p, laplace), (dist.Normal(p.mean, 1.0).to_event(1), p)):
        with pytest.raises(NotImplementedError, match="closed-form"):
            kl_divergence(q, other)
    with pytest.raises(ValueError, match=r"\(5, 1\) for q"):
        kl_divergence(independent(dims=1), p)


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
