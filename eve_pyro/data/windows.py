"""Windows: views of scaled series, cut into context and future, a batch in one gather."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eve_pyro.data.longhorizon import Split
from eve_pyro.data.panel import Panel
from eve_pyro.data.rows import Selectable
from eve_pyro.protocols import Batch

FARTHEST = 1e9  # deviations: beyond them squares and covariances in float32 are lost


@dataclass(frozen=True)
class Scaler:
    """The mean and deviation of each series' training rows, by name, in the units of the data."""

    mean: Mapping[str, float]
    deviation: Mapping[str, float]

    @classmethod
    def fit(cls, panel: Panel, split: Split) -> "Scaler":
        """Measure the training rows; ValueError for a series that is constant there."""
        mean, deviation = {}, {}
        for name, values in zip(panel.names, panel.values, strict=True):
            rows = values[: split.bounds(len(values)).train]
            with np.errstate(over="ignore", invalid="ignore"):
                mean[name], deviation[name] = float(rows.mean()), float(rows.std())
            if not np.isfinite(deviation[name]):
                raise ValueError(f"series {name!r} has values too large to scale (up to {np.abs(rows).max():g})")
            if deviation[name] <= 1e-12 * np.abs(rows).max():  # rounding makes that of equal numbers not quite 0
                raise ValueError(
                    f"series {name!r} is constant ({rows[0]:g}) on its {len(rows)} training rows: leave it out"
                )
        return cls(mean, deviation)

    def check(self) -> None:
        """Raise ValueError unless every series has a finite mean and a positive deviation."""
        if self.mean.keys() != self.deviation.keys():
            raise ValueError("mean and deviation name different series")
        for name, value in self.deviation.items():
            if not (value > 0 and np.isfinite(value) and np.isfinite(self.mean[name])):
                raise ValueError(f"the deviation of series {name!r} must be positive and finite")

    def apply(self, panel: Panel) -> list[np.ndarray]:
        """Return each series standardised, float32.

        Raises ValueError for a series never seen in training, and for values too far from those that were.
        """
        unknown = [name for name in panel.names if name not in self.mean]
        if unknown:
            raise ValueError(f"series {unknown[0]!r} was not among the training series ({', '.join(self.mean)})")
        return [self._scaled(number, panel) for number in range(len(panel))]

    def _scaled(self, number: int, panel: Panel) -> np.ndarray:
        name, values = panel.names[number], panel.values[number]
        with np.errstate(over="ignore"):
            scaled = (values - self.mean[name]) / self.deviation[name]
        far = np.abs(scaled) > FARTHEST
        if far.any():
            row = int(far.argmax())
            raise ValueError(
                f"series {name!r}: {values[row]:g} at row {row} ({panel.index[number][row]}), {int(far.sum())} in all, "
                f"is {abs(scaled[row]):.0e} deviations of the training rows from their mean: if it stands for a "
                "missing value, fill it or cut it"
            )
        return scaled.astype(np.float32)


@dataclass(frozen=True)
class Windows(Selectable):
    """N windows of a panel: ``windows[i]`` is a ``Batch`` for a list, a slice or an array of positions ``i``.

    ``flat`` holds all scaled series one after the other, and ``view`` (rows, L + H) the same memory as windows; nothing
    is copied before a batch is gathered. ``start`` and ``series`` (N,) say where each window begins in ``flat`` and
    which series it belongs to. Windows at the end of the data have no future (``known`` is False). The context is the
    last of ``path`` successive ones, ``stride`` steps apart: batches hold them all, the earliest first.
    """

    panel: Panel
    scaler: Scaler
    flat: Tensor
    start: Tensor
    series: Tensor
    context_length: int
    horizon: int
    known: bool = True
    path: int = 1
    stride: int = 1

    @property
    def reach(self) -> int:
        """Steps from a window's first row to its future: the context, and how far earlier ones reach back."""
        return self.context_length + (self.path - 1) * self.stride

    def __len__(self) -> int:
        return len(self.start)

    def _gather(self, rows: slice | Tensor) -> Batch:
        length = self.reach + (self.horizon if self.known else 0)
        steps = self.flat.unfold(0, length, 1)[self.start[rows]]
        return Batch(steps[:, : self.reach].unfold(1, self.context_length, self.stride), steps[:, self.reach :])

    def _take(self, rows: slice | Tensor) -> Self:
        return replace(self, start=self.start[rows], series=self.series[rows])

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each window's series, each (N, 1), to undo the scaling."""
        columns = [[stats[name] for name in self.panel.names] for stats in (self.scaler.mean, self.scaler.deviation)]
        mean, deviation = (torch.tensor(column)[self.series, None] for column in columns)
        return mean, deviation

    def origins(self) -> pd.Index:
        """Return each window's origin: the timestamp of the last row that its forecast sees."""
        ends = np.cumsum([len(values) for values in self.panel.values])
        owners = self.series.numpy()
        rows = self.start.numpy() - np.append(0, ends)[owners] + self.reach - 1
        return pd.Index([self.panel.index[series][row] for series, row in zip(owners, rows, strict=True)])

    def timestamps(self, window: int) -> pd.Index:
        """Return the H timestamps of a window's future."""
        series = int(self.series[window])
        lengths = [len(values) for values in self.panel.values]
        begin = int(self.start[window]) - sum(lengths[:series]) + self.reach
        if self.known:
            return self.panel.index[series][begin : begin + self.horizon]
        return self.panel.future_index(series, self.horizon)


class Splits(NamedTuple):
    """Windows for training, validation and testing."""

    train: Windows
    validation: Windows
    test: Windows


def make_windows(
    panel: Panel,
    context_length: int,
    horizon: int,
    split: Split | None = None,
    scaler: Scaler | None = None,
    path: int = 1,
    stride: int = 1,
) -> Splits:
    """Scale a panel on its training rows and cut it into windows, one starting at every row.

    A window belongs to the split that holds its whole future; its context may reach back into the split before.
    ``context_length`` and ``horizon`` are in steps; ``split`` is 70 / 10 / 20 % unless given. With ``path`` > 1 each
    window has that many successive contexts, ``stride`` steps apart. Raises ValueError for a horizon, path or stride
    below 1, a context below 2, and a series too short for one window in each split.
    """
    if context_length < 2:
        raise ValueError(f"the context needs at least 2 steps, not {context_length}")
    if horizon < 1:
        raise ValueError(f"the horizon must be at least 1 step, not {horizon}")
    reach = _reach(context_length, path, stride)
    split = split or Split()
    starts: list[list[Tensor]] = [[], [], []]
    owners: list[list[Tensor]] = [[], [], []]
    offset = 0
    for number, (name, values) in enumerate(zip(panel.names, panel.values, strict=True)):
        edges = (0, *split.bounds(len(values)))
        for part, label in enumerate(("training", "validation", "test")):
            first = max(edges[part], reach)  # the first row a future may start at
            count = edges[part + 1] - horizon + 1 - first
            if count < 1:
                raise ValueError(
                    f"series {name!r} is too short: its {label} rows ({edges[part]} to {edges[part + 1] - 1} of "
                    f"{len(values)}) hold no window of context {reach} and horizon {horizon}; shorten them"
                )
            starts[part].append(offset + first - reach + torch.arange(count))
            owners[part].append(torch.full((count,), number))
        offset += len(values)
    scaler = scaler or Scaler.fit(panel, split)
    flat = torch.from_numpy(np.concatenate(scaler.apply(panel)))
    return Splits(
        *(
            Windows(
                panel, scaler, flat, torch.cat(start), torch.cat(owner), context_length, horizon, True, path, stride
            )
            for start, owner in zip(starts, owners, strict=True)
        )
    )


def latest_windows(
    panel: Panel, context_length: int, horizon: int, scaler: Scaler, path: int = 1, stride: int = 1
) -> Windows:
    """Return one window a series whose context ends with the data and whose future is yet to come."""
    lengths, reach = [len(values) for values in panel.values], _reach(context_length, path, stride)
    for name, length in zip(panel.names, lengths, strict=True):
        if length < reach:
            raise ValueError(f"series {name!r} has {length} rows, fewer than the context of {reach}")
    flat = torch.from_numpy(np.concatenate(scaler.apply(panel)))
    start = torch.tensor(np.cumsum(lengths) - reach)
    series = torch.arange(len(panel))
    return Windows(panel, scaler, flat, start, series, context_length, horizon, False, path, stride)


def _reach(context_length: int, path: int, stride: int) -> int:
    if path < 1 or stride < 1:
        raise ValueError(f"a path has at least 1 context window and a stride of at least 1 step, not {path}, {stride}")
    return context_length + (path - 1) * stride
