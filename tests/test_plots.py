"""Pictures show what they are given."""

import numpy as np
import pandas as pd
import pytest
from conftest import CONTEXT, GUIDES, HORIZON, make_model

from eve_pyro import plots
from eve_pyro.data import latest_windows
from eve_pyro.infer.forecast import forecast, truth


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
    assert len(drawn["context"]) == HORIZON
    assert figure.axes[1].get_title() == "s1, from 02 Sep 2024"
    figure.savefig(tmp_path / "fan.png")


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
