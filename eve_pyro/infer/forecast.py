"""Forecasts a person can use: joint paths, mean and quantiles in the units of the data, and long frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eve_pyro.data import Windows
from eve_pyro.infer.predictive import predict, quantile
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import Guide, Model

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class Forecast:
    """The forecast of N windows, in the units of the data.

    ``paths`` (S, N, H) are joint draws, ``mean`` (N, H), ``quantiles`` (Q, N, H) at ``levels``. ``exact`` says that
    mean and quantiles are closed form; otherwise they come from a mixture over S draws of the units.
    """

    windows: Windows
    paths: Tensor
    mean: Tensor
    quantiles: Tensor
    levels: tuple[float, ...]
    exact: bool

    def __len__(self) -> int:
        return len(self.mean)

    def frame(self) -> pd.DataFrame:
        """Return one row a window and step: ``unique_id, window, ds, mean``, a column a level, and ``y`` if known."""
        windows, horizon = self.windows, self.mean.shape[1]
        names = np.array(windows.panel.names)[windows.series.numpy()]
        times = [windows.timestamps(i) for i in range(len(self))]
        columns = {
            "unique_id": names.repeat(horizon),
            "window": np.arange(len(self)).repeat(horizon),
            "ds": np.concatenate([t.to_numpy() for t in times]),
            "mean": self.mean.flatten().numpy(),
        }
        for level, values in zip(self.levels, self.quantiles, strict=True):
            columns[f"q{level:g}"] = values.flatten().numpy()
        if windows.known:
            columns["y"] = truth(windows).flatten().numpy()
        return pd.DataFrame(columns)

    def paths_frame(self) -> pd.DataFrame:
        """Return one row a draw, window and step: ``draw, unique_id, window, ds, y``."""
        base = self.frame()[["unique_id", "window", "ds"]]
        draws = len(self.paths)
        frame = pd.concat([base] * draws, ignore_index=True)
        frame.insert(0, "draw", np.arange(draws).repeat(len(base)))
        return frame.assign(y=self.paths.flatten().numpy())


def forecast(
    model: Model,
    guide: Guide,
    windows: Windows,
    num_draws: int = 100,
    levels: Sequence[float] = LEVELS,
    batch_size: int = 256,
    seed: int = 0,
) -> Forecast:
    """Forecast every window of ``windows``, ``batch_size`` at a time.

    The result holds ``num_draws * N * H`` numbers; choose windows (``every``, ``select``) before drawing many. Raises
    ValueError for no windows, no draws, or levels outside (0, 1).
    """
    if not len(windows):
        raise ValueError("there are no windows to forecast")
    device, exact = device_of(model), True
    paths, means, quantiles = [], [], []
    with evaluating(model, guide, seed):
        for batch in windows.batches(batch_size):
            prediction = predict(model, guide, batch.context.to(device), num_draws)
            exact = exact and prediction.exact
            paths.append(prediction.paths.cpu())
            components = prediction.components
            means.append((prediction.paths if components is None else components.mean).mean(0).cpu())
            quantiles.append(torch.stack([quantile(prediction, level) for level in levels]).cpu())
    mean, deviation = windows.scale()  # (N, 1)
    return Forecast(
        windows,
        paths=mean + deviation * torch.cat(paths, 1),
        mean=mean + deviation * torch.cat(means),
        quantiles=mean + deviation * torch.cat(quantiles, 1),
        levels=tuple(levels),
        exact=exact,
    )


def truth(windows: Windows) -> Tensor:
    """Return the futures of ``windows`` in the units of the data, (N, H)."""
    mean, deviation = windows.scale()
    return mean + deviation * windows[:].future
