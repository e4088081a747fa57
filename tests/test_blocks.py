"""Means over blocks of steps: their densities against those that the joint covariance gives, and the loss they make."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, shaken
from dense import EXACT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_volatility import SITE, VOLATILITY, B, factor, gamma, units_of

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.distributions.blocks import block_lengths, block_means, block_size
from eve_pyro.distributions.integrated import IntegratedFactor
from eve_pyro.distributions.volatile import VolatileFactor
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict
from eve_pyro.protocols import Blockwise

H = 10
SMALL = {"context_length": CONTEXT, "horizon": 18, "units": 4, "hidden": 8, "features": 12, "dropout": 0.0}


def averaging(horizon, size):
    """The matrix that takes a path to the means of its blocks and of all of it, row by row."""
    blocks = list(torch.arange(horizon).split(size))
    rows = [(steps, 1 / len(steps)) for steps in [*blocks, *([torch.arange(horizon)] if len(blocks) > 1 else [])]]
    return torch.stack([torch.zeros(horizon).double().index_fill(0, steps, share) for steps, share in rows])


@settings(deadline=None)
@given(st.integers(1, 800), st.integers(1, 800))
def test_blocks_are_of_one_size_but_the_last(horizon, size):
    path = torch.randn(horizon).double()
    lengths = [len(steps) for steps in torch.arange(horizon).split(size)]
    assert block_lengths(horizon, size).tolist() == lengths + [horizon] * (len(lengths) > 1)
    torch.testing.assert_close(block_means(path, size), averaging(horizon, size) @ path, **EXACT)


@pytest.mark.parametrize(("horizon", "size"), [(720, 180), (60, 15), (14, 4), (13, 4), (12, 12), (4, 4), (3, None)])
def test_a_block_is_a_quarter_of_the_horizon_or_all_of_it(horizon, size):
    assert block_size(horizon) == size


@pytest.mark.parametrize("size", [1, 3, 5, H])
@pytest.mark.parametrize("particles", [(), (5,)])
@pytest.mark.parametrize("by_window", [False, True])
@pytest.mark.parametrize(("units", "patches"), [(2, 1), (12, 1), (2, 3), (5, 4)])
def test_the_means_of_blocks_have_the_moments_of_the_joint_density(units, patches, by_window, particles, size):
    fn, latents = factor(units, patches, particles, H, by_window), {SITE: units_of(units, patches, mean=0.4)}
    whole, means, rows = fn.joint(latents), fn.blocks(latents, size), averaging(H, size)
    assert (means.batch_shape, means.event_shape) == ((B, 1), (len(rows),))
    torch.testing.assert_close(means.mean, whole.mean @ rows.mT, **EXACT)
    covariance = rows @ whole.covariance_matrix @ rows.mT
    torch.testing.assert_close(means.variance, covariance.diagonal(dim1=-2, dim2=-1), **EXACT)


@pytest.mark.parametrize("patches", [1, 3])
def test_with_a_volatility_unit_they_are_students_t(patches):
    normal, prior, v = factor(3, patches, horizon=H), units_of(3, patches), gamma(1.3, 0.8)
    fn = VolatileFactor(normal, torch.ones(B, 1, 1).double(), VOLATILITY)
    latents, rows, y = {VOLATILITY: v, SITE: prior}, averaging(H, 4), torch.randn(B, 1, 4).double()
    found = fn.blocks(latents, 4).base_dist.log_prob(y)
    covariance = rows @ normal.joint({SITE: prior}).covariance_matrix[:, 0] @ rows.mT
    for b, (c, r) in enumerate(zip(v.base_dist.concentration.view(B), v.base_dist.rate.view(B), strict=True)):
        scale = (r / c * covariance[b].diagonal()).sqrt().numpy()
        expected = stats.t.logpdf(y[b, 0].numpy(), 2 * float(c), (normal.loc[b, 0] @ rows.mT).numpy(), scale)
        torch.testing.assert_close(found[b, 0], torch.as_tensor(expected), **EXACT)


def test_what_has_no_closed_form_has_no_blocks():
    normal = factor(3, horizon=H)
    assert normal.blocks({SITE: dist.Delta(torch.zeros(B, 3, 1, 2), event_dim=2)}, 5) is None
    fn = VolatileFactor(normal, torch.ones(B, 1, 1).double(), VOLATILITY)
    assert fn.blocks({VOLATILITY: gamma(1.0, 1.0), SITE: units_of(3, mean=0.3)}, 5) is None
    assert isinstance(fn, Blockwise)
    assert not isinstance(IntegratedFactor(normal), Blockwise)


def pair(**options):
    built = build(load_recipe("factor", SMALL | options))
    torch.manual_seed(3)
    return shaken(built.model, 0.1).double(), built.guide.double()


def windows():
    torch.manual_seed(1)
    return torch.randn(6, 1, CONTEXT).double(), torch.randn(6, 18).double()


def loss_of(elbo, model, guide):
    torch.manual_seed(7)
    return elbo.differentiable_loss(model, guide, *windows()).detach()


def composite_of(model, guide, context, future):
    """C, summed over windows, and c, from the joint covariance and SciPy."""
    forecast = predict(model, guide, context)
    whole = forecast.joint
    shape = getattr(whole, "normal", whole)  # of a t, or the normal itself
    df = getattr(whole, "df", torch.tensor(torch.inf)).detach().numpy()
    covariance, stretch = shape.covariance_matrix[:, 0].detach(), getattr(whole, "stretch", torch.ones(1)).detach()
    blocks, common = 0.0, 0.0
    for rows in (averaging(18, 5)[:-1], averaging(18, 18)):
        variance = (rows @ covariance @ rows.mT).diagonal(dim1=-2, dim2=-1)  # (B, J)
        share = (variance / (covariance.diagonal(dim1=-2, dim2=-1) @ rows.mT)).mean(0)
        weights = share * (rows > 0).sum(-1) / 36
        loc = (whole.mean[:, 0] @ rows.mT).detach().numpy()
        each = stats.t.logpdf((future @ rows.mT).numpy(), df, loc, (variance.sqrt() * stretch).numpy())
        blocks, common = blocks + 18 * (weights * torch.as_tensor(each)).sum(), common + weights.sum()
    return float((forecast.components.log_prob(future).sum() + blocks) / (1 + common)), float(common)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("options", [{}, {"volatility": False}, {"held": "locations"}])
def test_means_weigh_the_variance_they_hold_and_paths_the_less(options, particles):
    model, guide = pair(**options)
    composite, common = composite_of(model, guide, *windows())
    elbo = float(loss_of(LocalELBO(num_particles=particles), model, guide))
    whole = LocalELBO("composite", alpha=0.3, num_particles=particles)
    alpha = 0.3 * (1 - common)
    assert float(loss_of(whole, model, guide)) == pytest.approx(alpha * elbo - (1 - alpha) * composite, rel=1e-6)
    assert float(whole.terms.common) == pytest.approx(common, rel=1e-6)
    assert 0.02 < common < 0.98


def test_what_steps_have_in_common_grows_with_loadings_that_agree():
    model, guide = pair()
    for weights in model.readout.scale.parameters():
        weights.data.fill_(0.1)  # the same scale for all steps
    found = []
    for size in (0.0, 0.1, 1.0, 100.0):
        model.readout.loadings.data.fill_(size)
        loss_of(elbo := LocalELBO("composite"), model, guide)
        found.append(float(elbo.terms.common))
    assert found == sorted(found)
    assert found[0] == pytest.approx((4 + 1) / 36)  # what means of independent steps hold: 1 / n of each block
    assert 1 - 1e-4 < found[-1] <= 1


def test_weights_have_no_gradient():
    """At alpha 1 the loss is (1 - c) ELBO + c C, with c a constant."""
    model, guide = pair(volatility=False)
    loadings, elbo = model.readout.loadings, LocalELBO("composite", alpha=1.0)

    def gradient(objective, alpha):
        torch.manual_seed(7)
        loss = LocalELBO(objective, alpha).differentiable_loss(model, guide, *windows())
        return torch.autograd.grad(loss, loadings)[0]

    loss_of(elbo, model, guide)
    c = elbo.terms.common
    expected = (1 - c) * gradient("elbo", 1.0) + c * gradient("composite", 0.0)
    torch.testing.assert_close(gradient("composite", 1.0), expected)


@pytest.mark.parametrize(
    "options", [{"guide": "delta"}, {"readout": "normal", "guide": "future_aware"}, {"prior": "contextual"}]
)
def test_without_a_closed_form_it_is_the_predictive_term(options):
    model, guide = pair(**options)
    composite, predictive = (
        loss_of(LocalELBO(name, num_particles=2), model, guide) for name in ("composite", "predictive")
    )
    torch.testing.assert_close(composite, predictive)


def test_a_likelihood_of_ones_own_may_be_blockwise_and_masks_count():
    class Own(dist.TorchDistribution):
        """Standard normals, whose means over blocks are said to have a deviation of 2, in masked windows of 0.1."""

        arg_constraints, event_shape, has_rsample = {}, torch.Size([16]), True
        batch_shape = torch.Size([6, 1])
        conditional = joint = lambda self, *latents: dist.Normal(torch.zeros(6, 1, 16), 1.0).to_event(1)
        marginal = conditional

        def expand(self, batch_shape, _instance=None):
            return self

        def blocks(self, latents, size):
            assert size == 4
            return dist.Normal(torch.zeros(6, 1, 5), torch.where(live, 2.0, 0.1)[..., None]).to_event(1)

        def rsample(self, sample_shape=()):
            return self.conditional().rsample(sample_shape)

        def log_prob(self, value):
            return self.conditional().log_prob(value)

    live = torch.arange(6)[:, None] < 4

    def model(context, future=None):
        with pyro.plate("windows", 6, dim=-2), pyro.poutine.mask(mask=live):
            pyro.sample("y", Own(), obs=None if future is None else future.unsqueeze(-2))

    y = torch.randn(6, 16)
    loss = LocalELBO("composite", alpha=0.0).differentiable_loss(model, lambda x, future=None: None, y[:, None], y)
    step = dist.Normal(0.0, 1.0).log_prob(y[:4]).sum()
    quarters, whole = (dist.Normal(0.0, 2.0).log_prob(y[:4].unflatten(-1, (-1, n)).mean(-1)).sum() for n in (4, 16))
    # Means that are said to vary more than their steps weigh no more than these.
    torch.testing.assert_close(loss, -0.5 * (step + 0.5 * (4 * quarters + 16 * whole)))
