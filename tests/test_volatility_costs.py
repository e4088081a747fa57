"""What units cost beside a volatility unit, and what that unit costs itself, against dense multivariate t densities."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_panel, shaken
from scipy import stats
from test_volatility_guides import VOLATILITY, config_of

from eve_pyro import metrics
from eve_pyro.builder import build
from eve_pyro.diagnostics.factor_costs import Tails, unit_costs
from eve_pyro.diagnostics.intervened import Intervened, edited
from eve_pyro.diagnostics.interventions import COSTS, knock_out, knock_out_groups, traverse
from eve_pyro.infer.predictive import forecast_trace, predict
from eve_pyro.infer.scores import importance_log_weights
from eve_pyro.runs import windows_of

SITE, UNITS = "eve.z", 4
KINDS = {"forecaster": {}, "two latents": {"latent_dim": 2}, "trajectory": {"model": "trajectory"}}


def setting(kind="forecaster", guide="future_aware", **options):
    """A pair, some test windows, and the parts of their forecast in double precision."""
    model = "trajectory" if kind == "trajectory" else "forecaster"
    config = config_of(guide, model, **{k: v for k, v in KINDS[kind].items() if k != "model"}, **options)
    pair = build(config)
    shaken(pair.weights(), 0.1).eval()
    return pair, windows_of(make_panel(), config).test.every(12)


def parts(pair, windows):
    with torch.no_grad():
        trace, _ = forecast_trace(pair.model, pair.guide, windows[:].context)
    return trace.nodes["y"]["fn"], trace.nodes[SITE]["fn"], trace.nodes[VOLATILITY]["fn"].base_dist


def dense(fn, units, without=None):
    """Location and covariance at v = 1, every product written out in double precision, with a unit held at 0."""
    factor = fn.factor
    patch = torch.arange(HORIZON) * factor.gain.shape[-2] // HORIZON
    weights = factor.loadings.double() * factor.gain.double()[:, patch]  # (B, H, N)
    if hasattr(units, "covariance"):
        covariance = units.covariance.double().sum(-3)
    else:
        covariance = torch.diag_embed(units.variance.double().sum(-1))
    covariance = factor.pool_weight**2 * covariance.expand(len(weights), UNITS, *covariance.shape[-2:])
    kept = torch.tensor([float(n != without) for n in range(UNITS)]).double()
    read = torch.einsum("bhn,bnhi,bin,n->bhi", weights, covariance[:, :, patch][..., patch], weights, kept)
    noise = (factor.scale[:, 0] * (1 + weights.square().sum(-1)).rsqrt()).double()
    return factor.loc[:, 0].double(), noise[:, :, None] * (read + torch.eye(HORIZON)) * noise[:, None, :]


def t_scores(loc, covariance, volatility, future):
    """CRPS and joint log score a value, (2,), of the t in which a Gamma volatility leaves a normal."""
    found, concentration = [], volatility.concentration.double().flatten()
    for b, c in enumerate(concentration):
        shape, df = float(volatility.rate.flatten()[b] / c) * covariance[b], 2 * float(c)
        joint = stats.multivariate_t.logpdf(future[b].numpy(), loc[b].numpy(), shape.numpy(), df)
        crps = metrics.crps_student_t(torch.tensor(df), loc[b], shape.diagonal().sqrt(), future[b]).mean()
        found.append((float(crps), -joint / HORIZON))
    return np.mean(found, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_dense_multivariate_t(kind):
    pair, windows = setting(kind)
    fn, units, volatility = parts(pair, windows)
    future = windows[:].future.double()
    table = knock_out(pair.model, pair.guide, windows, batch_size=5).set_index(["site", "unit"])
    before = t_scores(*dense(fn, units), volatility, future)
    for unit in range(UNITS):
        costs = t_scores(*dense(fn, units, unit), volatility, future) - before
        row = table.loc[(SITE, unit)]
        assert row["crps_cost"] == pytest.approx(costs[0], abs=3e-6)
        assert row["joint_log_score_cost"] == pytest.approx(costs[1], abs=3e-5)
    assert table["joint_log_score_cost"].abs().max() > 1e-3
    assert table.notna().all(axis=None)


@pytest.mark.parametrize("to", [0.0, 0.7])
def test_without_the_volatility_unit_the_forecast_is_normal(to):
    pair, windows = setting()
    fn, units, volatility = parts(pair, windows)
    future = windows[:].future.double()
    loc, covariance = dense(fn, units)
    v = 1 + to * volatility.variance.double().flatten().sqrt()
    normal = torch.distributions.MultivariateNormal(loc, covariance / v[:, None, None])
    after = [metrics.crps_normal(normal.mean, normal.stddev, future).mean(), -normal.log_prob(future).mean() / HORIZON]
    costs = np.array([float(each) for each in after]) - t_scores(loc, covariance, volatility, future)
    table = knock_out(pair.model, pair.guide, windows, {VOLATILITY: [0]}, to=to, num_draws=1000)
    assert table["crps_cost"][0] == pytest.approx(costs[0], abs=3e-6)
    assert table["joint_log_score_cost"][0] == pytest.approx(costs[1], abs=3e-5)
    x = (torch.linalg.cholesky(covariance) @ torch.randn(1000, *loc.shape, 1).double())[..., 0]
    wild = dist.Gamma(volatility.concentration, volatility.rate).sample((1000,)).double()[..., 0, 0].rsqrt()
    energy = [metrics.energy_score(loc + w * x, future).mean() for w in (wild, v[:, None].rsqrt())]
    assert table["energy_score_cost"][0] == pytest.approx(float(energy[1] - energy[0]), abs=0.01)
    group = knock_out_groups(pair.model, pair.guide, windows, {"wild": {VOLATILITY: [0]}}, to=to, num_draws=1000)
    assert group[COSTS].iloc[0].tolist() == pytest.approx(table[COSTS].iloc[0].tolist(), abs=1e-6)


def test_energy_costs_are_those_of_paths_made_one_by_one():
    pair, windows = setting()
    fn, units, volatility = parts(pair, windows)
    future, factor = windows[:].future.double(), fn.factor
    tails = Tails(*(each[..., 0].double() for each in fn.given(dist.Independent(volatility, 2))[1]))
    torch.manual_seed(3)
    costs = unit_costs(factor, units, edited(units, units, range(UNITS), 0.0), [3, 0], future, 40, tails)[:, 1]
    torch.manual_seed(3)
    activity = torch.randn(40, len(future), UNITS, 1, 1).double()[..., 0, 0]
    noise = torch.randn(40, *future.shape).double()
    half = 0.5 * tails.df
    wild = tails.stretch * dist.Gamma(half, half).sample((40,)).rsqrt()
    weights = (factor.loadings * factor.gain).double()
    k = (factor.scale * factor.noise)[:, 0].double()

    def score(activity):
        shift = torch.einsum("bhn,sbn->sbh", weights, activity)
        return metrics.energy_score(factor.loc[:, 0] + wild * k * (shift + noise), future)

    for cost, unit in zip(costs, (3, 0), strict=True):
        moved = activity.clone()
        moved[..., unit] = 0.0
        torch.testing.assert_close(cost, score(moved) - score(activity), atol=1e-5, rtol=1e-4)


def test_a_unit_without_loadings_costs_exactly_nothing_and_swapping_for_the_prior_neither():
    pair, windows = setting()
    with torch.no_grad():
        pair.model.readout.loadings[:, 2] = 0.0
    row = knock_out(pair.model, pair.guide, windows).query("site == @SITE and unit == 2")
    assert (row[COSTS] == 0.0).all(axis=None)
    swapped = knock_out(pair.model, pair.guide, windows, to="prior")  # forecasts come from the prior anyway
    assert (swapped[COSTS] == 0.0).all(axis=None)


def test_units_set_to_another_value_cost_what_quadrature_over_volatility_says():
    """A constant that a volatility scales leaves no t: the costs come from draws."""
    pair, windows = setting(guide="conjugate")
    fn, units, volatility = parts(pair, windows)
    future, unit = windows[:].future.double(), 1
    loc, covariance = dense(fn, units)
    after_covariance = dense(fn, units, unit)[1]
    shift = (fn.factor.scale * fn.factor.noise).mT * fn.factor.loadings * fn.factor.gain  # (B, H, N)
    v = torch.linspace(0.002, 30, 6000).double().view(-1, 1)
    moved = loc + 1.5 * shift[..., unit].double() / v.sqrt().unsqueeze(-1)
    normal = torch.distributions.MultivariateNormal(moved, scale_tril=torch.linalg.cholesky(after_covariance))
    away = moved + v.sqrt().unsqueeze(-1) * (future - moved)
    log_prob = normal.log_prob(away) + 0.5 * HORIZON * v.log()
    prior = dist.Gamma(volatility.concentration.double().flatten(), volatility.rate.double().flatten()).log_prob(v)
    joint = torch.trapezoid((log_prob + prior).exp(), v.flatten(), dim=0).log()
    cost = float(-joint.mean() / HORIZON) - t_scores(loc, covariance, volatility, future)[1]
    table = knock_out(pair.model, pair.guide, windows, {SITE: [unit]}, to=1.5, num_draws=1000)
    assert table["joint_log_score_cost"][0] == pytest.approx(cost, abs=0.02)


@pytest.mark.parametrize("guide", ["context", "delta"])
def test_guides_that_forecast_from_a_posterior_are_intervened_on(guide):
    pair, windows = setting(guide=guide)
    table = knock_out(pair.model, pair.guide, windows, num_draws=20).set_index(["site", "unit"])
    assert table[COSTS].notna().all(axis=None)
    changed = predict(pair.model, Intervened(pair.model, pair.guide, {VOLATILITY: [0]}), windows[:].context, 20)
    assert isinstance(changed.components, torch.distributions.Normal)
    assert changed.exact == (guide == "context")  # points of a factor readout have no closed form to begin with
    swapped = Intervened(pair.model, pair.guide, {VOLATILITY: [0], SITE: range(UNITS)}, "prior")
    drawn = predict(pair.model, swapped, windows[:].context, 5)
    assert drawn.exact == isinstance(drawn.components, torch.distributions.StudentT) == (guide == "context")


def test_a_volatility_unit_below_a_nonlinear_readout_costs_something():
    config = config_of("future_aware", "nonlinear")
    pair = build(config)
    shaken(pair.weights(), 0.1).eval()
    windows = windows_of(make_panel(), config).test.every(20)
    table = knock_out(pair.model, pair.guide, windows, {VOLATILITY: [0], SITE: [1]}, num_draws=30)
    assert table[COSTS].notna().all(axis=None)
    fixed = Intervened(pair.model, pair.guide, {VOLATILITY: [0]})
    context, future = windows[:]
    assert torch.isfinite(importance_log_weights(pair.model, fixed, context, future, 5)).all()
    drawn = []
    for guide in (fixed, Intervened(pair.model, pair.guide, {VOLATILITY: []})):
        torch.manual_seed(0)
        drawn.append(forecast_trace(pair.model, guide, context, 5)[0].nodes)
    torch.testing.assert_close(drawn[0][VOLATILITY]["value"], torch.ones(5, len(context), 1, 1, 1))
    assert drawn[1][VOLATILITY]["value"].unique().numel() == 5 * len(context)
    assert torch.equal(drawn[0][SITE]["value"], drawn[1][SITE]["value"])  # the same random numbers


def test_a_volatility_stays_positive():
    pair, windows = setting()
    with pytest.raises(ValueError, match=r"set to -3 deviations of its Gamma prior .*: its values lie above 0"):
        knock_out(pair.model, pair.guide, windows, {VOLATILITY: [0]}, to=-3.0)
    with pytest.raises(ValueError, match="its values lie above 0"):
        traverse(pair.model, pair.guide, windows, VOLATILITY, 0, values=[-3.0, 0.0])
    whole = traverse(pair.model, pair.guide, windows, VOLATILITY, 0)
    assert 0 < len(whole.values) < 13
    assert (whole.scale.diff(dim=0) < 0).all()
    run = traverse(pair.model, pair.guide, windows, VOLATILITY, 0, values=[-0.5, 0.0, 1.0])
    fn, units, volatility = parts(pair, windows)
    deviation = dense(fn, units)[1].diagonal(dim1=-2, dim2=-1).sqrt()
    for value, scale in zip((-0.5, 0.0, 1.0), run.scale, strict=True):
        v = 1 + value * volatility.variance.double().flatten().sqrt()
        torch.testing.assert_close(scale.double(), deviation / v.sqrt()[:, None], atol=1e-5, rtol=1e-4)
    axis = traverse(pair.model, pair.guide, windows, SITE, 0, values=[0.0, 1.0], num_draws=20)
    assert torch.isfinite(axis.scale).all()
    assert predict(pair.model, pair.guide, torch.randn(3, 1, CONTEXT), 4).exact
