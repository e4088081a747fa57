"""Forecasts as fans."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eve_pyro.data import Windows
from eve_pyro.infer.forecast import Forecast, truth
from eve_pyro.plots.style import BLUE, GREY, INK, ORANGE, grid, legend_below, plain

SHOWN_PAST = 2  # horizons of context before a forecast


def fan_chart(forecast: Forecast, twin: Forecast | None = None, num_paths: int = 3) -> Figure:
    """Draw each window of ``forecast``: the end of its context, the truth, median, 50 and 90 % bands, some joint paths.

    The 90 % band of a ``twin`` is outlined over it. Levels 0.05, 0.25, 0.5, 0.75 and 0.95 must be in the forecast.
    """
    count = len(forecast)
    columns = 3 if count == 3 else min(count, 2)
    figure, axes = grid(count, columns)
    for number, ax in enumerate(axes):
        _fan(ax, forecast, number, num_paths)
        if twin is not None:
            steps = np.arange(1, twin.mean.shape[1] + 1)
            for level in (0.05, 0.95):
                label = "twin, 90 %" if level == 0.05 else None
                ax.plot(steps, _level(twin, level)[number], color=ORANGE, lw=1, ls="--", label=label)
        ax.set_title(_origin(forecast.windows, number), fontsize=9)
    legend_below(figure, *axes[0].get_legend_handles_labels())
    for ax in axes[-columns:]:
        ax.set_xlabel("steps from the forecast's origin")
    for ax in axes[::columns]:
        ax.set_ylabel("value, in the data's units")
    return figure


def _fan(ax: Axes, forecast: Forecast, number: int, num_paths: int) -> None:
    windows, horizon = forecast.windows, forecast.mean.shape[1]
    past = _past(forecast, number)[-SHOWN_PAST * horizon :]
    steps = np.arange(1, horizon + 1)
    ax.plot(np.arange(1 - len(past), 1), past, color=GREY, lw=1, label="context")
    for low, high, alpha, label in ((0.05, 0.95, 0.18, "90 %"), (0.25, 0.75, 0.32, "50 %")):
        band = _level(forecast, low)[number], _level(forecast, high)[number]
        ax.fill_between(steps, *band, color=BLUE, alpha=alpha, lw=0, label=label)
    for draw in range(min(num_paths, len(forecast.paths))):
        path = forecast.paths[draw, number].numpy()
        ax.plot(steps, path, color=BLUE, lw=0.6, alpha=0.6, label=None if draw else "joint paths")
    ax.plot(steps, _level(forecast, 0.5)[number], color=BLUE, lw=1.6, label="median")
    if windows.known:
        ax.plot(steps, truth(windows.select([number]))[0].numpy(), color=INK, lw=1.2, label="truth")
    ax.axvline(0.5, color=GREY, lw=0.6)


def _origin(windows: Windows, number: int) -> str:
    """Name a window: its series and, where there are dates, the first one forecast."""
    name, first = plain(windows.panel.names[int(windows.series[number])]), windows.timestamps(number)[0]
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
