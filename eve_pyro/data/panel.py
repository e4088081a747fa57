"""Panels: time series as they come in, checked at the door.

A ``Panel`` is a set of regular series, each with its timestamps. It is built from a long frame, a wide frame, a file or
an array; every check names the series and the row, and nothing is repaired silently.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LONG = ("unique_id", "ds", "y")


@dataclass(frozen=True)
class Panel:
    """Series of any lengths: ``names``, ``values`` and ``index`` (timestamps or whole numbers) side by side."""

    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    index: tuple[pd.Index, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("the panel holds no series")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"series {twice!r} occurs twice: give each series a name of its own")
        for name, values, index in zip(self.names, self.values, self.index, strict=True):
            _check_values(name, values, index)
            _check_index(name, index)

    def __len__(self) -> int:
        return len(self.names)

    def select(self, *names: str) -> "Panel":
        """Return the panel of these series, in this order; ValueError for one that is not there."""
        for name in names:
            if name not in self.names:
                raise ValueError(f"there is no series {name!r}; the panel holds {', '.join(self.names)}")
        rows = [self.names.index(name) for name in names]
        return Panel(names, tuple(self.values[row] for row in rows), tuple(self.index[row] for row in rows))

    @classmethod
    def from_long(cls, frame: pd.DataFrame) -> "Panel":
        """Build from a frame with columns ``unique_id, ds, y``, the rows of each series in order of time."""
        missing = [column for column in LONG if column not in frame.columns]
        if missing:
            raise ValueError(
                f"a long frame needs the columns unique_id, ds, y; missing: {', '.join(missing)}; "
                f"found: {', '.join(map(str, frame.columns))}"
            )
        _check_not_missing(frame["unique_id"], "unique_id")
        ds = _parse_times(frame["ds"], "ds")
        y = _numbers(frame["y"], "y")
        names, columns, index = [], [], []
        for name, rows in frame.groupby(frame["unique_id"].astype(str), sort=False).indices.items():
            names.append(str(name))
            columns.append(y[rows])
            index.append(ds[rows])
        return cls(tuple(names), tuple(columns), tuple(index))

    @classmethod
    def from_wide(cls, frame: pd.DataFrame) -> "Panel":
        """Build from a frame whose first column holds the timestamps and every other column one series."""
        if frame.shape[1] < 2:
            raise ValueError("a wide frame needs a column of timestamps and at least one series beside it")
        first, *names = (str(column) for column in frame.columns)
        index = _parse_times(frame.iloc[:, 0], first)
        columns = [_numbers(frame.iloc[:, i + 1], name) for i, name in enumerate(names)]
        return cls(tuple(names), tuple(columns), tuple(index for _ in names))

    @classmethod
    def from_array(cls, values: np.ndarray, names: Sequence[str] | None = None) -> "Panel":
        """Build from ``values`` (rows, series) or (rows,), with 0, 1, 2, ... for timestamps."""
        values = np.asarray(values, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2:
            raise ValueError(f"an array of series has shape (rows, series) or (rows,), not {values.shape}")
        names = tuple(names) if names is not None else tuple(f"series{i}" for i in range(values.shape[1]))
        if len(names) != values.shape[1]:
            raise ValueError(f"{values.shape[1]} series need as many names, not {len(names)}")
        index = pd.RangeIndex(len(values))
        return cls(names, tuple(values[:, i] for i in range(len(names))), tuple(index for _ in names))

    @classmethod
    def from_file(cls, path: str | Path) -> "Panel":
        """Read a CSV or Parquet file, long (columns ``unique_id, ds, y``) or wide (timestamps first)."""
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a CSV or Parquet file")
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        frame = _read(path)
        if frame.empty:
            raise ValueError(f"{path} holds no rows")
        long = {"unique_id", "ds"} <= set(map(str, frame.columns))
        build = cls.from_long if long else cls.from_wide
        try:
            return build(frame)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    def future_index(self, series: int, steps: int) -> pd.Index:
        """Return the ``steps`` timestamps that follow the last one of a series."""
        index = self.index[series]
        if isinstance(index, pd.DatetimeIndex):
            return pd.date_range(index[-1], periods=steps + 1, freq=frequency(index))[1:]
        step = index[1] - index[0]
        return pd.Index(index[-1] + step * np.arange(1, steps + 1))


def frequency(index: pd.DatetimeIndex) -> Any:
    """Return the step of a regular index: a time span, or a calendar step such as the end of a month; else None."""
    steps = np.diff(index.asi8)
    if (steps == steps[0]).all():
        return pd.Timedelta(index[1] - index[0])
    with warnings.catch_warnings():  # what comes back changes from a name to an offset, and either will do
        warnings.simplefilter("ignore")
        return pd.infer_freq(index)


def season_length(index: pd.Index) -> int | None:
    """Return the usual season of a series in steps: a day of hours, a week of days, a year of weeks or months."""
    if not isinstance(index, pd.DatetimeIndex):
        return None
    days = (index[-1] - index[0]) / pd.Timedelta(days=1) / (len(index) - 1)
    if days < 0.9:
        return max(1, round(1 / days))
    for step, season in ((1, 7), (7, 52), (30.4, 12), (91.3, 4)):
        if abs(days / step - 1) < 0.1:
            return season
    return None


def not_finite(values: np.ndarray) -> tuple[int, str, int] | None:
    """Return the first row that is missing or infinite, which of the two it is, and how many rows are; None if none."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return row, "missing" if np.isnan(values[row]) else "infinite", int(bad.sum())


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        _check_header(path)
        frame = pd.read_csv(path, low_memory=False)  # columns are read whole, not typed piece by piece
        if "unique_id" in frame:  # names stay as they are written, "050" and "NA" too
            names = pd.read_csv(path, usecols=["unique_id"], dtype=str, keep_default_na=False)["unique_id"]
            frame["unique_id"] = names.mask(names == "")
        return frame
    except ImportError:
        raise ValueError(f"reading {path.name} needs pyarrow: pip install 'eve_pyro[parquet]'") from None
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own parsing errors are of these kinds
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


def _check_header(path: Path) -> None:
    """Look at a CSV's first row before pandas renames what it finds there."""
    header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].fillna("").tolist()
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} occurs twice")
    if len(header) < 2:
        raise ValueError(f"{header[0]!r} is the only column: timestamps and at least one series, separated by commas")
    if not pd.isna(pd.to_datetime(header[0], errors="coerce", format="ISO8601")):
        raise ValueError(f"the first row holds data ({header[0]}): add a row with the names of the columns")


def _check_not_missing(column: pd.Series, name: str) -> None:
    if column.isna().any():
        raise ValueError(f"column {name!r} is empty at row {int(np.flatnonzero(column.isna())[0])}")


def _parse_times(column: pd.Series, name: str) -> pd.Index:
    _check_not_missing(column, name)
    if pd.api.types.is_integer_dtype(column):
        return pd.Index(column.to_numpy())
    if pd.api.types.is_float_dtype(column):
        raise ValueError(
            f"column {name!r} should hold timestamps (or whole numbers), not decimals such as {column.iloc[0]}"
        )
    try:
        parsed = pd.to_datetime(column, errors="coerce", format="ISO8601")  # no guessing at the order of day and month
    except ValueError:
        raise ValueError(f"column {name!r} mixes time zones: write all timestamps in one, such as UTC") from None
    if parsed.isna().any():
        row = int(np.flatnonzero(parsed.isna())[0])
        raise ValueError(
            f"column {name!r}, row {row}: cannot read {column.iloc[row]!r} as a date; write 2024-01-31 18:00"
        )
    return pd.DatetimeIndex(parsed)


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.isnan(numbers) & column.notna().to_numpy()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"column {name!r}, row {row}: {column.iloc[row]!r} is no number")
    return numbers


def _check_values(name: str, values: np.ndarray, index: pd.Index) -> None:
    if len(values) != len(index):
        raise ValueError(f"series {name!r} has {len(values)} values and {len(index)} timestamps")
    if len(values) < 3:
        raise ValueError(f"series {name!r} has only {len(values)} rows")
    if bad := not_finite(values):
        row, kind, count = bad
        raise ValueError(
            f"series {name!r}: {kind} value at row {row} ({index[row]}), {count} in all; "
            "fill or cut them before forecasting"
        )


def _check_index(name: str, index: pd.Index) -> None:
    if index.has_duplicates:
        row = int(np.flatnonzero(index.duplicated())[0])
        raise ValueError(f"series {name!r}: timestamp {index[row]} occurs twice (row {row}); keep one row a timestamp")
    ticks = index.asi8 if isinstance(index, pd.DatetimeIndex) else index.to_numpy()
    steps = np.diff(ticks)
    if (steps < 0).any():
        row = int(np.flatnonzero(steps < 0)[0]) + 1
        raise ValueError(
            f"series {name!r}: time goes back at row {row} ({index[row]} after {index[row - 1]}); sort by time"
        )
    if (steps == steps[0]).all() or (isinstance(index, pd.DatetimeIndex) and frequency(index) is not None):
        return
    usual = _most_common(steps)
    row = int(np.flatnonzero(steps != usual)[0]) + 1
    raise ValueError(
        f"series {name!r}: irregular step at row {row} ({index[row - 1]} to {index[row]}); "
        "fill the gap or resample to one step"
    )


def _most_common(steps: Iterable[int]) -> int:
    values, counts = np.unique(np.asarray(steps), return_counts=True)
    return int(values[counts.argmax()])
