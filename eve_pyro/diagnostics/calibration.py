"""Whether forecasts mean what they say: PIT values and coverage, by step of the horizon and level."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from eve_pyro import metrics
from eve_pyro.diagnostics.draws import window_labels
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.predictive import Predictive, cdf, predict
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import Guide, Model, Rows

LEVELS = (0.5, 0.8, 0.9, 0.95)


def pit_values(
    model: Model,
    guide: Guide,
    windows: Rows,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Return u = F(y_h | x) of every window and step: uniform where the marginal forecasts are calibrated (Dawid 1984).

    Columns: ``window`` (of ``Windows`` also ``series`` and ``origin``, the last timestamp seen), ``step`` (1 to H),
    ``pit`` in [0, 1]. F is the exact distribution function where the marginals are closed form; that of the mixture
    over ``num_draws`` draws of the units where they are normals or Student-t's given the units; and else the rank of y
    among the drawn paths, ties and the place within a rank at random (Czado et al. 2009), which is uniform for any
    number of draws. Raises ValueError for no windows and windows without a future.
    """
    check_futures(windows)
    parts, device = [], device_of(model)
    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device, progress, "forecasting"):
            parts.append(_pit(predict(model, guide, context, num_draws), future).cpu())
    values = torch.cat(parts)
    labels, horizon = window_labels(windows), values.shape[1]
    table = labels.loc[labels.index.repeat(horizon)].reset_index(drop=True)
    return table.assign(step=np.tile(np.arange(1, horizon + 1), len(labels)), pit=values.flatten().numpy())


def calibration_table(
    model: Model,
    guide: Guide,
    windows: Rows,
    levels: Sequence[float] = LEVELS,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Return how often central intervals cover the truth, by step and level: one row each.

    Columns: ``step`` (1 to H), ``level``, ``coverage``, the share of windows with |u - 1/2| <= level / 2 for the
    ``pit_values`` u; ``expected``, which is the level; ``excess`` = coverage - expected, negative where intervals are
    too narrow; ``windows``, how many. There is no standard error: windows that overlap are not independent.

    It judges the marginals of forecasts, prior and likelihood together: a guide that forecasts do not draw from does
    not show here, nor does dependence between steps. Raises ValueError for levels outside (0, 1), and as
    ``pit_values`` does.
    """
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"a level of coverage lies between 0 and 1, not {level}")
    pit = pit_values(model, guide, windows, num_draws, batch_size, seed, progress)
    values = torch.tensor(pit["pit"].to_numpy()).unflatten(0, (len(windows), -1))  # (N, H)
    parts = []
    for level in levels:
        coverage = metrics.coverage(values, level).mean(0).numpy()
        steps = np.arange(1, len(coverage) + 1)
        parts.append(pd.DataFrame({"step": steps, "level": level, "coverage": coverage, "expected": level}))
    table = pd.concat(parts, ignore_index=True).sort_values(["step", "level"], ignore_index=True)
    return table.assign(excess=table["coverage"] - table["expected"], windows=len(windows))


def _pit(prediction: Predictive, truth: Tensor) -> Tensor:
    """Return F(y) in double precision, (B, H)."""
    components: Any = prediction.components
    if isinstance(components, dist.Normal | dist.StudentT):
        return cdf(components, truth).double().mean(0)
    paths = prediction.paths
    below, ties = (paths < truth).sum(0), (paths == truth).sum(0)
    place = torch.rand(truth.shape, dtype=torch.float64, device=truth.device)
    return (below + place * (ties + 1)) / (len(paths) + 1)
