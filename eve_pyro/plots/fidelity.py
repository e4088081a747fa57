"""How far guides are from the posterior."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eve_pyro.diagnostics.simulation import Calibration
from eve_pyro.plots.style import AMBER, BLUE, GREEN, GREY, INK, ORANGE, grid, legend_below

ZONES = (
    (-np.inf, 0.5, GREEN, "o", "below 0.5"),
    (0.5, 0.7, AMBER, "s", "to 0.7"),
    (0.7, np.inf, ORANGE, "^", "above"),
)
LEAST = 0.01  # nats that the axis of gaps spans at least: the exact posterior leaves rounding errors


def khat_chart(table: pd.DataFrame) -> Figure:
    """Draw k-hat of every window of an ``importance_table``, and its gap, bound less ELBO, with two standard errors.

    Below 0.5 all is well, to 0.7 weights are usable, above they are not. The exact posterior's k-hat, -inf, and what no
    double can hold, inf, stand at the edges, which say so.
    """
    figure, (khats, gaps) = grid(2, 2)
    finite = table["khat"][np.isfinite(table["khat"])]
    low, high = min(-0.1, finite.min() if len(finite) else 0.0), max(0.8, finite.max() if len(finite) else 0.0)
    shown = table["khat"].clip(low - 0.1, high + 0.1)
    for limit in (0.5, 0.7):
        khats.axhline(limit, color=GREY, lw=0.8, ls="--")
    for begin, end, colour, marker, name in ZONES:
        inside = (table["khat"] >= begin) & (table["khat"] < end) if end < np.inf else table["khat"] >= begin
        label = f"{100 * inside.mean():.0f} % {name}"
        khats.plot(table["window"][inside], shown[inside], marker, color=colour, ms=3.5, mew=0, label=label)
    edges = {place: name for place, name in ((low - 0.1, "-inf"), (high + 0.1, "inf")) if (shown == place).any()}
    ticks = {tick: f"{tick:.2g}" for tick in khats.get_yticks() if low <= tick <= high} | edges
    khats.set_yticks(list(ticks), list(ticks.values()))
    khats.set(xlabel="window", ylabel="k-hat")
    khats.legend(
        fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1,
        handletextpad=0.2,
    )  # fmt: skip
    gaps.errorbar(
        table["window"], table["gap"], yerr=2 * table["gap_se"], fmt="o", ms=2.5, lw=0.6, color=BLUE, ecolor=GREY
    )  # fmt: skip
    gaps.axhline(0, color=GREY, lw=0.6)
    low, high = gaps.get_ylim()
    gaps.set(xlabel="window", ylabel="gap (nats)", ylim=(min(low, -LEAST / 2), max(high, LEAST)))
    gaps.set_title(f"mean {round(table['gap'].mean(), 4) + 0.0:.3g} nats a window", fontsize=9)
    return figure


def rank_histograms(found: Calibration) -> Figure:
    """Draw the rank histograms of an ``sbc``, flat for the exact posterior: every unit's latents faintly, projections
    and log likelihood strongly, over the band that holds 95 % of the bars by chance.
    """
    from scipy.stats import binom  # adds filters to everybody's warnings: not on import

    figure, (ax,) = grid(1, 1)
    counts = found.counts.to_numpy()
    bins, total = counts.shape[1], int(counts[0].sum())
    edges, flat = np.linspace(0, 1, bins + 1), total / bins
    low, high = (float(binom.ppf(level, total, 1 / bins)) / flat for level in (0.025, 0.975))
    ax.axhspan(low, high, color=GREY, alpha=0.25, lw=0, label="chance, 95 %")
    ax.axhline(1, color=GREY, lw=0.8)
    styles = {"latent": (INK, 0.5, 0.25), "projection": (BLUE, 1.3, 1.0), "log_likelihood": (ORANGE, 1.6, 1.0)}
    for quantity, (colour, width, alpha) in styles.items():
        rows = counts[(found.table["quantity"] == quantity).to_numpy()]
        for number, row in enumerate(rows):
            label = quantity.replace("_", " ") if number == 0 else None
            ax.stairs(row / flat, edges, baseline=None, color=colour, lw=width, alpha=alpha, label=label)
    ax.set(xlabel="rank of the truth among the guide's draws", ylabel="density", xlim=(0, 1), ylim=(0, None))
    legend_below(figure, *ax.get_legend_handles_labels())
    return figure
