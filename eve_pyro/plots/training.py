"""How a training went, and the census of its units."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eve_pyro.diagnostics.census import ACTIVE
from eve_pyro.plots.style import BLUE, GREEN, ORANGE, STATE_COLOURS, edges, grid, heat


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw loss and validation CRPS, or the log score of classes, by epoch of each history, by name."""
    figure, axes = grid(2, 2)
    score = "val_crps" if all("val_crps" in history for history in histories.values()) else "val_log_score"
    for (name, history), colour in zip(histories.items(), (BLUE, ORANGE, GREEN), strict=False):
        axes[0].plot(history["epoch"] + 1, history["train_loss"], color=colour, ls=":", label=f"{name}, training")
        axes[0].plot(
            history["epoch"] + 1, history["val_loss"], color=colour, marker="o", ms=4, label=f"{name}, validation"
        )
        axes[1].plot(history["epoch"] + 1, history[score], color=colour, marker="o", ms=4, label=name)
    axes[0].set_ylabel("loss (nats a value)")
    axes[1].set_ylabel("validation CRPS (scaled data)" if score == "val_crps" else "validation log score (nats)")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=9)
    return figure


def unit_bars(table: pd.DataFrame) -> Figure:
    """Draw KL and energy of every unit of a ``unit_table``, each layer's units in order of their KL.

    A unit that is a layer by itself beside others, as a volatility unit is, has another scale: words say what it pays.
    """
    figure, axes = grid(2, 2)
    alone = table.groupby("site")["unit"].transform("size") == 1
    apart = table[:0] if alone.all() else table[alone]
    table = table.drop(apart.index).sort_values(["site", "kl"], ascending=[True, False])
    awake = int((table["kl"] > 0.05).sum())
    for ax, column, colour in zip(axes, ("kl", "energy"), (BLUE, GREEN), strict=True):
        ax.bar(np.arange(len(table)), table[column], width=1.0, color=colour)
        ax.set_xlabel("unit, by KL")
    axes[0].set_ylabel("KL(q || p) (nats a window)")
    axes[0].set_title(f"{awake} of {len(table)} units carry more than 0.05 nats", fontsize=9)
    told = [f"{row['site']}: KL {row['kl']:.2f}, energy {row['energy']:.2f}" for row in apart.to_dict("records")]
    axes[1].set_title("; ".join(told), fontsize=9)
    axes[1].set_ylabel("energy (squared prior deviations)")
    axes[1].set_yscale("symlog", linthresh=1e-3)
    return figure


def census_map(census: pd.DataFrame) -> Figure:
    """Draw a layer's ``census`` of one split: heat maps (units by step) of energy against the band and of KL; the share
    of each state through training; every unit's beta at the end or, where all pay the same, the effective KL by step.
    """
    figure, axes = grid(4, 2)
    kl = census.pivot(index="unit", columns="step", values="kl")
    doublings = np.log2(census["energy"].clip(lower=1e-9) / np.sqrt(census["low"] * census["high"]))
    distance = census.assign(doublings=doublings).pivot(index="unit", columns="step", values="doublings")
    heat(figure, axes[0], distance, "energy / centre of the band (doublings)", "RdBu_r", (-3, 3))
    axes[0].set_title("white to pale: inside (half a doubling)", fontsize=9)
    heat(figure, axes[1], kl, "KL(q || p) (nats a window)", "viridis", (0, max(float(kl.to_numpy().max()), 1e-6)))
    for ax in axes[:2]:
        ax.set(xlabel="step", ylabel="unit")
    _shares(axes[2], census)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = census[census["step"] == kl.columns.max()]
    if last["beta"].nunique() > 1:
        axes[3].bar(last["unit"], last["beta"], width=1.0, color=BLUE)
        axes[3].set(xlabel="unit", ylabel="beta (price of a nat)")
    else:
        effective = kl.where(kl > ACTIVE).mean().fillna(0.0)
        axes[3].plot(effective.index, effective, color=BLUE, marker="o", ms=3)
        axes[3].set(xlabel="step", ylabel="effective KL (nats an active unit)", ylim=(0, None))
    return figure


def _shares(ax: Axes, census: pd.DataFrame) -> None:
    """Draw the share of the units in each state, one on top of the other: a step is one moment, and has one width."""
    shares = census.groupby("step")["state"].value_counts(normalize=True).unstack(fill_value=0)
    places, below = edges(shares.index), np.zeros(len(shares))
    for state in STATE_COLOURS:
        if state in shares:
            above = below + shares[state].to_numpy()
            label = state.replace("_", " ")
            ax.stairs(above, places, baseline=below, fill=True, color=STATE_COLOURS[state], lw=0, label=label)
            below = above
    windows = {"train": "training", "val": "validation"}[census["split"].iloc[0]]
    ax.set(xlabel="step", ylim=(0, 1), xlim=(places[0], places[-1]), ylabel=f"share of units, {windows} windows")
    ax.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1)
