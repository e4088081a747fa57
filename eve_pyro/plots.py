"""Pictures, in one look: colour-blind safe (Okabe and Ito), units on the axes, readable at notebook width.

Every function returns a matplotlib ``Figure`` made without pyplot: nothing global changes, nothing must be closed.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from eve_pyro.data import Windows
from eve_pyro.diagnostics.census import ACTIVE
from eve_pyro.infer.forecast import Forecast, truth

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"
SHOWN_PAST = 2  # horizons of context before a forecast
REGIME_COLOURS = {"off": INK, "penalty": BLUE, "projection": ORANGE, "homeostasis": GREEN}
STATE_COLOURS = {
    "living": GREEN, "too_low": "#56B4E9", "too_high": "#E69F00", "drifting": "#F0E442", "collapsed": "#CC79A7",
    "saturated": ORANGE, "dead": INK,
}  # fmt: skip


def fan_chart(forecast: Forecast, twin: Forecast | None = None, num_paths: int = 3) -> Figure:
    """Draw each window of ``forecast``: the end of its context, the truth, median, 50 and 90 % bands, some joint paths.

    The 90 % band of a ``twin`` is outlined over it. Levels 0.05, 0.25, 0.5, 0.75 and 0.95 must be in the forecast.
    """
    count = len(forecast)
    columns = 3 if count == 3 else min(count, 2)
    figure, axes = _grid(count, columns)
    for number, ax in enumerate(axes):
        _fan(ax, forecast, number, num_paths)
        if twin is not None:
            steps = np.arange(1, twin.mean.shape[1] + 1)
            for level in (0.05, 0.95):
                label = "twin, 90 %" if level == 0.05 else None
                ax.plot(steps, _level(twin, level)[number], color=ORANGE, lw=1, ls="--", label=label)
        ax.set_title(_origin(forecast.windows, number), fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    for ax in axes[-columns:]:
        ax.set_xlabel("steps from the forecast's origin")
    return figure


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw loss and validation CRPS by epoch of each history, by name."""
    figure, axes = _grid(2, 2)
    for (name, history), colour in zip(histories.items(), (BLUE, ORANGE, GREEN), strict=False):
        axes[0].plot(history["epoch"] + 1, history["train_loss"], color=colour, ls=":", label=f"{name}, training")
        axes[0].plot(
            history["epoch"] + 1, history["val_loss"], color=colour, marker="o", ms=4, label=f"{name}, validation"
        )
        axes[1].plot(history["epoch"] + 1, history["val_crps"], color=colour, marker="o", ms=4, label=name)
    axes[0].set_ylabel("loss (nats a value)")
    axes[1].set_ylabel("validation CRPS (scaled data)")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=9)
    return figure


def unit_bars(table: pd.DataFrame) -> Figure:
    """Draw KL and energy of every unit of a ``unit_table``, each layer's units in order of their KL."""
    figure, axes = _grid(2, 2)
    table = table.sort_values(["site", "kl"], ascending=[True, False])
    awake = int((table["kl"] > 0.05).sum())
    for ax, column, colour in zip(axes, ("kl", "energy"), (BLUE, GREEN), strict=True):
        ax.bar(np.arange(len(table)), table[column], width=1.0, color=colour)
        ax.set_xlabel("unit, by KL")
    axes[0].set_ylabel("KL(q || p) (nats a window)")
    axes[0].set_title(f"{awake} of {len(table)} units carry more than 0.05 nats", fontsize=9)
    axes[1].set_ylabel("energy (squared prior deviations)")
    axes[1].set_yscale("symlog", linthresh=1e-3)
    return figure


def census_map(census: pd.DataFrame) -> Figure:
    """Draw a layer's ``census`` of one split: heat maps (units by step) of energy against the band and of KL; the share
    of each state through training; every unit's beta at the end or, where all pay the same, the effective KL by step.
    """
    figure, axes = _grid(4, 2)
    kl = census.pivot(index="unit", columns="step", values="kl")
    doublings = np.log2(census["energy"].clip(lower=1e-9) / np.sqrt(census["low"] * census["high"]))
    distance = census.assign(doublings=doublings).pivot(index="unit", columns="step", values="doublings")
    _heat(figure, axes[0], distance, "energy / centre of the band (doublings)", "RdBu_r", (-3, 3))
    axes[0].set_title("white to pale: inside (half a doubling)", fontsize=9)
    _heat(figure, axes[1], kl, "KL(q || p) (nats a window)", "viridis", (0, max(float(kl.to_numpy().max()), 1e-6)))
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


def regime_scatter(rows: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Draw CRPS and joint log score against the inside mass on validation, a point a variant (mean and deviation over
    seeds), a colour a regime. ``labels`` name the columns that tell variants apart, ``regime`` first.
    """
    figure, axes = _grid(2, 2)
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
    figure, axes = _grid(len(scores), len(scores), height=1.2 + 0.28 * len(names))
    places = np.arange(len(names))[::-1]
    for number, (ax, score) in enumerate(zip(axes, scores, strict=True)):
        ax.axvline(0, color=GREY, lw=0.8)
        ax.errorbar(
            others[f"{score}_diff"], places, xerr=others[f"{score}_ci"].fillna(0), fmt="o", ms=4, lw=1, color=BLUE
        )  # fmt: skip
        ax.set_yticks(places, names if number == 0 else [])
        ax.set_xlabel(f"{score.replace('_', ' ')}, minus the base's")
        ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    return figure


def _heat(
    figure: Figure, ax: Axes, values: pd.DataFrame, label: str, colours: str, limits: tuple[float, float]
) -> None:
    """Draw units (rows) by step (columns, unevenly spaced) in colour."""
    units = np.append(values.index.to_numpy(float), len(values)) - 0.5
    mesh = ax.pcolormesh(
        _edges(values.columns), units, values.to_numpy(), cmap=colours, vmin=limits[0], vmax=limits[1]
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=ax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    ax.set(xlabel="step", ylabel="unit")


def _shares(ax: Axes, census: pd.DataFrame) -> None:
    """Draw the share of the units in each state, one on top of the other: a step is one moment, and has one width."""
    shares = census.groupby("step")["state"].value_counts(normalize=True).unstack(fill_value=0)
    edges, below = _edges(shares.index), np.zeros(len(shares))
    for state in STATE_COLOURS:
        if state in shares:
            above = below + shares[state].to_numpy()
            label = state.replace("_", " ")
            ax.stairs(above, edges, baseline=below, fill=True, color=STATE_COLOURS[state], lw=0, label=label)
            below = above
    windows = {"train": "training", "val": "validation"}[census["split"].iloc[0]]
    ax.set(xlabel="step", ylim=(0, 1), xlim=(edges[0], edges[-1]), ylabel=f"share of units, {windows} windows")
    ax.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1)


def _edges(steps: pd.Index) -> np.ndarray:
    """Return where the cells around ``steps`` begin and end: half way to the next one."""
    places = steps.to_numpy(float)
    if len(places) == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    middles = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - middles[0]], middles, [2 * places[-1] - middles[-1]]])


def _fan(ax: Axes, forecast: Forecast, number: int, num_paths: int) -> None:
    windows, horizon = forecast.windows, forecast.mean.shape[1]
    past = _past(forecast, number)[-SHOWN_PAST * horizon :]
    steps = np.arange(1, horizon + 1)
    ax.plot(np.arange(1 - len(past), 1), past, color=GREY, lw=1, label="context")
    for low, high, alpha, label in ((0.05, 0.95, 0.18, "90 %"), (0.25, 0.75, 0.32, "50 %")):
        band = _level(forecast, low)[number], _level(forecast, high)[number]
        ax.fill_between(steps, *band, color=BLUE, alpha=alpha, lw=0, label=label)
    for draw in range(min(num_paths, len(forecast.paths))):
        ax.plot(
            steps,
            forecast.paths[draw, number].numpy(),
            color=BLUE,
            lw=0.6,
            alpha=0.6,
            label=None if draw else "joint paths",
        )
    ax.plot(steps, _level(forecast, 0.5)[number], color=BLUE, lw=1.6, label="median")
    if windows.known:
        ax.plot(steps, truth(windows.select([number]))[0].numpy(), color=INK, lw=1.2, label="truth")
    ax.axvline(0.5, color=GREY, lw=0.6)


def _origin(windows: Windows, number: int) -> str:
    """Name a window: its series and, where there are dates, the first one forecast."""
    name, first = windows.panel.names[int(windows.series[number])], windows.timestamps(number)[0]
    return f"{name}, from {first:%d %b %Y}" if isinstance(first, pd.Timestamp) else f"{name}, from {first}"


def _past(forecast: Forecast, number: int) -> np.ndarray:
    window = forecast.windows.select([number])
    mean, deviation = window.scale()
    past: np.ndarray = (mean + deviation * window[:].context[:, -1]).numpy()[0]
    return past


def _level(forecast: Forecast, level: float) -> np.ndarray:
    if level not in forecast.levels:
        raise ValueError(f"the picture needs the quantile at {level}, the forecast has {forecast.levels}")
    values: np.ndarray = forecast.quantiles[forecast.levels.index(level)].numpy()
    return values


def _grid(count: int, columns: int, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(9.5, 0.6 + height * rows), layout="constrained", dpi=150)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    return figure, axes
