"""Pictures of diagnostics show the tables they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from scipy.stats import binom

from eve_pyro import plots
from eve_pyro.diagnostics.interventions import Traversal
from eve_pyro.diagnostics.risk import risk_coverage
from eve_pyro.diagnostics.simulation import Calibration


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def steps_of(ax):
    return {patch.get_label(): patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")}


def make_pit(windows=40, horizon=5, seed=0):
    values = np.random.default_rng(seed).beta(2, 2, (windows, horizon))
    return pd.DataFrame({"window": np.arange(windows).repeat(horizon), "pit": values.ravel()})


def test_a_pit_histogram_is_a_density_over_the_band_of_chance():
    pit, twin = make_pit(), make_pit(seed=1)
    ax = plots.pit_histogram(pit, twin, bins=5).axes[0]
    drawn = steps_of(ax)
    counts = np.histogram(pit["pit"], np.linspace(0, 1, 6))[0]
    np.testing.assert_allclose(drawn["forecasts"].values, counts / len(pit) * 5)
    np.testing.assert_allclose(drawn["twin"].values.mean(), 1)
    band = next(patch for patch in ax.patches if "40 windows" in patch.get_label())
    low, high = binom.ppf([0.025, 0.975], 40, 0.2) / 8
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((low, high))
    assert "twin" not in steps_of(plots.pit_histogram(pit).axes[0])


def make_table(shift=0.0):
    levels = [0.1, 0.5, 0.8, 0.9, 0.95]
    rows = [(step, level, level - 0.02 * step + shift) for step in (1, 2, 3) for level in levels]
    return pd.DataFrame(rows, columns=["step", "level", "coverage"])


def test_coverage_is_drawn_by_level_and_by_step():
    levels, steps = plots.coverage_curves(make_table(), make_table(0.05)).axes
    np.testing.assert_allclose(lines(levels)["forecasts"], [0.06, 0.46, 0.76, 0.86, 0.91])
    np.testing.assert_allclose(lines(levels)["twin"], [0.11, 0.51, 0.81, 0.91, 0.96])
    curves = [line.get_ydata() for line in steps.get_lines() if len(line.get_ydata()) == 3]
    np.testing.assert_allclose(curves, [[v - 0.02, v - 0.04, v - 0.06] for v in (0.95, 0.9, 0.8, 0.5)])
    assert [text.get_text() for text in steps.texts] == ["95 %", "90 %", "80 %", "50 %"]
    assert steps.get_ylim()[0] < 0.44


def test_khats_stand_in_their_zones_and_none_is_lost():
    khat = [-np.inf, 0.2, 0.5, 0.6, 0.7, 1.1, np.inf, 0.3]
    table = pd.DataFrame({"window": range(8), "khat": khat, "gap": np.arange(8) / 4, "gap_se": 0.1})
    khats, gaps = plots.khat_chart(table).axes
    places = {line.get_label(): line.get_xydata() for line in khats.get_lines() if line.get_marker() in "os^"}
    assert [len(each) for each in places.values()] == [3, 2, 3]
    assert list(places) == ["38 % below 0.5", "25 % to 0.7", "38 % above"]
    np.testing.assert_allclose(places["25 % to 0.7"], [[2, 0.5], [3, 0.6]])
    np.testing.assert_allclose(places["38 % above"], [[4, 0.7], [5, 1.1], [6, 1.2]])
    np.testing.assert_allclose(places["38 % below 0.5"][0], [0, -0.2])
    ticks = dict(zip((text.get_text() for text in khats.get_yticklabels()), khats.get_yticks(), strict=True))
    assert (ticks.pop("-inf"), ticks.pop("inf")) == pytest.approx((-0.2, 1.2))
    assert all(float(name) == pytest.approx(place) for name, place in ticks.items())
    dots, _, (bars,) = gaps.containers[0]
    np.testing.assert_allclose(dots.get_xydata()[:, 1], table["gap"])
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()][3], [0.55, 0.95])
    assert gaps.get_title() == "mean 0.875 nats a window"


def test_khats_of_an_exact_posterior_are_drawn_too():
    table = pd.DataFrame({"window": range(3), "khat": -np.inf, "gap": [1e-11, 4e-11, -1e-11], "gap_se": 1e-12})
    khats, gaps = plots.khat_chart(table).axes
    line = khats.get_lines()[2]
    assert np.isfinite(line.get_ydata()).all()
    assert line.get_label() == "100 % below 0.5"
    assert gaps.get_ylim() == (-0.005, 0.01)  # rounding errors are no gap
    assert gaps.get_title() == "mean 0 nats a window"


def test_rank_histograms_are_densities_by_quantity():
    table = pd.DataFrame({"quantity": ["latent", "latent", "projection", "log_likelihood"]})
    counts = pd.DataFrame([[10, 10], [5, 15], [8, 12], [20, 0]])
    ax = plots.rank_histograms(Calibration(table, counts)).axes[0]
    drawn = [patch.get_data().values for patch in ax.patches if hasattr(patch, "get_data")]
    np.testing.assert_allclose(drawn, [[1, 1], [0.5, 1.5], [0.8, 1.2], [2, 0]])
    assert {"latent", "projection", "log likelihood"} <= set(steps_of(ax))
    band = next(patch for patch in ax.patches if patch.get_label() == "chance, 95 %")
    assert band.get_y() == pytest.approx(binom.ppf(0.025, 20, 0.5) / 10)


def make_costs(count=15):
    values = np.linspace(-0.1, 0.4, count)
    columns = {"joint_log_score_cost": values, "crps_cost": values[::-1], "kl": np.arange(count)}
    return pd.DataFrame({"site": "eve.z", "unit": range(count)} | columns)


def test_costs_stand_beside_the_kl_of_the_same_unit():
    left, right = plots.intervention_bars(make_costs(), most=3).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["eve[14]", "eve[13]", "eve[12]"]
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], np.linspace(-0.1, 0.4, 15)[:-4:-1])
    assert [bar.get_width() for bar in right.patches] == [14, 13, 12]
    assert left.get_title() == "the dearest 3 of 15 units"
    assert left.get_xlabel() == "cost in joint log score (nats a value)"
    other = plots.intervention_bars(make_costs(4), score="crps_cost").axes[0]
    assert other.get_yticklabels()[0].get_text() == "eve[0]"
    assert (other.get_xlabel(), other.get_title()) == ("cost in crps (scaled data)", "")


def test_a_traverse_shows_the_forecasts_and_how_far_they_move():
    values = torch.tensor([-3.0, -1.0, 0.5, 3.0])
    mean = torch.stack([torch.full((2, 4), float(value)) + torch.arange(4) for value in values])  # (V, N, H)
    found = Traversal(values, mean, torch.full((4, 2, 4), 0.5))
    fan, moved, bar = plots.traverse_fan(found, window=1).axes
    np.testing.assert_allclose([line.get_ydata()[0] for line in fan.get_lines()], values)
    np.testing.assert_allclose([line.get_ydata() for line in moved.get_lines()], (values - 0.5)[:, None].expand(4, 4))
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in fan.collections]
    np.testing.assert_allclose(tops, [3 + v + 0.5 * 1.6449 for v in (-3, 0.5, 3)], rtol=1e-6)
    assert moved.get_ylabel() == "moved from z = 0.5 (scaled data)"
    assert bar.get_ylabel() == "z (prior deviations)"
    first, last = (to_rgba(fan.get_lines()[i].get_color()) for i in (0, -1))
    np.testing.assert_allclose([first, last], [to_rgba(plots.BLUE), to_rgba(plots.ORANGE)], atol=0.01)


def test_a_traverse_that_moves_no_mean_shows_the_deviation():
    scale = torch.tensor([2.0, 1.0, 0.5]).expand(4, 2, 3).permute(2, 1, 0)  # (V, N, H)
    spread = plots.traverse_fan(Traversal(torch.tensor([-1.0, 0.0, 2.0]), torch.zeros(3, 2, 4), scale)).axes[1]
    assert [line.get_ydata()[0] for line in spread.get_lines()] == [2.0, 1.0, 0.5]
    assert spread.get_ylabel() == "forecast's deviation (scaled data)"


def test_risk_curves_show_what_is_kept_at_first():
    error = np.arange(1.0, 41.0)
    curves = {"oracle": risk_coverage(error, error), "wrong": risk_coverage(error, -error)}
    ax = plots.risk_curves(curves).axes[0]
    drawn = lines(ax)
    assert list(drawn) == ["oracle: gain +100 %", "wrong: gain -100 %"]
    for curve, shown in zip(curves.values(), drawn.values(), strict=True):
        np.testing.assert_allclose(shown, curve.risk[1:])  # 2 of 40 windows are 5 %
    level = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(level, [20.5, 20.5])
