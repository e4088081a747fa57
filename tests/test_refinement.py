"""The amortization gap against closed forms: what independent normals can reach, and what a wrong guide leaves."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_pair, shaken
from linear_gaussian import exact, guide_of, independent, model_of, rows, truth

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.diagnostics.draws import posterior_draws
from eve_pyro.diagnostics.refinement import FreeNormals, amortization_gap
from eve_pyro.infer.units import unit_table

TRUTH = truth()
MODEL, DATA = model_of(TRUTH), rows(TRUTH, 20)
EVIDENCE = float(TRUTH.evidence(DATA.context, DATA.future).mean())


def error(column):
    return math.sqrt(np.square(column).sum()) / len(column)


@pytest.mark.parametrize(
    "options",
    [{"stretch": 0.5}, {"shift": 2.0, "stretch": 0.7}, {"kind": "marginal", "stretch": 2.0}],
    ids=["half", "shifted", "wide"],
)
def test_a_wrong_guide_is_refined_to_the_best_independent_normals(options):
    found = amortization_gap(MODEL, independent(TRUTH, **options), DATA)
    windows, units = found.windows, found.units
    assert list(windows) == ["window", "elbo", "refined", "gap", "gap_se", "bound"]
    best = EVIDENCE - TRUTH.divergence()
    assert windows["refined"].mean() == pytest.approx(best, abs=0.02)
    gap = TRUTH.divergence(**options) - TRUTH.divergence()
    assert abs(windows["gap"].mean() - gap) < 5 * error(windows["gap_se"])
    assert gap > 20 * error(windows["gap_se"])  # caught
    assert windows["bound"].mean() == pytest.approx(EVIDENCE, abs=0.05)
    before = options.get("stretch", 1.0) * TRUTH.deviations(options.get("kind", "mean_field"))
    np.testing.assert_allclose(units["scale_ratio"], TRUTH.deviations("mean_field") / before, rtol=0.03)
    np.testing.assert_allclose(units["shift"], options.get("shift", 0.0), atol=0.1)
    variance, loc = TRUTH.deviations("mean_field").square(), TRUTH.mean(DATA.context, DATA.future)
    kl = 0.5 * (variance + loc.square().mean(0) - 1 - variance.log())
    np.testing.assert_allclose(units["refined_kl"], kl, rtol=0.03)
    assert not units["sampled"].any()


def test_right_guides_have_no_gap_and_correlated_ones_a_negative_one():
    best = amortization_gap(MODEL, independent(TRUTH), DATA)
    assert abs(best.windows["gap"].mean()) < 0.01
    assert (best.windows["gap_se"] < 0.01).all()  # before and after share their random numbers
    assert (best.units["shift"] < 0.1).all()
    np.testing.assert_allclose(best.units["kl"], best.units["refined_kl"], rtol=0.03)
    joint = amortization_gap(MODEL, exact(TRUTH), DATA).windows
    np.testing.assert_allclose(joint["elbo"], TRUTH.evidence(DATA.context, DATA.future), rtol=1e-9)
    assert abs(joint["gap"].mean() + TRUTH.divergence()) < 5 * error(joint["gap_se"])


def test_a_model_is_left_as_it_was_and_the_guides_figures_are_those_of_the_unit_table(windows):
    model, guide = make_pair("future_aware", 0.3)
    model.train()
    parameters = [p.clone() for p in model.parameters()]
    state, shown = torch.get_rng_state(), windows.test.at_most(5)
    found = amortization_gap(model, guide, shown, steps=30, num_draws=100, batch_size=2)
    assert list(found.windows)[:3] == ["window", "series", "origin"]
    assert (found.windows["gap"] > 0).all()
    np.testing.assert_allclose(found.units["kl"], unit_table(model, guide, shown)["kl"], rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(parameters, model.parameters(), strict=True))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    again = amortization_gap(model, guide, shown, steps=30, num_draws=100, batch_size=2)
    assert again.windows.equals(found.windows)


def test_layers_above_one_another_are_refined_together(windows):
    options = {"model": "stack", "depth": 2, "guide": "future_aware", "volatility": False}
    pair = build(load_recipe("factor", {"context_length": CONTEXT, "horizon": HORIZON, **options}))
    shaken(pair.weights(), 0.02)
    found = amortization_gap(pair.model, pair.guide, windows.test.at_most(4), steps=100, num_draws=500)
    assert list(found.units["site"].unique()) == [layer.site for layer in pair.model.layers]
    assert found.windows["gap"].mean() > 4 * error(found.windows["gap_se"])


def test_a_posterior_that_depends_on_draws_below_starts_from_its_moments_over_them():
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 2, dim=-1):
                low = pyro.sample("low", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
                high = pyro.sample("high", dist.Normal(2 * low, 1.0).to_event(1))
            loc = high.sum((-1, -2))[..., None, None].expand(*high.shape[:-2], 1, 4)
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=future[:, None])

    def guide(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 2, dim=-1):
            low = pyro.sample("low", dist.Normal(torch.ones(1).double(), 0.5).to_event(1))
            pyro.sample("high", dist.Normal(3 * low, 0.1).to_event(1))

    start = FreeNormals(posterior_draws(model, guide, *DATA[:5], 4000))
    for site, expected in {"low": (1.0, 0.5), "high": (3.0, (1.5**2 + 0.1**2) ** 0.5)}.items():
        for found, value in zip(start.moments[site], expected, strict=True):
            assert found.shape == (5, 2, 1)
            np.testing.assert_allclose(found, value, atol=0.12)


def test_what_cannot_be_refined_is_refused():
    def bounded(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 3, dim=-1):
                pyro.sample("z", dist.Beta(torch.ones(1, 1).double(), 1.0).to_event(2))
            pyro.sample("y", dist.Normal(torch.zeros(len(context), 1, 4), 1.0).to_event(1), obs=future[:, None])

    guide = guide_of(3, lambda context, _: dist.Beta(torch.ones(len(context), 3, 1, 1).double(), 1.0).to_event(2))
    with pytest.raises(ValueError, match="'z' is neither real-valued nor positive"):
        amortization_gap(bounded, guide, DATA)
    with pytest.raises(ValueError, match="at least, not 1, 0 and 8"):
        amortization_gap(MODEL, exact(TRUTH), DATA, steps=0, num_draws=1)
    point = guide_of(3, lambda c, y: dist.Delta(TRUTH.mean(c, y)[..., None, None]).to_event(2))
    with pytest.raises(ValueError, match="gives a point for site 'z'"):
        amortization_gap(MODEL, point, DATA)
