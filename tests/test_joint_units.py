"""Units that know of one another against dense Gaussian algebra."""

from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from dense import EXACT, LINEAR, B, H, N, by_unit, conditioned, leaf, linear_model, prior_of, read_by, reading
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.distributions.joint import JointUnits
from eve_pyro.distributions.low_rank import LowRankUnits
from eve_pyro.distributions.paths import path_moments

RANK = 2


class Case(NamedTuple):
    """A joint posterior, the same as a dense normal over all latents, and what both are computed from."""

    q: JointUnits
    dense: MultivariateNormal
    leaves: tuple[Tensor, ...]


def low_rank(steps, dims):
    loc, scale = leaf(torch.randn(B, N, steps, dims)), leaf(torch.rand(B, N, steps, dims) + 0.3)
    factor = leaf(torch.randn(B, N, steps, dims, RANK))
    wide = factor.flatten(1, 3)
    dense = MultivariateNormal(loc.flatten(1), wide @ wide.mT + scale.flatten(1).square().diag_embed())
    return Case(LowRankUnits(loc, scale, factor), dense, (loc, scale, factor))


def conjugate(kind, steps, reads, dims):
    (prior, dense, own), given = linear_model(kind, steps, reads, dims)
    posterior, _ = conditioned(dense, reading(given[0], steps, dims), *given[1:])
    return Case(ConjugateUnits(prior, *read_by(*given)), posterior, (*given, *own))


CASES = {f"low rank T={steps} K={dims}": (low_rank, steps, dims) for steps, dims in ((1, 1), (1, 2), (3, 2))}
CASES |= {f"conjugate {case[0]} T={case[1]} P={case[2]} K={case[3]}": (conjugate, *case) for case in LINEAR}


@pytest.fixture(params=CASES)
def case(request):
    build, *shape = CASES[request.param]
    return build(*shape)


def marginals(dense):
    return MultivariateNormal(dense.mean.unflatten(-1, (N, -1)), by_unit(dense.covariance_matrix))


def without(dense, unit):
    """The joint normal of all other units."""
    others = torch.arange(dense.event_shape[0]).unflatten(0, (N, -1))[torch.arange(N) != unit].flatten()
    return MultivariateNormal(dense.mean[..., others], dense.covariance_matrix[..., others[:, None], others])


def information(dense):
    """Total correlation and each unit's mutual information with the others, from dense entropies."""
    own, whole = marginals(dense).entropy(), dense.entropy()
    others = torch.stack([without(dense, unit).entropy() for unit in range(N)], -1)
    return own.sum(-1) - whole, own + others - whole[..., None]


def test_log_prob_sums_over_units_to_the_dense_density(case):
    z = 2 * torch.randn(4, *case.q.batch_shape, *case.q.event_shape).double()
    assert case.q.log_prob(z).shape == (4, B, N)
    torch.testing.assert_close(case.q.log_prob(z).sum(-1), case.dense.log_prob(z.flatten(-3)), **EXACT)


def test_moments_are_the_dense_ones(case):
    q, dense, (steps, dims) = case.q, case.dense, case.q.event_shape
    torch.testing.assert_close(q.mean.flatten(-3), dense.mean, **EXACT)
    torch.testing.assert_close(q.variance.flatten(-3), dense.variance, **EXACT)
    torch.testing.assert_close(q.stddev, q.variance.sqrt())
    lagged = dense.covariance_matrix.diagonal(-dims, -2, -1)  # of each latent with the one K places before
    lagged = torch.cat([torch.zeros(B, dims).double(), lagged], -1).view(B, N, steps, dims)
    lagged[:, :, 0] = 0
    torch.testing.assert_close(q.lag_covariance, lagged, **EXACT)


def test_draws_have_the_dense_moments(case):
    count = 20_000
    draws, covariance = case.q.rsample((count,)).detach().flatten(-3), case.dense.covariance_matrix
    centred = draws - case.dense.mean
    variance = case.dense.variance
    assert (centred.mean(0).abs() < 5 * (variance / count).sqrt()).all()
    error = ((variance[..., None] * variance[..., None, :] + covariance.square()) / count).sqrt()
    assert ((torch.einsum("sbi,sbj->bij", centred, centred) / count - covariance).abs() < 5 * error).all()


def test_entropies_and_information_are_dense_log_determinants(case):
    torch.testing.assert_close(case.q.unit_entropy(), marginals(case.dense).entropy(), **EXACT)
    total, shared = case.q.information()
    expected = information(case.dense)
    torch.testing.assert_close(total, expected[0], **EXACT)
    torch.testing.assert_close(shared, expected[1], **EXACT)


def test_kl_shares_add_up_to_the_dense_kl_and_none_is_below_the_units_own(case):
    total, shared = information(case.dense)
    for kind in ("normal", "ar1") if case.q.event_shape[0] > 1 else ("normal",):
        prior, prior_dense, _ = prior_of(kind, *case.q.event_shape)
        kl, own = kl_divergence(case.q, prior), kl_divergence(marginals(case.dense), marginals(prior_dense))
        torch.testing.assert_close(kl.sum(-1), kl_divergence(case.dense, prior_dense), **EXACT)
        torch.testing.assert_close(kl, own + total[:, None] * shared / shared.sum(-1, keepdim=True), **EXACT)
        assert (kl > own).all()
        assert (own > 0).all()


def test_gradients_of_the_kl_are_the_dense_ones(case):
    prior, prior_dense, own = prior_of("normal", *case.q.event_shape)
    leaves = (*case.leaves, *own)
    found = torch.autograd.grad(kl_divergence(case.q, prior).sum(), leaves, retain_graph=True)
    expected = torch.autograd.grad(kl_divergence(case.dense, prior_dense).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(found, expected, **EXACT)
    through_draws = torch.autograd.grad(case.q.log_prob(case.q.rsample((2,))).sum(), case.leaves, allow_unused=True)
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in through_draws)


def test_gradients_through_draws_are_those_of_the_moments(case):
    """E z'Cz = m'Cm + tr(C S): its gradient by draws, within five standard errors of the dense one."""
    size, count = case.dense.event_shape[0], 4000
    curve = torch.randn(size, size).double()
    curve = curve @ curve.mT
    expected = (case.dense.mean @ curve * case.dense.mean).sum(-1) + (case.dense.covariance_matrix * curve).sum(
        (-1, -2)
    )
    expected = torch.autograd.grad(expected.sum(), case.leaves[0], retain_graph=True)[0]
    draws = []
    for _ in range(20):
        z = case.q.rsample((count // 20,)).flatten(-3)
        value = ((z @ curve) * z).sum(-1).mean(0).sum()
        draws.append(torch.autograd.grad(value, case.leaves[0], retain_graph=True)[0])
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-9).all()


def test_expand_puts_particles_in_front(case):
    wide = case.q.expand(torch.Size([4, B, N]))
    assert (wide.batch_shape, wide.event_shape) == ((4, B, N), case.q.event_shape)
    z = wide.rsample()
    assert z.shape == wide.shape() == (4, B, N, *case.q.event_shape)
    assert wide.rsample((2,)).shape == (2, *z.shape)
    assert not torch.isclose(z[0], z[1]).any()
    torch.testing.assert_close(wide.log_prob(z), case.q.log_prob(z))
    prior, _, _ = prior_of("normal", *case.q.event_shape)
    torch.testing.assert_close(kl_divergence(wide, prior.expand(wide.batch_shape))[3], kl_divergence(case.q, prior))


def test_a_low_rank_unit_without_a_factor_pays_for_itself_alone():
    loc, scale, factor = low_rank(3, 2).leaves
    q = LowRankUnits(loc, scale, factor * torch.tensor([0.0, 1.0, 1.0]).double().view(N, 1, 1, 1))
    prior, _, _ = prior_of("ar1", 3, 2)
    own = kl_divergence(dist.Normal(loc, scale).to_event(2), prior)
    torch.testing.assert_close(kl_divergence(q, prior)[:, 0], own[:, 0], rtol=1e-12, atol=1e-12)


def nearly_alone(size):
    """float32 posteriors of 300 windows whose units share ``size`` squared, and what to differentiate by."""
    factor = (size * torch.randn(300, N, 1, 1, RANK)).requires_grad_()
    yield LowRankUnits(torch.zeros(300, N, 1, 1), torch.ones(300, N, 1, 1), factor), factor
    loadings = (size * torch.randn(300, H, 1, N)).requires_grad_()
    prior = dist.Normal(torch.zeros(300, N, 1, 1), 1.0).to_event(2)
    yield ConjugateUnits(prior, *read_by(loadings, torch.ones(300, H), torch.zeros(300, H))), loadings


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-3, 1e-2])
def test_gradients_are_small_where_units_share_no_more_than_rounding(size):
    """Under betas of their own the weights of the shares are differentiated: 0 / 0, unless care is taken."""
    beta = torch.tensor([0.5, 1.0, 2.0])
    for q, parameter in nearly_alone(size):
        kl = kl_divergence(q, dist.Normal(torch.zeros(N, 1, 1), 1.0).to_event(2))
        (gradient,) = torch.autograd.grad((beta * kl).sum(), parameter)
        assert kl.abs().max() < 100 * size**2 + 1e-6
        assert gradient.abs().max() <= 100 * size


def test_what_is_no_gaussian_path_has_no_closed_form():
    q = low_rank(3, 2).q
    with pytest.raises(NotImplementedError, match="no closed-form KL"):
        kl_divergence(q, dist.Laplace(torch.zeros(B, N, 3, 2), 1.0).to_event(2))
    assert path_moments(dist.Normal(torch.zeros(B, N, 3, 2), 1.0)) is None  # its steps are a batch, not an event
    assert path_moments(dist.Normal(torch.zeros(B, N, 3, 2), 1.0).to_event(1)) is None


@pytest.mark.parametrize("kind", ["normal", "ar1"])
def test_path_moments_are_the_dense_ones(kind):
    fn, dense, _ = prior_of(kind, 3, 2)
    mean, covariance = path_moments(fn)
    torch.testing.assert_close(mean.flatten(-3), dense.mean)
    blocks = by_unit(dense.covariance_matrix).unflatten(-1, (3, 2)).unflatten(-3, (3, 2))  # (B, N, T, K, T, K)
    torch.testing.assert_close(covariance, blocks.diagonal(dim1=-3, dim2=-1).movedim(-1, -3))
