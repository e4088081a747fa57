"""A search: what mattered, what was traded for what, and whether early signals foretold the end."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eve_pyro.plots.style import BLUE, GREY, ORANGE, grid, legend_below


def early_signals(rows: pd.DataFrame) -> Figure:
    """Draw the validation CRPS at the end of each trial's course against what was seen of it first.

    ``rows`` have ``first_out_of_band`` (share of units), ``first_crps``, ``crps`` and ``full``, whether the trial was
    trained to the end.
    """
    figure, axes = grid(2, 2, height=3.0)
    for ax, column in zip(axes, ("first_out_of_band", "first_crps"), strict=True):
        for full, colour, label in ((False, GREY, "dropped on the way"), (True, BLUE, "trained to the end")):
            part = rows[rows["full"] == full]
            ax.scatter(part[column], part["crps"], s=16, color=colour, label=label)
        ax.set_ylabel("last validation CRPS (scaled data)")
    axes[0].set(xlabel="share of units out of their bands, seen early", xlim=(-0.04, 1.04))
    axes[1].set_xlabel("validation CRPS, seen early")
    legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure


def importance_bars(importance: pd.DataFrame) -> Figure:
    """Draw each ``option``'s ``importance``, a share of 1, the largest on top."""
    figure, (ax,) = grid(1, 1, height=0.6 + 0.25 * len(importance))
    places = np.arange(len(importance))[::-1]
    ax.barh(places, importance["importance"], color=BLUE)
    ax.set_yticks(places, importance["option"])
    ax.set_xlabel("share in how the trials' validation CRPS after the first rung differs")
    return figure


def pareto_scatter(front: pd.DataFrame, objectives: Sequence[str]) -> Figure:
    """Draw trials by each pair of ``objectives``; those marked ``front`` are dominated by none."""
    pairs = [(a, b) for i, a in enumerate(objectives) for b in objectives[i + 1 :]]
    figure, axes = grid(len(pairs), len(pairs), height=3.0)
    for ax, (first, second) in zip(axes, pairs, strict=True):
        for on, colour, label in ((False, GREY, "dominated"), (True, ORANGE, "on the front")):
            part = front[front["front"] == on]
            ax.scatter(part[first], part[second], s=18, color=colour, label=label)
        for row in front.to_dict("records"):
            ax.annotate(str(row["trial"]), (row[first], row[second]), (3, 3), textcoords="offset points", fontsize=7)
        ax.set(xlabel=first.replace("_", " "), ylabel=second.replace("_", " "))
        ax.locator_params(axis="x", nbins=4)  # long labels, side by side
    legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure
