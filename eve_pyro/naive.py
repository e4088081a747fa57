"""The forecasts everybody can make: repeat the last value, repeat the last season."""

import torch
from torch import Tensor

from eve_pyro import metrics
from eve_pyro.data import Windows
from eve_pyro.data.panel import season_length


def repeat_last(windows: Windows, context: Tensor) -> Tensor:
    """Return the last value of each ``context`` (B, T, L) for every step, (1, B, H)."""
    return context[None, :, -1, -1:].expand(1, -1, windows.horizon)


def seasonal_naive(windows: Windows, context: Tensor) -> Tensor:
    """Return the last season of each ``context``, repeated over the horizon, (1, B, H).

    The season is a day of hours, a week of days, a year of weeks or months; where there is none, or the context is
    shorter, this repeats the last value.
    """
    season = season_length(windows.panel.index[0]) or 1
    season = season if season <= windows.context_length else 1
    steps = torch.arange(windows.horizon) % season - season
    return context[None, :, -1, steps]


def naive_scores(windows: Windows, batch_size: int = 1024) -> dict[str, dict[str, float | None]]:
    """Score both as point forecasts: CRPS is the absolute error, and there is no density or interval to score."""
    result: dict[str, dict[str, float | None]] = {}
    for name, rule in {"repeat_last": repeat_last, "seasonal_naive": seasonal_naive}.items():
        totals = dict.fromkeys(("mse", "mae", "crps", "energy_score", "crps_mean"), 0.0)
        for context, future in windows.batches(batch_size):
            point = rule(windows, context)
            for key in totals:
                score = getattr(metrics, key)(point, future)
                totals[key] += float((score.mean(-1) if score.ndim == 2 else score).double().sum())
        empty = dict.fromkeys(("log_score", "joint_log_score", "coverage_90"), None)
        result[name] = {key: total / len(windows) for key, total in totals.items()} | empty
    return result
