"""Paths along the horizon: the factor normal by patches, the conjugate guide, and chains, all against dense algebra."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import shaken
from dense import EXACT, conditioned, dense_paths
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from eve_pyro.distributions import AR1, FactorNormal
from eve_pyro.guides import Autoregressive, Conjugate, FutureAware
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict
from eve_pyro.infer.scores import importance_log_weights
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.models import Forecaster, Trajectory
from eve_pyro.nets import LinearEncoder, NoNorm
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import AR1Prior, ContextualPrior, LearnedPrior, StandardPrior

B, N, K, H, CONTEXT, CONTEXTS = 2, 3, 2, 5, 12, 3


def reading(fn, steps, dims):
    """How ``fn`` reads latents, as written in its docstring: the matrix (B, H, N T K), and the noise (B, H)."""
    patches, horizon = fn.activity.shape[-2], fn.loc.shape[-1]
    matrix = torch.zeros(B, horizon, N, steps, dims, dtype=fn.loc.dtype)
    noise = torch.zeros(B, horizon, dtype=fn.loc.dtype)
    for h in range(horizon):
        patch = h * patches // horizon
        loadings = fn.loadings[..., h, :] * fn.gain[:, patch]  # (B, N)
        noise[:, h] = fn.scale[:, 0, h] / (1 + loadings.square().sum(-1)).sqrt()
        matrix[:, h, :, steps - patches + patch] = (fn.pool_weight * noise[:, h, None] * loadings)[..., None]
    return matrix.flatten(-3), noise


def evidence_of(fn, prior, steps, dims):
    """The dense p(y) under a dense prior of the latents."""
    _, evidence = conditioned(prior, *reading(fn, steps, dims), torch.zeros_like(fn.loc[:, 0]))
    return MultivariateNormal(evidence.mean + fn.loc[:, 0], evidence.covariance_matrix)


def factor_normal(patches, by_window=False, horizon=H):
    loc, scale = torch.randn(B, 1, horizon).double(), torch.rand(B, 1, horizon).double() + 0.5
    loadings = torch.randn(*(B,) * by_window, horizon, N).double()
    gain, activity = torch.rand(B, patches, N).double() + 0.5, torch.randn(4, B, patches, N).double()
    return FactorNormal(loc, scale, loadings, gain, activity, site="eve.z", pool_weight=0.6)


def path(steps, dims):
    """AR(1) units with means and scales of their own, and the same dense."""
    loc, scale = torch.randn(B, N, steps, dims).double(), torch.rand(B, N, steps, dims).double() + 0.5
    phi = torch.tensor([0.9, -0.4, 0.6]).double()
    return AR1(loc, phi.view(N, 1, 1), scale), dense_paths(loc, scale, phi)


@pytest.mark.parametrize("by_window", [False, True])
@pytest.mark.parametrize(("patches", "steps"), [(1, 3), (2, 2), (3, 3), (3, 4), (5, 5)])  # few of them divide H = 5
@pytest.mark.parametrize("dims", [1, 2])
def test_factor_normal_over_patches_is_the_dense_normal(patches, steps, dims, by_window):
    fn, (units, dense) = factor_normal(patches, by_window), path(steps, dims)
    expected = evidence_of(fn, dense, steps, dims)
    y = 2 * torch.randn(B, H).double()
    joint, marginal = fn.joint({"eve.z": units}), fn.marginal({"eve.z": units})
    assert (joint.batch_shape, joint.event_shape) == (marginal.batch_shape, marginal.event_shape) == ((B, 1), (H,))
    torch.testing.assert_close(joint.log_prob(y[:, None])[:, 0], expected.log_prob(y), **EXACT)
    torch.testing.assert_close(joint.covariance_matrix[:, 0], expected.covariance_matrix, **EXACT)
    torch.testing.assert_close(marginal.mean[:, 0], expected.mean, **EXACT)
    torch.testing.assert_close(marginal.variance[:, 0], expected.variance, **EXACT)


@pytest.mark.parametrize("patches", [1, 3, 5])
def test_each_step_reads_the_activity_of_its_own_patch(patches):
    fn = factor_normal(patches)
    matrix, noise = reading(fn, patches, 1)
    activity = fn.activity.mT.flatten(-2) / fn.pool_weight  # as latents, unit by unit
    torch.testing.assert_close(fn.mean[:, :, 0], fn.loc[:, 0] + (matrix @ activity[..., None])[..., 0], **EXACT)
    torch.testing.assert_close(fn.stddev[0, :, 0], noise, **EXACT)


@pytest.mark.parametrize("patches", [2, 3, 5])
def test_standard_paths_leave_the_marginals_alone(patches):
    fn = factor_normal(patches)
    phi, scale = torch.tensor([0.9, 1 / 0.6], dtype=torch.float64)  # activity = 0.6 z, a standard path
    units = AR1(torch.zeros(B, N, patches, 1).double(), phi, scale)
    marginal = fn.marginal({"eve.z": units})
    torch.testing.assert_close(marginal.mean, fn.loc, **EXACT)
    torch.testing.assert_close(marginal.stddev, fn.scale, **EXACT)
    correlated = fn.joint({"eve.z": units}).covariance_matrix.tril(-1)
    assert (correlated.abs() > 1e-3).any()


def test_no_closed_form_where_anything_else_was_drawn():
    fn, (units, _) = factor_normal(3), path(3, 2)
    point, draw = dist.Delta(torch.zeros(B, N)), dist.Normal(torch.zeros(B, N), 1.0)
    for closed_form in (fn.joint, fn.marginal):
        assert closed_form({"below.z": point, "eve.z": units}) is not None
        for other in (draw, draw.to_event(1), units, None):
            assert closed_form({"below.z": other, "eve.z": units}) is None
        assert closed_form({"eve.z": None}) is None
        assert closed_form({"eve.z": draw}) is None


MODELS = ["forecaster, standard", "forecaster, learned", "forecaster, AR(1) over contexts", "trajectory"]


@pytest.fixture(params=MODELS)
def model(request):
    """Four linear-Gaussian models in float64; H = 5 is no multiple of the trajectory's patches."""
    encoder = LinearEncoder(CONTEXT, hidden=4, features=6, dropout=0.0)
    contextual = ContextualPrior(encoder.out_features, N, K)
    prior = {
        "forecaster, standard": StandardPrior(N, K),
        "forecaster, learned": LearnedPrior(N, K),
        "forecaster, AR(1) over contexts": AR1Prior(LearnedPrior(N, K), N, 0.8),
        "trajectory": AR1Prior(contextual, N, 0.8, learned=True),
    }[request.param]
    layer = EveLayer(prior, N, K)
    readout = FactorReadout(layer, encoder.out_features, H)
    if request.param == "trajectory":
        return shaken(Trajectory(encoder, layer, readout, H, num_patches=3)).double().eval()
    path = CONTEXTS if "contexts" in request.param else 1
    return shaken(Forecaster(encoder, layer, readout, H, path=path)).double().eval()


@pytest.fixture
def windows(request, model):
    contexts = CONTEXTS if "contexts" in request.node.callspec.params["model"] else 1
    return torch.randn(B, contexts, CONTEXT).double(), torch.randn(B, H).double()


def exact_posterior(model, context, future):
    """The dense p(z | y) and p(y) of a model, from its prior's formula and the factor normal's."""
    state, prior = model.evidence(context).state, model.layer.prior
    own, phi = (prior.marginals, prior.phi) if isinstance(prior, AR1Prior) else (prior, torch.zeros(N).double())
    units = own(state)
    likelihood = poutine.trace(model).get_trace(context, future).nodes["y"]["fn"]
    matrix, noise = reading(likelihood, *units.event_shape)
    loc = likelihood.loc[:, 0]
    posterior, evidence = conditioned(dense_paths(units.mean, units.stddev, phi), matrix, noise, future - loc)
    return posterior, evidence.log_prob(future - loc)


def test_the_conjugate_guide_is_the_dense_posterior(model, windows):
    q, (expected, _) = Conjugate(model).posterior(*windows), exact_posterior(model, *windows)
    torch.testing.assert_close(q.mean.flatten(-3), expected.mean, **EXACT)
    torch.testing.assert_close(q.variance.flatten(-3), expected.variance, **EXACT)
    z = q.rsample((4,))
    torch.testing.assert_close(q.log_prob(z).sum(-1), expected.log_prob(z.flatten(-3)), **EXACT)
    assert kl_divergence(q, model.layer.prior(model.evidence(windows[0]).state)).sum() > 0.1  # there is much to learn


def test_under_the_conjugate_guide_every_importance_weight_is_the_evidence(model, windows):
    guide, (_, expected) = Conjugate(model), exact_posterior(model, *windows)
    weights = importance_log_weights(model, guide, *windows, num_draws=50)
    torch.testing.assert_close(weights, expected.expand(50, B), rtol=0, atol=1e-6)
    forecast = predict(model, guide, windows[0], num_draws=2)
    torch.testing.assert_close(forecast.joint.log_prob(windows[1][:, None])[:, 0], expected, rtol=0, atol=1e-6)


def test_the_local_elbo_of_the_conjugate_guide_averages_to_the_evidence(model, windows):
    elbo, (_, expected) = LocalELBO(num_particles=20_000), exact_posterior(model, *windows)
    loss = elbo.loss(model, Conjugate(model), *windows)
    torch.testing.assert_close(
        elbo.terms.log_likelihood - elbo.terms.units["eve.z"].kl.sum(-1), expected, rtol=0, atol=0.1
    )
    assert loss == pytest.approx(-expected.sum().item(), abs=0.2)


def test_a_trajectory_refuses_patches_and_contexts_that_make_no_path():
    encoder = LinearEncoder(CONTEXT, hidden=4, features=6)
    layer = EveLayer(StandardPrior(N), N)
    readout = FactorReadout(layer, encoder.out_features, H)
    for patches in (1, H + 1):
        with pytest.raises(ValueError, match=f"needs 2 to {H} patches, not {patches}"):
            Trajectory(encoder, layer, readout, H, num_patches=patches)
    with pytest.raises(ValueError, match=r"the context needs shape \(windows, 1, steps\), not \(2, 2, 12\)"):
        Trajectory(encoder, layer, readout, H, num_patches=2)(torch.randn(B, 2, CONTEXT))


# Chains learned from data of a known linear-Gaussian state-space model.
PATCHES, PHI, NOISE, LOADINGS = 6, 0.8, 0.7, torch.tensor([1.0, -0.6])  # two values a patch


class NoContext(nn.Module):
    """All that a unit may know is which patch it is in: here the last one, which the embedding starts from."""

    out_features = PATCHES

    def forward(self, context):
        return 3 * torch.eye(PATCHES)[-1].expand(*context.shape[:-1], PATCHES)


class PatchReadout(nn.Module):
    """y_p = loadings z_p + noise."""

    def forward(self, activity, state):
        loc = (activity * LOADINGS).flatten(-2).unsqueeze(-2)
        return dist.Normal(loc, torch.full_like(loc, NOISE)).to_event(1)


class Learned(NamedTuple):
    """A trained pair, what it was trained on, and the exact posterior of its paths: mean (B, P), precision (P, P)."""

    phi: float
    chain: torch.distributions.Distribution
    mean_field: torch.distributions.Distribution
    mean: Tensor
    precision: Tensor


def simulated(count):
    shocks = torch.randn(PATCHES, count)
    steps = [shocks[0]]
    for shock in shocks[1:]:
        steps.append(PHI * steps[-1] + (1 - PHI**2) ** 0.5 * shock)
    path = torch.stack(steps, -1)  # (B, P)
    return (path[..., None] * LOADINGS + NOISE * torch.randn(count, PATCHES, 2)).flatten(1)


def train(model, guide, parameters, future, steps):
    optimizer, elbo = torch.optim.Adam(parameters, 0.02), LocalELBO()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, steps)
    for _ in range(steps):
        rows = future[torch.randint(len(future), (500,))]
        loss = elbo.differentiable_loss(model, guide, rows.new_zeros(500, 1, 1), rows) / 500
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.fixture(scope="module")
def learned():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        layer = EveLayer(AR1Prior(StandardPrior(1), 1, phi=0.3, learned=True), 1)
        model = Trajectory(NoContext(), layer, PatchReadout(), 2 * PATCHES, NoNorm(), PATCHES)
        with torch.no_grad():
            model.patches.copy_(3 * torch.eye(PATCHES))
        future = simulated(8000)
        chain, mean_field = Autoregressive(model, hidden=32), FutureAware(model, hidden=32)
        train(model, chain, [*chain.parameters(), layer.prior.raw_phi], future, 240)
        train(model, mean_field, mean_field.parameters(), future, 120)  # of the same model, which is left as it is
        phi, context = layer.prior.phi.detach(), future.new_zeros(len(future), 1, 1)
        prior = dense_paths(torch.zeros(1, PATCHES, 1), torch.ones(1, PATCHES, 1), phi)
        matrix = torch.block_diag(*[LOADINGS[:, None]] * PATCHES)  # (H, P)
        # Over whole paths at once, which is what a Kalman smoother computes step by step.
        exact, _ = conditioned(prior, matrix, torch.full((2 * PATCHES,), NOISE), future)
        with torch.no_grad():
            posteriors = [guide.posterior(context, future) for guide in (chain, mean_field)]
        return Learned(phi.item(), *posteriors, exact.mean, exact.precision_matrix[0])


def test_a_learned_chain_finds_the_persistence(learned):
    assert learned.phi == pytest.approx(PHI, abs=0.02)


def test_a_learned_chain_is_the_smoother(learned):
    covariance = learned.precision.inverse()
    away = (learned.chain.mean[:, 0, :, 0] - learned.mean) / covariance.diagonal().sqrt()
    assert away.square().mean(0).sqrt().max() < 0.15  # deviations of the posterior itself
    variance, lagged = learned.chain.variance.mean(0)[0, :, 0], learned.chain.lag_covariance.mean(0)[0, 1:, 0]
    torch.testing.assert_close(variance, covariance.diagonal(), rtol=0.05, atol=0)
    torch.testing.assert_close(lagged, covariance.diagonal(1), rtol=0.1, atol=0)


def test_a_mean_field_is_too_sure_of_every_step(learned):
    """Its best variances are 1 / diag(precision), the variance of each step given all others: here under 0.9 of it."""
    variance, exact = learned.mean_field.variance.mean(0)[0, :, 0], learned.precision.inverse().diagonal()
    torch.testing.assert_close(variance, 1 / learned.precision.diagonal(), rtol=0.05, atol=0)
    assert (variance < 0.9 * exact).all()


def test_a_fresh_chain_is_its_prior_also_where_the_deviations_grow():
    encoder = LinearEncoder(CONTEXT, 6, 8)
    marginals = ContextualPrior(encoder.out_features, N)
    with torch.no_grad():
        marginals.log_scale.weight.normal_()
    layer = EveLayer(AR1Prior(marginals, N, 0.95), N)
    model = Trajectory(encoder, layer, FactorReadout(layer, encoder.out_features, H), H, num_patches=5)
    with torch.no_grad():
        model.patches.normal_()
    guide, batch, elbo = Autoregressive(model).eval(), (torch.randn(B, 1, CONTEXT), torch.randn(B, H)), LocalELBO()
    prior = layer.prior(model.eval().evidence(*batch).state)
    assert prior.transition.max() > 2
    elbo.loss(model, guide, *batch)
    torch.testing.assert_close(elbo.terms.units["eve.z"].kl, torch.zeros(B, N), rtol=0, atol=1e-6)
    loss = elbo.differentiable_loss(model, shaken(guide, 0.2), *batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in guide.parameters())
