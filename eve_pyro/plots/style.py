"""The one look: colours that colour-blind eyes tell apart (Okabe and Ito), panels, legends and heat maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"
SKY, AMBER, YELLOW, PINK = "#56B4E9", "#E69F00", "#F0E442", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY)
REGIME_COLOURS = {"off": INK, "penalty": BLUE, "projection": ORANGE, "homeostasis": GREEN}
STATE_COLOURS = {
    "living": GREEN, "too_low": SKY, "too_high": AMBER, "drifting": YELLOW, "collapsed": PINK, "saturated": ORANGE,
    "dead": INK, "unknown": GREY,
}  # fmt: skip
AXIS = LinearSegmentedColormap.from_list("axis", [BLUE, GREY, ORANGE])  # mid-tones only: lines show on any ground


def grid(count: int, columns: int, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """Return a figure of notebook width with ``count`` panels, ``height`` inches each, row by row."""
    rows = -(-count // columns)
    figure = Figure(figsize=(9.5, 0.6 + height * rows), layout="constrained", dpi=150)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    return figure, axes


def plain(name: str) -> str:
    """Return a name of the user's as text: no part of it is a formula."""
    return name.replace("$", r"\$")


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int | None = None) -> None:
    """Put one legend for all panels below them, in one row unless ``columns`` are given."""
    ncols = columns or len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)


def heat(figure: Figure, ax: Axes, values: pd.DataFrame, label: str, colours: str, limits: tuple[float, float]) -> None:
    """Draw rows by columns, whose labels may be unevenly spaced, in colour; ``label`` says what the colours mean."""
    rows = np.append(values.index.to_numpy(float), len(values)) - 0.5
    mesh = ax.pcolormesh(
        edges(values.columns), rows, values.to_numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], rasterized=True
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=ax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def edges(places: pd.Index) -> np.ndarray:
    """Return where the cells around ``places`` begin and end: half way to the next one."""
    values = places.to_numpy(float)
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middles = (values[1:] + values[:-1]) / 2
    return np.concatenate([[2 * values[0] - middles[0]], middles, [2 * values[-1] - middles[-1]]])
