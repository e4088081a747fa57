"""Units that know of one another against dense Gaussian algebra and Bayes' rule, and flows against autograd."""

from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_model, shaken
from pyro.nn import DenseNN
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from eve_pyro.distributions import AR1
from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.distributions.flow import FlowUnits
from eve_pyro.distributions.joint import JointUnits
from eve_pyro.distributions.low_rank import LowRankUnits
from eve_pyro.distributions.paths import path_moments
from eve_pyro.guides import Flow
from eve_pyro.protocols import Information

B, N, H, RANK, POOL = 2, 3, 5, 2, 0.7
EXACT = {"rtol": 1e-8, "atol": 1e-8}


class Case(NamedTuple):
    """A joint posterior, the same as a dense normal over all latents, and what both are computed from."""

    q: JointUnits
    dense: MultivariateNormal
    leaves: tuple[Tensor, ...]


def leaf(value):
    return value.double().requires_grad_()


def dense_paths(loc, scale, phi):
    """Independent chains as one normal (..., N T K): Cov(z_t, z_u) = s_t s_u phi^|t - u|, phi (N,)."""
    units, steps, dims = loc.shape[-3:]
    memory = phi.view(-1, 1, 1) ** (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    eyes = torch.eye(units, dtype=loc.dtype), torch.eye(dims, dtype=loc.dtype)
    covariance = torch.einsum("...ntk,...nuk,ntu,nm,kl->...ntkmul", scale, scale, memory, *eyes)
    return MultivariateNormal(loc.flatten(-3), covariance.flatten(-6, -4).flatten(-3))


def prior_of(kind, steps, dims):
    """A prior, the same dense, and its parameters."""
    loc, scale = leaf(torch.randn(B, N, steps, dims)), leaf(torch.rand(B, N, steps, dims) + 0.5)
    if kind == "normal":
        fn, phi = dist.Normal(loc, scale).to_event(2), torch.zeros(N).double()
    else:
        phi = leaf(torch.tensor([0.8, -0.5, 0.95]))
        fn = AR1(loc, phi.view(N, 1, 1), scale)
    return fn, dense_paths(loc, scale, phi), (loc, scale, phi)[: 2 if kind == "normal" else 3]


def conditioned(prior, matrix, noise, value):
    """Return p(z | r) and p(r) of r = matrix z + noise e, by the textbook."""
    gain = matrix @ prior.covariance_matrix
    evidence = MultivariateNormal(
        (matrix @ prior.mean[..., None])[..., 0], gain @ matrix.mT + noise.square().diag_embed()
    )
    regression = torch.linalg.solve(evidence.covariance_matrix, gain).mT
    mean = prior.mean + (regression @ (value - evidence.mean)[..., None])[..., 0]
    covariance = prior.covariance_matrix - regression @ gain
    return MultivariateNormal(mean, 0.5 * (covariance + covariance.mT)), evidence


def reading(loadings, steps, dims):
    """The matrix (B, H, N T K) from latents to readings: a_np = POOL * sum_k z_ntk at the last steps t."""
    matrix = torch.zeros(B, H, N, steps, dims, dtype=loadings.dtype)
    matrix[..., -loadings.shape[-2] :, :] = POOL * loadings.transpose(-2, -1)[..., None]
    return matrix.flatten(-3)


def low_rank(steps, dims):
    loc, scale = leaf(torch.randn(B, N, steps, dims)), leaf(torch.rand(B, N, steps, dims) + 0.3)
    factor = leaf(torch.randn(B, N, steps, dims, RANK))
    wide = factor.flatten(1, 3)
    dense = MultivariateNormal(loc.flatten(1), wide @ wide.mT + scale.flatten(1).square().diag_embed())
    return Case(LowRankUnits(loc, scale, factor), dense, (loc, scale, factor))


def linear_model(kind, steps, reads, dims):
    """A prior with its dense form and leaves, and a linear reading of it: loadings, noise and what was read."""
    loadings, noise = leaf(torch.randn(B, H, reads, N)), leaf(torch.rand(B, H) + 0.3)
    return prior_of(kind, steps, dims), (loadings, noise, leaf(torch.randn(B, H)))


def read_by(loadings, noise, value):
    """What a linear reading says of the activity, as the conjugate posterior takes it, and how it is pooled."""
    by_unit = loadings.transpose(-2, -1) / noise[..., None, None]  # (B, H, N, P)
    pull = torch.einsum("bhnp,bh->bnp", by_unit, value / noise)
    return torch.einsum("bhnp,bhmq->bnpmq", by_unit, by_unit), pull, POOL


def conjugate(kind, steps, reads, dims):
    (prior, dense, own), given = linear_model(kind, steps, reads, dims)
    posterior, _ = conditioned(dense, reading(given[0], steps, dims), *given[1:])
    return Case(ConjugateUnits(prior, *read_by(*given)), posterior, (*given, *own))


LINEAR = [  # prior, T, P, K
    ("normal", 1, 1, 1), ("normal", 1, 1, 2), ("normal", 3, 3, 2), ("ar1", 3, 1, 1), ("ar1", 3, 1, 2),
    ("ar1", 3, 3, 1), ("ar1", 3, 3, 2), ("ar1", 3, 2, 2),
]  # fmt: skip
CASES = {f"low rank T={steps} K={dims}": (low_rank, steps, dims) for steps, dims in ((1, 1), (1, 2), (3, 2))}
CASES |= {f"conjugate {case[0]} T={case[1]} P={case[2]} K={case[3]}": (conjugate, *case) for case in LINEAR}


@pytest.fixture(params=CASES)
def case(request):
    build, *shape = CASES[request.param]
    return build(*shape)


def by_unit(covariance):
    """The blocks (..., N, D, D) on the diagonal of a covariance (..., N D, N D)."""
    size = covariance.shape[-1] // N
    return torch.stack([covariance[..., n * size :, n * size :][..., :size, :size] for n in range(N)], -3)


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


def test_what_a_linear_reading_says_is_its_likelihood_up_to_a_constant():
    (_, _, _), (loadings, noise, value) = linear_model("normal", 3, 2, 1)
    weights, activity = loadings.transpose(-2, -1), torch.randn(2, B, N, 2).double()
    precision, pull = Information.of_linear(value, weights, noise)
    found = (pull * activity).sum((-1, -2)) - 0.5 * torch.einsum("sbnp,bnpmq,sbmq->sb", activity, precision, activity)
    read = dist.Normal(torch.einsum("bhnp,sbnp->sbh", weights, activity), noise).log_prob(value).sum(-1)
    torch.testing.assert_close(found[1] - found[0], read[1] - read[0], **EXACT)


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


@pytest.mark.parametrize("shape", LINEAR)
def test_the_evidence_is_what_the_conjugate_elbo_says_for_every_draw_and_on_average(shape):
    (prior, dense, _), (loadings, noise, value) = linear_model(*shape)
    matrix = reading(loadings, *prior.event_shape)
    posterior, evidence = conditioned(dense, matrix, noise, value)
    q, expected = ConjugateUnits(prior, *read_by(loadings, noise, value)), evidence.log_prob(value)

    def likelihood(z):
        return dist.Normal((matrix @ z.flatten(-3)[..., None])[..., 0], noise).log_prob(value).sum(-1)

    z = q.rsample((5,))
    weight = likelihood(z) + (prior.log_prob(z) - q.log_prob(z)).sum(-1)
    torch.testing.assert_close(weight, expected.expand(5, B), **EXACT)
    spread = (matrix @ posterior.covariance_matrix @ matrix.mT).diagonal(dim1=-2, dim2=-1)
    average = likelihood(q.mean) - 0.5 * (spread / noise.square()).sum(-1)
    torch.testing.assert_close(average - kl_divergence(q, prior).sum(-1), expected, **EXACT)


def test_a_prior_that_varies_over_particles_gives_every_particle_its_own_posterior():
    (prior, _, _), given = linear_model("ar1", 3, 3, 2)
    other, _, _ = prior_of("ar1", 3, 2)
    locs = torch.stack([prior.mean, other.mean])
    q = ConjugateUnits(AR1(locs, prior.phi, prior.scale), *read_by(*given))
    assert q.batch_shape == (2, B, N)
    for particle, loc in enumerate(locs):
        single = ConjugateUnits(AR1(loc, prior.phi, prior.scale), *read_by(*given))
        torch.testing.assert_close(q.mean[particle], single.mean)
        z = single.rsample()
        torch.testing.assert_close(q.log_prob(z)[particle], single.log_prob(z))


def alone(name):
    """A posterior whose first unit is independent of the others."""
    if name == "low rank":
        case = low_rank(3, 2)
        loc, scale, factor = case.leaves
        keep = torch.tensor([0.0, 1.0, 1.0]).double().view(N, 1, 1, 1)
        return LowRankUnits(loc, scale, factor * keep), prior_of("ar1", 3, 2)[0]
    (prior, _, _), (loadings, noise, value) = linear_model("ar1", 3, 3, 2)
    keep = torch.tensor([0.0, 1.0, 1.0]).double()
    return ConjugateUnits(prior, *read_by(loadings * keep, noise, value)), prior


def test_a_low_rank_unit_without_a_factor_pays_for_itself_alone():
    q, prior = alone("low rank")
    own = kl_divergence(dist.Normal(q.mean, q.scale).to_event(2), prior)
    torch.testing.assert_close(kl_divergence(q, prior)[:, 0], own[:, 0], rtol=1e-12, atol=1e-12)


def test_a_conjugate_unit_that_is_not_read_keeps_its_prior_and_pays_nothing():
    q, prior = alone("conjugate")
    torch.testing.assert_close(q.mean[:, 0], prior.mean[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(kl_divergence(q, prior)[:, 0], torch.zeros(B).double(), rtol=0, atol=1e-12)


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


def test_units_that_are_no_gaussian_paths_are_refused():
    given = read_by(torch.ones(B, H, 1, N), torch.ones(B, H), torch.zeros(B, H))
    with pytest.raises(ValueError, match=r"needs Gaussian units, not a prior of Independent"):
        ConjugateUnits(dist.Laplace(torch.zeros(B, N, 1, 1), 1.0).to_event(2), *given)
    q, _ = alone("low rank")
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


def couplings(size):
    """Two affine couplings with random nets, as the flow guide chains them, and the nets."""
    half = size // 2
    nets = [shaken(DenseNN(half, [8], [size - half] * 2), 0.4).double() for _ in range(2)]
    first, second = (dist.transforms.AffineCoupling(half, net) for net in nets)
    flip = dist.transforms.Permute(torch.arange(size - 1, -1, -1))
    return [first, flip, second, flip], nets


def by_hand(x, nets):
    """The chain on x (N, T, K), a step at a time: one half moves given the other, then the other way round."""
    steps = []
    for flat in x.transpose(0, 1).flatten(1):
        for net in nets:
            shift, log_scale = net(flat[: len(flat) // 2])
            flat = torch.cat([flat[: len(flat) // 2], log_scale.exp() * flat[len(flat) // 2 :] + shift]).flip(0)
        steps.append(flat.view(x.shape[0], x.shape[2]))
    return torch.stack(steps, 1)


@pytest.mark.parametrize(("steps", "dims"), [(1, 1), (2, 2)])
def test_flow_density_is_the_change_of_variables(steps, dims):
    transforms, nets = couplings(N * dims)
    loc, scale = torch.randn(B, N, steps, dims).double(), torch.rand(B, N, steps, dims).double() + 0.5
    q, shape = FlowUnits(loc, scale, transforms), (N, steps, dims)
    assert (q.batch_shape, q.event_shape) == ((B, N), (steps, dims))
    x = torch.randn(B, *shape).double()
    for window in range(B):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: by_hand(flat.view(shape), nets).flatten(), x[window].flatten()
        )
        z = by_hand(x[window], nets).detach()
        expected = dist.Normal(loc[window], scale[window]).log_prob(x[window]).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(q.log_prob(z)[window].sum(), expected, **EXACT)


def test_flow_draws_are_the_base_carried_forward_and_come_back():
    transforms, nets = couplings(2 * N)
    loc, scale = torch.randn(B, N, 2, 2).double(), torch.rand(B, N, 2, 2).double() + 0.5
    q = FlowUnits(loc, scale, transforms)
    torch.manual_seed(3)
    z = q.rsample((4,))
    torch.manual_seed(3)
    x = dist.Normal(loc, scale).rsample((4,))
    expected = torch.stack([torch.stack([by_hand(window, nets) for window in draw]) for draw in x])
    torch.testing.assert_close(z, expected, **EXACT)
    torch.testing.assert_close(q.mean, torch.stack([by_hand(window, nets) for window in loc]), **EXACT)
    back = z.detach().clone().transpose(-3, -2).flatten(-2)
    for transform in reversed(transforms):
        back = transform.inv(back)
    torch.testing.assert_close(back.unflatten(-1, (N, 2)).transpose(-3, -2), x, **EXACT)


def test_flow_expands_with_particles_in_front():
    transforms, _ = couplings(N)
    q = FlowUnits(torch.randn(B, N, 1, 1).double(), torch.ones(B, N, 1, 1).double(), transforms)
    wide = q.expand(torch.Size([4, B, N]))
    z = wide.rsample()
    assert z.shape == (4, B, N, 1, 1)
    assert not torch.isclose(z[0], z[1]).any()
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))


def test_a_fresh_flow_is_its_base():
    model = make_model(latent_dim=2)
    guide = Flow(model, hidden=8)
    for part in (guide.heads["eve"].loc, guide.heads["eve"].log_scale):
        shaken(part)
    q = guide.posterior(torch.randn(4, 1, CONTEXT), torch.randn(4, HORIZON))
    z = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(z), q.base.log_prob(z))
    torch.testing.assert_close(q.mean, q.base.mean)
    shaken(guide.heads["eve"].couplings)
    moved = guide.posterior(torch.randn(4, 1, CONTEXT), torch.randn(4, HORIZON))
    assert not torch.isclose(moved.mean, moved.base.mean).all()
