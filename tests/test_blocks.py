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


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("options", [{}, {"volatility": False}, {"held": "locations"}])
def test_half_of_the_composite_term_is_of_steps_and_half_of_blocks(options, particles):
    """Against the normals and Student's t that each block's mean has by the joint covariance, by SciPy."""
    model, guide = pair(**options)
    context, future = windows()
    whole = predict(model, guide, context).joint
    steps = predict(model, guide, context).components.log_prob(future).sum()
    shape, df = (whole.normal, whole.df) if options.get("volatility", True) else (whole, torch.full((6, 1), torch.inf))
    stretch = whole.stretch if options.get("volatility", True) else torch.ones(6, 1)
    blocks = []
    for rows in (averaging(18, 5)[:-1], averaging(18, 18)):
        scale = (rows @ shape.covariance_matrix[:, 0] @ rows.mT).diagonal(dim1=-2, dim2=-1).sqrt() * stretch
        loc = (whole.mean[:, 0] @ rows.mT).detach().numpy()
        each = stats.t.logpdf((future @ rows.mT).numpy(), df.detach().numpy(), loc, scale.detach().numpy())
        blocks.append((torch.as_tensor(each) * (rows > 0).sum(-1)).sum())
    elbo = float(loss_of(LocalELBO(num_particles=particles), model, guide))
    loss = float(loss_of(LocalELBO("composite", alpha=0.3, num_particles=particles), model, guide))
    expected = 0.3 * elbo - 0.7 * float(0.5 * steps + 0.25 * sum(blocks))
    assert loss == pytest.approx(expected, rel=1e-6)


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
        """Standard normals, whose means over blocks are said to have a deviation of 2."""

        arg_constraints, event_shape, has_rsample = {}, torch.Size([16]), True
        batch_shape = torch.Size([6, 1])
        conditional = joint = lambda self, *latents: dist.Normal(torch.zeros(6, 1, 16), 1.0).to_event(1)
        marginal = conditional

        def expand(self, batch_shape, _instance=None):
            return self

        def blocks(self, latents, size):
            assert size == 4
            return dist.Normal(torch.zeros(6, 1, 5), 2.0).to_event(1)

        def rsample(self, sample_shape=()):
            return self.conditional().rsample(sample_shape)

        def log_prob(self, value):
            return self.conditional().log_prob(value)

    def model(context, future=None):
        with pyro.plate("windows", 6, dim=-2), pyro.poutine.mask(mask=torch.arange(6)[:, None] < 4):
            pyro.sample("y", Own(), obs=None if future is None else future.unsqueeze(-2))

    y = torch.randn(6, 16)
    loss = LocalELBO("composite", alpha=0.0).differentiable_loss(model, lambda x, future=None: None, y[:, None], y)
    step = dist.Normal(0.0, 1.0).log_prob(y[:4]).sum()
    quarters, whole = (dist.Normal(0.0, 2.0).log_prob(y[:4].unflatten(-1, (-1, n)).mean(-1)).sum() for n in (4, 16))
    torch.testing.assert_close(loss, -0.5 * (step + 0.5 * (4 * quarters + 16 * whole)))
