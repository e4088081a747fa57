"""Trainings beside one another."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from eve_pyro.plots.style import BLUE, CYCLE, GREY, REGIME_COLOURS, grid, legend_below


def regime_scatter(rows: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Draw CRPS and joint log score against the inside mass on validation, a point a variant (mean and deviation over
    seeds), a colour a regime. ``labels`` name the columns that tell variants apart, ``regime`` first.
    """
    figure, axes = grid(2, 2)
    colours = {regime: REGIME_COLOURS[regime] for regime in rows["regime"].unique()}
    rows = rows.assign(variant=rows[list(labels[1:])].astype(str).agg(", ".join, axis=1) if labels[1:] else "")
    markers = dict(zip(rows["variant"].unique(), itertools.cycle("osD^vP*X<>hd"), strict=False))
    for (regime, variant), group in rows.groupby(["regime", "variant"], sort=False):
        for ax, score in zip(axes, ("crps", "joint_log_score"), strict=True):
            x, y = group["val_inside_mass"], group[score]
            ax.errorbar(
                x.mean(), y.mean(), xerr=x.std() if len(x) > 1 else None, yerr=y.std() if len(y) > 1 else None,
                color=colours[regime], fmt=markers[variant], ms=5, lw=1,
            )  # fmt: skip
    axes[0].set_ylabel("test CRPS (scaled data)")
    axes[1].set_ylabel("test joint log score (nats a value)")
    for ax in axes:
        ax.set(xlabel="inside mass on validation", xlim=(-0.04, 1.04))
    handles = [Line2D([], [], color=colour, marker="o", ls="", label=name) for name, colour in colours.items()]
    if len(markers) > 1:
        named = {", ".join(labels[1:]) + f" = {variant}": marker for variant, marker in markers.items()}
        handles += [Line2D([], [], color=GREY, marker=marker, ls="", label=name) for name, marker in named.items()]
    columns = 4 if len(handles) <= 8 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def difference_bars(summary: pd.DataFrame, labels: Sequence[str], scores: Sequence[str]) -> Figure:
    """Draw each variant's paired difference to the first one with its 95 % interval, a panel a score.

    ``summary`` is a table of ``bench.compare.summarise``, ``labels`` its first columns.
    """
    others = summary.iloc[1:]
    names = [" ".join(str(row[name]) for name in labels) for row in others.to_dict("records")]
    figure, axes = grid(len(scores), len(scores), height=1.2 + 0.28 * len(names))
    places = np.arange(len(names))[::-1]
    for number, (ax, score) in enumerate(zip(axes, scores, strict=True)):
        ax.axvline(0, color=GREY, lw=0.8)
        ax.errorbar(
            others[f"{score}_diff"], places, xerr=others[f"{score}_ci"].fillna(0), fmt="o", ms=4, lw=1, color=BLUE
        )  # fmt: skip
        ax.set_yticks(places, names if number == 0 else [])
        ax.set_xlabel(f"{score.replace('_', ' ')}, minus the base's")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))  # a power of ten hides the label
        ax.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def accuracy_chart(cells: pd.DataFrame, scores: Sequence[str]) -> Figure:
    """Draw, cell by cell, how far each rival is behind eve with its 95 % interval: a panel a score, a colour a model.

    ``cells`` is a table of ``bench.tables.cell_table`` of one protocol. Right of zero eve is ahead: in nats of log
    scores, else in per cent of eve's score; beyond 1 nat and 10 % logarithmic, where a rival is far off.
    """
    rivals = cells[cells["model"] != "eve"]
    place = cells["set"] + " " + cells["horizon"].astype(str)
    rows = {name: number for number, name in enumerate(place.unique())}
    models = list(rivals["model"].unique())
    figure, axes = grid(len(scores), len(scores), height=1.2 + (0.08 * len(models) + 0.15) * len(rows))
    handles = []
    for ax, score in zip(axes, scores, strict=True):
        ax.axvline(0, color=GREY, lw=0.8)
        eve = cells[score].where(cells["model"] == "eve").groupby(place).transform("max")
        unit = 1.0 if score.endswith("log_score") else 0.01 * eve
        behind, interval = -cells[f"{score}_diff"] / unit, (cells[f"{score}_ci"] / unit).fillna(0)
        for number, model in enumerate(models):
            own = cells["model"] == model
            height = place[own].map(rows) + 0.8 * ((number + 0.5) / len(models) - 0.5)
            marker, colour = "osD^vP*X"[number // len(CYCLE)], CYCLE[number % len(CYCLE)]
            handles.append(ax.errorbar(behind[own], height, xerr=interval[own], fmt=marker, ms=3.5, lw=1, color=colour))
        ax.set_yticks(list(rows.values()), list(rows) if ax is axes[0] else [])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        near = 1.0 if isinstance(unit, float) else 10.0
        if behind.abs().max() > 3 * near:  # what is far off, a seed that failed at worst, would press all others flat
            ax.set_xscale("symlog", linthresh=near, linscale=3)
            ax.set_xlim(left=min(behind.min(), 0) - 0.1 * near)
            steps = near * np.array([-1, -0.5, 0, 0.5, 1, *10.0 ** np.arange(1, 6)])
            ax.set_xticks(steps[(steps >= ax.get_xlim()[0]) & (steps <= ax.get_xlim()[1])])
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(f"{score.replace('_', ' ')} behind eve's, {'nats a value' if isinstance(unit, float) else '%'}")
    legend_below(figure, handles[: len(models)], models, columns=min(len(models), 6))
    return figure
