"""Interventions against dense normals by hand, and against what the programs say when their sites are set."""

import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, UNITS, make_model, shaken
from torch.distributions import MultivariateNormal

from eve_pyro import metrics
from eve_pyro.data import latest_windows
from eve_pyro.diagnostics.factor_costs import unit_costs
from eve_pyro.diagnostics.intervened import edited
from eve_pyro.diagnostics.interventions import COSTS, as_group, knock_out, knock_out_groups, rank_agreement, traverse
from eve_pyro.distributions.low_rank import LowRankUnits
from eve_pyro.guides import Autoregressive
from eve_pyro.infer.predictive import forecast_trace
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.models import Trajectory
from eve_pyro.nets import LinearEncoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import AR1Prior, StandardPrior

CASES = [
    ("future_aware", {}, 0.0),
    ("future_aware", {"prior": "contextual", "latent_dim": 2}, 1.5),
    ("context", {"prior": "contextual", "latent_dim": 2}, 0.0),
    ("context", {"prior": "learned"}, "prior"),
]
SITE = "eve.z"


def pair(guide="context", size=0.1, **options):
    model = shaken(make_model(**options), size)
    return model, shaken(GUIDES[guide](model), size)


def by_unit(table):
    return table.sort_values(["site", "unit"], ignore_index=True)


def moments_by_hand(units):
    """Mean and variance of the activity of independent normals, (B, N), sqrt pooling."""
    return units.mean[:, :, 0].mean(-1) * units.mean.shape[-1] ** 0.5, units.variance[:, :, 0].mean(-1)


def dense(model, guide, context, unit, to):
    """The forecast with one unit set, put together as a dense normal in double precision."""
    model_trace, guide_trace = forecast_trace(model, guide, context)
    fn, prior = model_trace.nodes["y"]["fn"], model_trace.nodes[SITE]["fn"]
    q = guide_trace.nodes[SITE]["fn"] if SITE in guide_trace else prior
    (mean, variance), (prior_mean, prior_variance) = moments_by_hand(q), moments_by_hand(prior)
    if unit is not None:
        per_latent = prior.stddev[:, unit, 0].sum(-1) / prior.stddev.shape[-1] ** 0.5
        mean[:, unit] = prior_mean[:, unit] + (0 if to == "prior" else to * per_latent)
        variance[:, unit] = prior_variance[:, unit] if to == "prior" else 0.0
    weights = ((fn.scale * fn.noise).mT * fn.loadings * fn.gain).double()  # (B, H, N)
    loc = fn.loc[:, 0].double() + (weights @ mean.double()[..., None])[..., 0]
    noise = (fn.scale * fn.noise)[:, 0].double().square()
    return MultivariateNormal(loc, (weights * variance.double()[:, None]) @ weights.mT + torch.diag_embed(noise))


@pytest.mark.parametrize(("guide", "options", "to"), CASES)
def test_costs_are_those_of_dense_normals(windows, guide, options, to):
    model, guide = pair(guide, **options)
    context, future = windows.test[::9]
    table = by_unit(knock_out(model, guide, windows.test.every(9), to=to, batch_size=4))
    with torch.no_grad():
        before, *after = (dense(model, guide, context, unit, to) for unit in (None, *range(UNITS)))
    future = future.double()
    for unit, changed in enumerate(after):
        crps, log_score = (
            [metrics.crps_normal(p.mean, p.stddev, future).mean() for p in (before, changed)],
            [-p.log_prob(future).mean() / HORIZON for p in (before, changed)],
        )
        assert table["crps_cost"][unit] == pytest.approx(float(crps[1] - crps[0]), abs=2e-6)
        assert table["joint_log_score_cost"][unit] == pytest.approx(float(log_score[1] - log_score[0]), abs=2e-5)
    assert table["joint_log_score_cost"].abs().max() > 1e-3


@pytest.mark.parametrize("to", [0.0, 1.5, "prior"])
@pytest.mark.parametrize("guide", ["future_aware", "context", "trajectory"])
def test_a_group_of_one_costs_what_its_unit_costs(windows, guide, to):
    """One is the closed form for all units at once, the other a forecast under the intervention."""
    if guide == "trajectory":
        encoder = LinearEncoder(CONTEXT, hidden=8, features=12, dropout=0.0)
        layer = EveLayer(AR1Prior(StandardPrior(UNITS, 2), UNITS, 0.6), UNITS, 2)
        readout = FactorReadout(layer, encoder.out_features, HORIZON)
        model = shaken(Trajectory(encoder, layer, readout, HORIZON, num_patches=3), 0.1)
        guide = shaken(Autoregressive(model), 0.1)
    else:
        model, guide = pair(guide)
    test = windows.test.every(9)
    units = by_unit(knock_out(model, guide, test, {SITE: [3, 1]}, to, num_draws=400))
    groups = knock_out_groups(model, guide, test, {str(unit): {SITE: [unit]} for unit in (1, 3)}, to, num_draws=400)
    assert units["unit"].tolist() == [1, 3]
    for cost in ("crps_cost", "joint_log_score_cost", "kl", "energy"):
        assert units[cost].to_numpy() == pytest.approx(groups[cost].to_numpy(), abs=2e-5, rel=1e-4), cost
    assert units["energy_score_cost"].to_numpy() == pytest.approx(groups["energy_score_cost"].to_numpy(), abs=0.01)


def test_the_energy_cost_is_that_of_paths_with_the_unit_set(windows):
    """The same draws by hand, every path moved."""
    model, guide = pair("context")
    context, future = windows.test[::9]
    with torch.no_grad():
        model_trace, guide_trace = forecast_trace(model, guide, context)
    fn, prior, q = model_trace.nodes["y"]["fn"], model_trace.nodes[SITE]["fn"], guide_trace.nodes[SITE]["fn"]
    torch.manual_seed(3)
    costs = unit_costs(fn, q, edited(q, prior, range(UNITS), 2.0), [4, 0], future, 40)[:, 1]
    torch.manual_seed(3)
    units = q.mean[:, :, 0, 0] + q.stddev[:, :, 0, 0] * torch.randn(40, *q.mean.shape)[..., 0, 0]
    noise = (fn.scale * fn.noise)[:, 0] * torch.randn(40, *future.shape)
    weights = (fn.scale * fn.noise).mT * fn.loadings * fn.gain

    def score(units):
        return metrics.energy_score(fn.loc[:, 0] + (weights @ units[..., None])[..., 0] + noise, future)

    for cost, unit in zip(costs, (4, 0), strict=True):
        moved = units.clone()
        moved[:, :, unit] = 2.0
        torch.testing.assert_close(cost.float(), score(moved) - score(units), atol=2e-5, rtol=1e-4)


def test_a_unit_without_loadings_costs_exactly_nothing(windows):
    model, guide = pair()
    with torch.no_grad():
        model.readout.loadings[:, 2] = 0.0
    for to in (0.0, 2.0, "prior"):
        row = knock_out(model, guide, windows.test.every(9), to=to).query("unit == 2")
        assert (row[COSTS] == 0.0).all(axis=None)
    group = knock_out_groups(model, guide, windows.test.every(9), {"idle": {SITE: [2]}})
    assert (group[COSTS] == 0.0).all(axis=None)


def linear(loadings, noise, heavy):
    """y = W z + noise as plain functions, their units without event dims; the guide proposes wide of the posterior."""

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", loadings.shape[1], dim=-1):
                z = pyro.sample("z", dist.Normal(0.5, 2.0))
            y = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal((z @ loadings.mT).unsqueeze(-2), noise).to_event(1), obs=y)

    def guide(context, future=None):
        if future is not None:
            precision = loadings.mT @ loadings / noise**2 + torch.eye(loadings.shape[1]) / 4
            loc = torch.linalg.solve(precision, (future @ loadings / noise**2 + 0.5 / 4).mT).mT
            with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", loadings.shape[1], dim=-1):
                scale = 1.2 * torch.linalg.inv(precision).diagonal().sqrt()
                pyro.sample("z", dist.StudentT(10.0, loc, scale) if heavy else dist.Normal(loc, scale))

    return model, guide


@pytest.mark.parametrize("heavy", [False, True])
def test_plain_functions_without_a_closed_form_cost_what_the_closed_form_says(windows, heavy):
    loadings, noise = 0.3 * torch.randn(HORIZON, 3), 0.8
    test, future = windows.test.every(4), windows.test[::4].future

    def exact(mean, variance):
        y = MultivariateNormal(
            loadings @ mean, loadings @ variance.diag() @ loadings.mT + noise**2 * torch.eye(HORIZON)
        )
        crps = metrics.crps_normal(y.mean, y.stddev, future).mean()
        return float(crps), float(-y.log_prob(future).mean() / HORIZON)

    table = by_unit(knock_out(*linear(loadings, noise, heavy), test, to=0.5, num_draws=400))
    before = exact(torch.full((3,), 0.5), torch.full((3,), 4.0))
    for unit in range(3):
        mean, variance = torch.full((3,), 0.5), torch.full((3,), 4.0)
        mean[unit], variance[unit] = 1.5, 0.0
        after = exact(mean, variance)
        assert table["crps_cost"][unit] == pytest.approx(after[0] - before[0], abs=0.02)
        assert table["joint_log_score_cost"][unit] == pytest.approx(after[1] - before[1], abs=0.05)
    assert list(table) == ["site", "unit", *COSTS, "kl", "energy"]


def test_a_traversal_is_linear_where_the_readout_is(windows):
    model, guide = pair("future_aware", prior="contextual")
    run = traverse(model, guide, windows.test.every(9), SITE, 1, batch_size=4)
    assert run.values.tolist() == pytest.approx([-3 + 0.5 * i for i in range(13)])
    with torch.no_grad():
        trace = forecast_trace(model, guide, windows.test[::9].context)[0]
    fn, prior = trace.nodes["y"]["fn"], trace.nodes[SITE]["fn"]
    slope = (fn.scale * fn.noise)[:, 0] * fn.loadings[:, 1] * fn.gain[:, :, 1] * prior.stddev[:, 1, 0]
    expected = run.mean[6] + run.values[:, None, None] * slope
    torch.testing.assert_close(run.mean, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run.scale, run.scale[:1].expand_as(run.scale))


def test_ranks_agree_and_rows_make_groups():
    table = pd.DataFrame({"site": ["a", "a", "b"], "unit": [0, 2, 1], "kl": [1.0, 2.0, 3.0], "energy": [3.0, 2.0, 1.0]})
    table = table.assign(crps_cost=[0.1, 0.2, 0.9], energy_score_cost=0.0, joint_log_score_cost=[1.0, 3.0, 2.0])
    assert as_group(table) == {"a": [0, 2], "b": [1]}
    found = rank_agreement(table)
    assert found.loc["crps_cost"].tolist() == pytest.approx([1.0, -1.0])
    assert found.loc["joint_log_score_cost"].tolist() == pytest.approx([0.5, -0.5])
    assert math.isnan(found.loc["energy_score_cost", "kl"])


@pytest.mark.parametrize("when", ["after", "always"])
def test_dependent_units_are_scored_or_not_a_number(windows, when):
    """A posterior across units serves as a proposal; forecasts drawn from one have no density unit by unit."""
    model, amortised = pair("future_aware", readout="normal")
    scale, factor = torch.full((UNITS, 1, 1), 0.5), 0.5 * torch.randn(UNITS, 1, 1, 2)

    def guide(context, future=None):
        if future is not None or when == "always":
            with pyro.plate("windows", len(context), dim=-2), pyro.plate("eve.units", UNITS, dim=-1):
                pyro.sample(SITE, LowRankUnits(scale.new_zeros(len(context), UNITS, 1, 1), scale, factor))

    test = windows.test.every(20)
    table = knock_out(model, guide, test, {SITE: [0]}, num_draws=300)
    assert table[["crps_cost", "energy_score_cost"]].notna().all(axis=None)
    if when == "always":
        assert table["joint_log_score_cost"].isna().all()
    else:
        other = knock_out(model, amortised, test, {SITE: [0]}, num_draws=300)
        assert table["joint_log_score_cost"][0] == pytest.approx(other["joint_log_score_cost"][0], abs=0.05)


def test_bad_interventions_are_refused(windows):
    model, guide = pair()
    test = windows.test.every(30)
    with pytest.raises(ValueError, match=r"no units at a site 'z'; its sites are eve\.z"):
        knock_out(model, guide, test, {"z": [0]})
    with pytest.raises(ValueError, match="has units 0 to 4, and no unit 5"):
        knock_out_groups(model, guide, test, {"late": {SITE: [0, 5]}})
    with pytest.raises(ValueError, match="no unit 7"):
        traverse(model, guide, test, SITE, 7)
    with pytest.raises(ValueError, match="no windows"):
        knock_out(model, guide, test.select([]))
    latest = latest_windows(test.panel, CONTEXT, HORIZON, test.scaler)
    with pytest.raises(ValueError, match="no future yet"):
        knock_out(model, guide, latest)
    with pytest.raises(ValueError, match="no future yet"):
        knock_out_groups(model, guide, latest, {"one": {SITE: [0]}})
    assert traverse(model, guide, latest, SITE, 0).mean.shape == (13, len(latest), HORIZON)
    for nobody in ({}, {SITE: []}):
        with pytest.raises(ValueError, match="no unit is named"):
            knock_out(model, guide, test, nobody)
    with pytest.raises(ValueError, match="no group is named"):
        knock_out_groups(model, guide, test, {})
    with pytest.raises(ValueError, match="no value is named"):
        traverse(model, guide, test, SITE, 0, [])
