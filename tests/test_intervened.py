"""The guide of an intervention: what it sets, what follows, and what stays as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, UNITS, make_model, shaken
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Normal

from eve_pyro.diagnostics.intervened import Intervened, edited
from eve_pyro.distributions import AR1
from eve_pyro.distributions.paths import path_moments
from eve_pyro.guides import LowRank
from eve_pyro.infer.predictive import forecast_trace, moments, predict
from eve_pyro.infer.scores import importance_log_weights

SITE = "eve.z"


def pair(guide="context", size=0.1, **options):
    model = shaken(make_model(**options), size).eval()
    return model, shaken({**GUIDES, "low_rank": LowRank}[guide](model), size).eval()


@pytest.mark.parametrize("guide", [*GUIDES, "low_rank"])
@pytest.mark.parametrize("readout", ["factor", "normal", "student_t"])
def test_nothing_set_changes_nothing_not_even_the_random_numbers(guide, readout):
    model, guide = pair(guide, readout=readout, prior="contextual")
    found = []
    for q in (guide, Intervened(model, guide, {}), Intervened(model, guide, {SITE: []})):
        torch.manual_seed(0)
        found.append(predict(model, q, torch.ones(3, 1, CONTEXT).cumsum(-1), 20))
    assert found[0].exact == found[1].exact == found[2].exact
    for other in found[1:]:
        torch.testing.assert_close(other.paths, found[0].paths)


def test_with_all_units_set_the_values_are_independent(windows):
    model, guide = pair("future_aware", prior="contextual")
    context = windows.test[::9].context
    changed = predict(model, Intervened(model, guide, {SITE: range(UNITS)}), context).joint
    with torch.no_grad():
        trace = forecast_trace(model, guide, context)[0]
        known = {SITE: trace.nodes[SITE]["fn"].mean}
        alone = poutine.trace(poutine.condition(model, data=known)).get_trace(context).nodes["y"]["fn"].conditional()
    torch.testing.assert_close(changed.mean, alone.mean)
    torch.testing.assert_close(changed.covariance_matrix, torch.diag_embed(alone.variance), atol=1e-6, rtol=1e-4)


def tower(context, future=None, sites=("a", "b"), slope=2.0, spread=0.1):
    """b ~ N(slope a, spread^2) above a ~ N(0, 1); y = b + noise."""
    with pyro.plate("windows", len(context), dim=-2):
        with pyro.plate("units", 2, dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(slope * a, spread)) if "b" in sites else None
        if "y" in sites:
            pyro.sample("y", dist.Normal(b.sum(-1)[..., None, None].expand(*b.shape[:-1], 1, HORIZON), 0.5).to_event(1))


def prior_forecast(context, future=None):
    return None


def own_forecast(context, future=None):
    tower(context, future, slope=-1.0, spread=0.3)


EVERY = [0, 1]
SETTINGS = [  # the guide, what is set where, and the mean and variance of y by hand
    (prior_forecast, [({"a": EVERY}, 1.0)], 4.0, 0.02),
    (prior_forecast, [({"b": EVERY}, 0.0)], 0.0, 8.0),
    (prior_forecast, [({"b": [0]}, 0.0)], 0.0, 4.0 + 4.01),
    (prior_forecast, [({"a": EVERY, "b": [0]}, 1.0)], 2 + 0.1 + 2, 0.01),
    (own_forecast, [({"a": EVERY}, 1.0)], -2.0, 0.18),
    (own_forecast, [({"b": [1]}, "prior")], 0.0, 1.09 + 4.01),
    (own_forecast, [({"b": [1]}, 0.0)], 0.0, 1.09 + 4.0),
    (own_forecast, [({"a": [0]}, 1.0), ({"a": [1]}, -3.0)], -1.0 + 3.0, 0.18),
]


@pytest.mark.parametrize(("guide", "settings", "mean", "variance"), SETTINGS)
def test_what_is_above_follows_and_what_is_below_does_not_learn(guide, settings, mean, variance):
    def model(context, future=None):
        tower(context, future, sites=("a", "b", "y"))

    for units, to in settings:
        guide = Intervened(model, guide, units, to)
    drawn = predict(model, guide, torch.zeros(3, 1, 2), 20_000)
    found, spread = moments(drawn)
    torch.testing.assert_close(found, torch.full_like(found, mean), atol=0.08, rtol=0)
    torch.testing.assert_close(spread.square(), torch.full_like(found, variance + 0.25), atol=0.02, rtol=0.04)


def test_units_of_any_family_are_swapped_and_set():
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 2, dim=-1):
                z = pyro.sample("z", dist.Gamma(4.0, 2.0))  # mean 2, deviation 1
            y = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(z.unsqueeze(-2), 0.1).to_event(1), obs=y)

    def guide(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 2, dim=-1):
            pyro.sample("z", dist.Gamma(100.0, 20.0))

    context, future = torch.zeros(2, 1, 3), torch.tensor([[5.0, 2.1], [5.5, 1.0]])
    for to, mean in ((1.0, [5.0, 3.0]), ("prior", [5.0, 2.0])):
        changed = Intervened(model, guide, {"z": [1]}, to)
        assert predict(model, changed, context, 20_000).paths.mean((0, 1)).tolist() == pytest.approx(mean, abs=0.03)
    set_to_3 = Intervened(model, guide, {"z": [0, 1]}, 1.0)
    weights = importance_log_weights(model, set_to_3, context, future, 5)
    torch.testing.assert_close(weights, Normal(3.0, 0.1).log_prob(future).sum(-1).expand(5, 2))


def test_an_autoguides_draws_stay_draws():
    def model(context, future=None):
        with pyro.plate("windows", 3, dim=-2):
            with pyro.plate("units", 2, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z.unsqueeze(-2), 0.1).to_event(1))

    guide = AutoNormal(poutine.block(model, hide=["y"]), init_scale=0.5)
    context = torch.zeros(3, 1, 2)
    guide(context)
    drawn = predict(model, Intervened(model, guide, {"z": [0]}, 2.0), context, 5000)
    assert not drawn.exact
    torch.testing.assert_close(drawn.paths.std(0)[:, 0], torch.full((3,), 0.1), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.paths.std(0)[:, 1], torch.full((3,), 0.26**0.5), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.paths.mean(0)[:, 0], torch.full((3,), 2.0), atol=0.01, rtol=0)


def test_paths_and_normals_are_held_without_a_density():
    path, wide = AR1(torch.randn(2, 4, 3, 1), torch.tensor([[0.5]]), torch.ones(1, 1)), torch.full((2, 4, 3, 1), 2.0)
    normals = dist.Normal(torch.ones(2, 4, 3, 1), wide).to_event(2)
    for fn in (path, normals):
        held = edited(edited(fn, normals, [1], 1.5), normals, [2], "prior")
        draw = held.sample()
        torch.testing.assert_close(draw[:, 1], torch.full((2, 3, 1), 1.0 + 1.5 * 2.0), atol=1e-3, rtol=0)
        mean, covariance = path_moments(held)
        torch.testing.assert_close(mean[:, 2], normals.mean[:, 2])
        torch.testing.assert_close(covariance[:, 2, 0], 4 * torch.eye(3).expand(2, 3, 3))
        assert covariance[:, 1].abs().max() < 1e-10
        expected = fn.log_prob(draw)
        expected[:, 1], expected[:, 2] = 0.0, normals.log_prob(draw)[:, 2]
        torch.testing.assert_close(held.log_prob(draw), expected)


def test_points_stay_points():
    model, guide = pair("delta", readout="normal")
    changed = predict(model, Intervened(model, guide, {SITE: [0]}, 1.0), torch.randn(3, 1, CONTEXT), 5)
    assert changed.exact


def test_bad_interventions_are_refused():
    model, guide = pair()
    context = torch.randn(3, 1, CONTEXT)
    with pytest.raises(ValueError, match="no unit -1"):
        predict(model, Intervened(model, guide, {SITE: [-1]}), context)
    with pytest.raises(ValueError, match="no units at a site 'z'"):
        predict(model, Intervened(model, guide, {"z": [0]}), context)
    with pytest.raises(ValueError, match="'prior', not 'posterior'"):
        Intervened(model, guide, {}, "posterior")

    def heavy(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            pyro.sample("y", dist.Normal(z[..., None], 1.0).to_event(1))

    with pytest.raises(ValueError, match="Cauchy has no mean and deviation"):
        predict(heavy, Intervened(heavy, prior_forecast, {"z": [0]}), context)
