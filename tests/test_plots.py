"""Pictures show what they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, make_model

from eve_pyro import plots
from eve_pyro.data import latest_windows, make_windows
from eve_pyro.infer.forecast import Forecast, forecast, truth


def make_forecast(windows, guide="future_aware", **options):
    model = make_model().eval()
    return forecast(model, GUIDES[guide](model), windows, 10, **options)


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_the_fan_chart_draws_truth_median_and_bands(windows, tmp_path):
    shown = windows.test.select([0, 60])
    result, twin = make_forecast(shown), make_forecast(shown, "delta")
    figure = plots.fan_chart(result, twin)
    assert len(figure.axes) == 2
    drawn = lines(figure.axes[1])
    np.testing.assert_allclose(drawn["truth"], truth(shown)[1])
    np.testing.assert_allclose(drawn["median"], result.quantiles[3, 1])
    np.testing.assert_allclose(drawn["twin, 90 %"], twin.quantiles[0, 1])
    mean, deviation = shown.scale()
    np.testing.assert_allclose(drawn["context"], (mean + deviation * shown[:].context[:, 0])[1, -2 * HORIZON :])
    assert figure.axes[1].get_title() == "s1, from 02 Sep 2024"
    figure.savefig(tmp_path / "fan.png")


def test_the_fan_chart_shows_all_of_a_short_context(panel):
    short, levels = make_windows(panel, CONTEXT, 16).test.select([0]), (0.05, 0.25, 0.5, 0.75, 0.95)
    flat = Forecast(short, torch.zeros(2, 1, 16), torch.zeros(1, 16), torch.zeros(5, 1, 16), levels, True)
    assert len(lines(plots.fan_chart(flat).axes[0])["context"]) == CONTEXT


def test_a_forecast_of_what_is_to_come_has_no_truth_to_draw(windows):
    latest = latest_windows(windows.test.panel, CONTEXT, HORIZON, windows.test.scaler)
    assert "truth" not in lines(plots.fan_chart(make_forecast(latest)).axes[0])
    with pytest.raises(ValueError, match=r"quantile at 0\.05"):
        plots.fan_chart(make_forecast(latest, levels=(0.5,)))


def test_training_curves_draw_every_history():
    history = pd.DataFrame({"epoch": [0, 1], "train_loss": [3.0, 2.0], "val_loss": [4.0, 3.0], "val_crps": [0.5, 0.4]})
    loss, crps = plots.training_curves({"eve": history, "twin": history + 1}).axes
    np.testing.assert_allclose(lines(loss)["twin, validation"], [5.0, 4.0])
    np.testing.assert_allclose(lines(crps)["eve"], [0.5, 0.4])


def test_unit_bars_count_who_carries():
    table = pd.DataFrame({"site": "eve.z", "unit": range(3), "kl": [0.01, 0.6, 0.2], "energy": [0.0, 2.0, 1.0]})
    kl, energy = plots.unit_bars(table).axes
    assert [bar.get_height() for bar in kl.patches] == [0.6, 0.2, 0.01]
    assert [bar.get_height() for bar in energy.patches] == [2.0, 1.0, 0.0]
    assert "2 of 3 units" in kl.get_title()
    assert energy.get_title() == ""


def test_unit_bars_tell_of_a_unit_that_is_a_layer_by_itself():
    layers = {"eve.z": [0.01, 0.6, 0.2], "volatility.z": [3.14159]}
    rows = [(site, unit, kl, 2 * kl) for site, kls in layers.items() for unit, kl in enumerate(kls)]
    table = pd.DataFrame(rows, columns=["site", "unit", "kl", "energy"])
    kl, energy = plots.unit_bars(table).axes
    assert [bar.get_height() for bar in kl.patches] == [0.6, 0.2, 0.01]
    assert "2 of 3 units" in kl.get_title()
    assert energy.get_title() == "volatility.z: KL 3.14, energy 6.28"
    alone = plots.unit_bars(table[table["site"] == "volatility.z"]).axes[0]
    assert [bar.get_height() for bar in alone.patches] == [3.14159]


def make_census(**columns):
    """Four units at steps 2, 4 and 8, whose KL is their number times the step."""
    rows = pd.MultiIndex.from_product([[2, 4, 8], range(4)], names=["step", "unit"]).to_frame(index=False)
    states = ["too_low"] * 4 + ["living", "living", "too_low", "dead"] + ["living"] * 4
    rows = rows.assign(
        kl=rows["unit"] * rows["step"], energy=0.1, low=0.05, high=0.2, beta=0.5, split="val", state=states
    )
    return rows.assign(**columns)


def test_a_census_map_keeps_each_steps_shares_to_its_own_width(tmp_path):
    figure = plots.census_map(make_census())
    drawn = {patch.get_label(): patch.get_data() for patch in figure.axes[2].patches}
    assert list(drawn) == ["living", "too low", "dead"]
    for data in drawn.values():
        np.testing.assert_allclose(data.edges, [1, 3, 6, 10])
    np.testing.assert_allclose(drawn["living"].values, [0, 0.5, 1])
    np.testing.assert_allclose(drawn["too low"].values - drawn["too low"].baseline, [1, 0.25, 0])
    np.testing.assert_allclose(drawn["dead"].values, [1, 1, 1])
    figure.savefig(tmp_path / "census.png")
    once = plots.census_map(make_census().query("step == 8"))
    np.testing.assert_allclose(once.axes[2].patches[0].get_data().edges, [7.5, 8.5])


def test_a_census_map_draws_betas_where_they_differ_and_else_the_effective_kl():
    shown = plots.census_map(make_census()).axes[3]
    np.testing.assert_allclose(shown.get_lines()[0].get_xydata(), [[2, 4], [4, 8], [8, 16]])
    asleep = plots.census_map(make_census(kl=0.005)).axes[3]
    np.testing.assert_allclose(asleep.get_lines()[0].get_ydata(), [0, 0, 0])
    betas = np.tile([0.1, 0.2, 0.3, 0.4], 3)
    assert [bar.get_height() for bar in plots.census_map(make_census(beta=betas)).axes[3].patches] == list(betas[:4])
