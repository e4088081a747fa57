"""What looks at a trained pair looks at one with a volatility unit too."""

import math

import numpy as np
import pytest
import torch
from conftest import make_panel, shaken
from test_volatility_guides import VOLATILITY, config_of

from eve_pyro.builder import build
from eve_pyro.diagnostics.calibration import pit_values
from eve_pyro.diagnostics.importance import importance_table
from eve_pyro.diagnostics.refinement import amortization_gap
from eve_pyro.diagnostics.restarts import restart_agreement
from eve_pyro.diagnostics.risk import window_signals
from eve_pyro.diagnostics.simulation import sbc
from eve_pyro.infer.predictive import cdf, predict
from eve_pyro.infer.scores import evaluate, window_scores
from eve_pyro.infer.units import unit_table
from eve_pyro.posterior import datatree_size, to_datatree
from eve_pyro.runs import windows_of

SITES = [(VOLATILITY, 0), *[("eve.z", unit) for unit in range(4)]]


def setting(guide="conjugate", stride=8, seed=0, **options):
    """A pair and some test windows; the surprises of windows that nobody trained for are large."""
    config = config_of(guide, **options)
    torch.manual_seed(seed)
    pair = build(config)
    shaken(pair.weights(), 0.1).eval()
    return pair, windows_of(make_panel(), config).test.every(stride)


def test_the_exact_posterior_has_equal_importance_weights():
    pair, windows = setting()
    table = importance_table(pair.model, pair.guide, windows, num_draws=50)
    exact = -window_scores(pair.model, pair.guide, windows)["joint_log_score"] * windows[:].future.shape[1]
    np.testing.assert_allclose(table["bound"], exact, rtol=1e-4)
    np.testing.assert_allclose(table["gap"], 0, atol=1e-3)
    np.testing.assert_allclose(table["ess"], 50, rtol=1e-3)


def test_a_posterior_that_is_off_is_refined_and_volatility_with_it():
    pair, windows = setting("future_aware", stride=20)
    context, future = windows[:]
    exact = predict(pair.model, pair.guide, context, 2).joint.log_prob(future[:, None])[:, 0].detach().numpy()
    found = amortization_gap(pair.model, pair.guide, windows, steps=150, num_draws=400)
    assert (found.windows["gap"] > -0.1).all()
    assert found.windows["gap"].mean() > 0.1
    assert (found.windows["refined"] < exact + 0.05).all()  # a bound
    np.testing.assert_allclose(found.windows["bound"], exact, atol=0.3)
    rows = found.units.set_index(["site", "unit"])
    assert list(rows.index) == SITES
    assert rows.notna().all(axis=None)
    assert rows["sampled"].loc[VOLATILITY].all()
    assert not rows["sampled"].loc["eve.z"].any()
    assert (rows["refined_kl"] > -0.1).all()


def test_refining_the_exact_posterior_of_volatility_gains_what_a_log_normal_cannot_give():
    """Without loadings the units have nothing to add: the log-normal nearest to a Gamma is known."""
    pair, windows = setting(stride=20)
    with torch.no_grad():
        pair.model.readout.loadings.zero_()
    context, future = windows[:]
    exact = predict(pair.model, pair.guide, context, 2).joint.log_prob(future[:, None])[:, 0].detach()
    q = pair.guide.posterior(context, future).base_dist
    c = q.concentration.flatten().double()
    # KL(LogNormal(m, s) || Gamma(c, r)) is least at s^2 = 1 / c and m = log(c / r) - s^2 / 2.
    scale = c.rsqrt()
    loc = (c / q.rate.flatten()).log() - 0.5 * scale.square()
    entropy = loc + scale.log() + 0.5 * (1 + math.log(2 * math.pi))
    cross = c * q.rate.flatten().log() - torch.lgamma(c) + (c - 1) * loc - c
    found = amortization_gap(pair.model, pair.guide, windows, steps=200, num_draws=4000)
    expected = (exact + cross + entropy).detach()
    np.testing.assert_allclose(found.windows["refined"], expected, atol=0.03)
    np.testing.assert_allclose(found.windows["elbo"], exact, atol=1e-3)


@pytest.mark.parametrize("kind", ["exact", "wrong"])
def test_simulation_tells_the_exact_posterior_from_a_wrong_one(kind):
    pair, windows = setting("conjugate" if kind == "exact" else "future_aware", stride=4)
    found = sbc(pair.model, pair.guide, windows, num_draws=49, repeats=12, num_projections=1)
    assert set(zip(found.table["site"], found.table["unit"], strict=True)) >= set(SITES)
    assert found.passed == (kind == "exact")


def test_restarts_of_one_model_agree_about_volatility():
    first, windows = setting(stride=6)
    table = restart_agreement(
        {"a": (first.model, first.guide), "b": (first.model, first.guide)}, windows, num_draws=100
    )
    assert list(zip(table.units["site"], table.units["unit"], strict=True)) == SITES
    assert table.units.query("site == @VOLATILITY")["correlation"][0] > 0.8
    assert (table.units["r_hat"] < 1.05).all()
    assert (table.matches.query("site == @VOLATILITY")["sign"] == 1).all()


@pytest.mark.parametrize("guide", ["conjugate", "future_aware", "context"])
def test_draws_become_a_tree(guide):
    pair, windows = setting(guide, stride=20)
    tree = to_datatree(pair.model, pair.guide, windows, num_draws=6)
    volatility = tree["posterior"][VOLATILITY]
    assert volatility.sizes["chain"] * volatility.sizes["draw"] == 6
    assert (volatility > 0).all()
    assert np.isfinite(tree["posterior"]["eve.z"]).all()
    size = sum(part.nbytes for node in tree.subtree for part in node.data_vars.values())
    assert datatree_size(pair.model, pair.guide, windows, num_draws=6) == size


@pytest.mark.parametrize("guide", ["conjugate", "context"])
def test_signals_of_windows(guide):
    pair, windows = setting(guide)
    table = window_signals(pair.model, pair.guide, windows, num_draws=20)
    assert table.notna().all(axis=None)
    if guide == "conjugate":
        prediction = predict(pair.model, pair.guide, windows[:].context, 200_000)
        spread = prediction.paths.mean(-1).std(0)
        np.testing.assert_allclose(table["path_spread"], spread, rtol=0.05)
        covariance = prediction.joint.covariance_matrix[:, 0]
        np.testing.assert_allclose(
            table["path_spread"], covariance.sum((-1, -2)).sqrt() / covariance.shape[-1], rtol=1e-5
        )


def test_scores_ranks_and_units():
    pair, windows = setting()
    scores = evaluate(pair.model, pair.guide, windows, num_draws=20)
    assert "joint_log_score_se" not in scores
    assert all(math.isfinite(score) for score in scores.values())
    context, future = windows[:]
    expected = cdf(predict(pair.model, pair.guide, context, 2).components, future)[0]
    found = pit_values(pair.model, pair.guide, windows, num_draws=2)
    np.testing.assert_allclose(found["pit"], expected.flatten(), atol=1e-5)
    table = unit_table(pair.model, pair.guide, windows)
    assert set(zip(table["site"], table["unit"], strict=True)) == set(SITES)
    assert table.notna().all(axis=None)
