"""Whether forecasts mean what they say."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eve_pyro.plots.style import BLUE, CYCLE, GREY, INK, ORANGE, grid, legend_below


def pit_histogram(pit: pd.DataFrame, twin: pd.DataFrame | None = None, bins: int = 10) -> Figure:
    """Draw the histogram of ``pit_values`` as a density, flat at 1 where forecasts are calibrated.

    The band holds 95 % of the bars of as many independent uniform values as there are windows: the steps of a window
    hang together, and so count once. Overlapping windows hang together too, so that bars may leave it by chance more
    often. A ``twin``'s histogram is outlined.
    """
    from scipy.stats import binom  # adds filters to everybody's warnings: not on import

    figure, (ax,) = grid(1, 1)
    count = pit["window"].nunique()
    low, high = (float(binom.ppf(level, count, 1 / bins)) * bins / count for level in (0.025, 0.975))
    edges = np.linspace(0, 1, bins + 1)
    density = np.histogram(pit["pit"], edges, density=True)[0]
    ax.stairs(density, edges, fill=True, color=BLUE, alpha=0.5, lw=0, label="forecasts")
    label = f"chance, 95 % ({count} windows)"
    ax.axhspan(low, high, color=GREY, alpha=0.22, lw=0, label=label, zorder=2)
    ax.axhline(1, color=GREY, lw=0.8)
    if twin is not None:
        outline = np.histogram(twin["pit"], edges, density=True)[0]
        ax.stairs(outline, edges, baseline=None, color=ORANGE, ls="--", label="twin", zorder=3)
    ax.set(xlabel="PIT: where the truth falls in its forecast", ylabel="density", xlim=(0, 1), ylim=(0, None))
    legend_below(figure, *ax.get_legend_handles_labels())
    return figure


def coverage_curves(table: pd.DataFrame, twin: pd.DataFrame | None = None) -> Figure:
    """Draw a ``calibration_table``: coverage by level, averaged over the horizon, beside what it should be; and by step
    of the horizon, a line for each of the four highest levels. A ``twin``'s table is drawn by level.
    """
    figure, (levels, steps) = grid(2, 2, height=2.9)
    levels.plot([0, 1], [0, 1], color=GREY, lw=0.8, label="calibrated")
    for name, each, colour in (("forecasts", table, BLUE), ("twin", twin, ORANGE)):
        if each is not None:
            mean, dashes = each.groupby("level")["coverage"].mean(), "-" if each is table else "--"
            levels.plot(mean.index, mean, color=colour, ls=dashes, marker="o", ms=4, lw=1.2, label=name)
    levels.set(xlabel="level of the central interval", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1))
    levels.legend(frameon=False, fontsize=9)
    chosen = sorted(table["level"].unique(), reverse=True)[:4]
    for level, colour in zip(chosen, CYCLE, strict=False):
        rows = table[table["level"] == level]
        steps.axhline(level, color=colour, lw=0.8, ls=":")
        steps.plot(rows["step"], rows["coverage"], color=colour, lw=1.3)
        steps.annotate(
            f"{100 * level:g} %", (1, rows["coverage"].iloc[-1]), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8, color=INK,
        )  # fmt: skip
    lowest = min(table.loc[table["level"] >= chosen[-1], "coverage"].min(), chosen[-1])
    steps.set(xlabel="step of the horizon", ylabel="share of truths inside", ylim=(max(0, lowest - 0.06), 1))
    return figure
