"""What units are worth, and what they do."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from eve_pyro.diagnostics.interventions import Traversal
from eve_pyro.plots.style import AXIS, BLUE, GREY, ORANGE, grid

NORMAL_95 = 1.6449  # deviations to the 95 % quantile of a normal
STILL = 1e-3  # of the forecast's deviation: means that move less stand still


def intervention_bars(costs: pd.DataFrame, score: str = "joint_log_score_cost", most: int = 12) -> Figure:
    """Draw what it costs to knock each unit out, the dearest first, beside its KL: rows of ``knock_out``.

    Two units alike in KL need not be alike in worth. Of more than ``most`` units the dearest are shown.
    """
    shown = costs.sort_values(score, ascending=False).head(most)
    names = [f"{str(row['site']).removesuffix('.z')}[{row['unit']}]" for row in shown.to_dict("records")]
    figure, (left, right) = grid(2, 2, height=0.9 + 0.19 * len(shown))
    places = np.arange(len(shown))[::-1]
    unit = "nats a value" if score.startswith("joint") else "scaled data"
    _bars(left, places, shown[score], ORANGE, f"cost in {score.removesuffix('_cost').replace('_', ' ')} ({unit})")
    _bars(right, places, shown["kl"], BLUE, "KL(q || p) (nats a window)")
    for ax in (left, right):
        ax.set_yticks(places, names)
    right.tick_params(labelleft=False)
    if len(shown) < len(costs):
        left.set_title(f"the dearest {len(shown)} of {len(costs)} units", fontsize=9)
    return figure


def traverse_fan(found: Traversal, window: int = 0) -> Figure:
    """Draw a window's forecast as a unit runs along its axis: mean and, at both ends and in the middle, 90 % band (of a
    normal with the forecast's deviation); and how far the mean moves from where the unit is nearest to 0, or, where it
    does not, as with a volatility unit, the deviation.
    """
    values, mean, scale = found.values.numpy(), found.mean[:, window].numpy(), found.scale[:, window].numpy()
    steps, middle = np.arange(1, mean.shape[1] + 1), int(np.abs(values).argmin())
    figure, (fan, moved) = grid(2, 2, height=2.9)
    shift, label = mean - mean[middle], f"moved from z = {values[middle]:g} (scaled data)"
    if np.abs(shift).max() < STILL * scale.max():
        shift, label = scale, "forecast's deviation (scaled data)"
    colour = ScalarMappable(Normalize(values.min(), values.max()), AXIS)
    for number in sorted({0, middle, len(values) - 1}):
        band = NORMAL_95 * scale[number]
        fill = colour.to_rgba(values[number])
        fan.fill_between(steps, mean[number] - band, mean[number] + band, color=fill, alpha=0.13, lw=0)
    for number, value in enumerate(values):
        width = 1.8 if number == middle else 1.0
        fan.plot(steps, mean[number], color=colour.to_rgba(value), lw=width)
        moved.plot(steps, shift[number], color=colour.to_rgba(value), lw=width)
    fan.set(xlabel="step of the horizon", ylabel="forecast (scaled data)")
    moved.set(xlabel="step of the horizon", ylabel=label)
    bar = figure.colorbar(colour, ax=moved)
    bar.set_label("z (prior deviations)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _bars(ax: Axes, places: np.ndarray, values: pd.Series, colour: str, label: str) -> None:
    ax.barh(places, values, height=0.72, color=colour)
    ax.axvline(0, color=GREY, lw=0.8)
    reach = max(values.max(), 0) - min(values.min(), 0)
    for place, value in zip(places, values, strict=True):
        beside = max(value, 0) + 0.015 * reach
        ax.text(beside, place, f"{value:.2g}", va="center", fontsize=7.5)
    ax.set_xlabel(label)
    ax.margins(x=0.14, y=0.02)
