"""Tables: rows of features and targets, for regression and classification, trained on like windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eve_pyro.data.longhorizon import Split
from eve_pyro.data.panel import not_finite
from eve_pyro.data.rows import Selectable
from eve_pyro.protocols import Batch


@dataclass(frozen=True)
class Table(Selectable):
    """N rows of d features and q targets: ``table[i]`` is a ``Batch`` for a list, a slice or an array of positions.

    ``context`` (N, 1, d) holds the standardised features. ``future`` (N, q) holds the standardised targets, so that
    ``mean + deviation * future`` is in the units of the data; or, in the order of ``classes``, the number of each row's
    class, with mean 0 and deviation 1. ``names`` are the features, ``targets`` the targets; ``mean`` and ``deviation``
    are (q,); ``classes`` is empty for regression.
    """

    context: Tensor
    future: Tensor
    names: tuple[str, ...]
    targets: tuple[str, ...]
    mean: Tensor
    deviation: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.context)

    def _gather(self, rows: slice | Tensor) -> Batch:
        return Batch(self.context[rows], self.future[rows])

    def _take(self, rows: slice | Tensor) -> Self:
        return replace(self, context=self.context[rows], future=self.future[rows])


class TableSplits(NamedTuple):
    """Rows for training, validation and testing."""

    train: Table
    validation: Table
    test: Table


def make_table(
    frame: pd.DataFrame,
    target: str | Sequence[str],
    classify: bool = False,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> TableSplits:
    """Shuffle the rows of ``frame`` by ``seed``, split them and standardise them on the training rows.

    All columns but ``target`` are features and must hold finite numbers. A feature that is constant on the training
    rows is centred and not scaled: it is 0 there. ``classify`` takes the values of the one target column, numbers or
    names, for classes, numbered in sorted order over all rows. Raises ValueError, naming the column and the row, for
    what cannot be a feature or a target, for fractions that are none, and for fewer rows than three splits need.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    frame = frame.set_axis([str(column) for column in frame.columns], axis="columns")
    names = _check_columns(frame, targets, classify)
    bounds = Split(validation=validation, test=test).bounds(len(frame))
    parts = np.split(np.random.default_rng(seed).permutation(len(frame)), [bounds.train, bounds.validation])
    sizes = [len(part) for part in parts]
    if sizes[0] < 2 or min(sizes) < 1:
        raise ValueError(
            f"{len(frame)} rows are too few: they split into {sizes[0]} for training, {sizes[1]} for validation and "
            f"{sizes[2]} for testing"
        )
    features = np.stack([_numbers(frame[name], name, "encode it as numbers") for name in names], 1)
    features, _, _ = _standardised(features, names, parts[0])
    classes: tuple[str, ...] = ()
    if classify:
        future, classes = _class_numbers(frame[targets[0]], targets[0])
        mean, deviation = np.zeros(1), np.ones(1)
    else:
        columns = [_numbers(frame[name], name, "for classes, set classify=True") for name in targets]
        future, mean, deviation = _standardised(np.stack(columns, 1), targets, parts[0], constant=False)
    arrays = (features[:, None], future, mean, deviation)
    context, y, loc, scale = (torch.from_numpy(values.astype(np.float32)) for values in arrays)
    whole = Table(context, y, names, targets, loc, scale, classes)
    return TableSplits(*(whole.select(torch.from_numpy(part)) for part in parts))


def _check_columns(frame: pd.DataFrame, targets: tuple[str, ...], classify: bool) -> tuple[str, ...]:
    """Return the names of the features; ValueError unless every column has a part to play."""
    _check_once(list(frame.columns))
    _check_once(list(targets))
    missing = [name for name in targets if name not in frame.columns]
    if missing:
        raise ValueError(f"no target column {missing[0]!r}; found: {', '.join(frame.columns)}")
    if not targets:
        raise ValueError("name at least one target column")
    if classify and len(targets) > 1:
        raise ValueError(f"classes come from one target column, not from {len(targets)} ({', '.join(targets)})")
    names = tuple(name for name in frame.columns if name not in targets)
    if not names:
        raise ValueError("the table has no features: every column is a target")
    return names


def _check_once(names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} occurs twice: give each column a name of its own")


def _numbers(column: pd.Series, name: str, otherwise: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"column {name!r} holds no numbers but {column.dtype}: {otherwise}")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if bad := not_finite(values):
        row, kind, count = bad
        raise ValueError(f"column {name!r}, row {row}: {kind} value, {count} in all; fill them or leave their rows out")
    return values


def _standardised(
    values: np.ndarray, names: Sequence[str], train: np.ndarray, constant: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the columns standardised on the rows ``train``, their mean and deviation there.

    A constant column has deviation 1 or, where not ``constant``, is refused. So is a column too large for float32.
    """
    rows = values[train]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = rows.mean(0), rows.std(0)
        still = deviation <= 1e-12 * np.abs(rows).max(0)  # rounding makes a deviation of equal numbers not quite 0
        mean, deviation = np.where(still, rows[0], mean), np.where(still, 1.0, deviation)
        scaled = ((values - mean) / deviation).astype(np.float32)
    lost = ~(np.isfinite(deviation) & np.isfinite(scaled).all(0))
    for column, name in enumerate(names):
        if still[column] and not constant:
            raise ValueError(f"target {name!r} is constant ({rows[0, column]:g}) on its {len(rows)} training rows")
        if lost[column]:
            raise ValueError(
                f"column {name!r} has values too large to scale (up to {np.abs(values[:, column]).max():g})"
            )
    return scaled, mean, deviation


def _class_numbers(column: pd.Series, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the number (N, 1) of each row's class, and the classes' names."""
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise ValueError(f"column {name!r}, row {row}: missing class; leave the row out or give the class a name")
    # pandas reads large files in parts, and may leave 1 and "1" in one column of objects
    codes, found = pd.factorize(column.astype(str) if column.dtype == object else column, sort=True)
    if len(found) < 2:
        raise ValueError(f"target {name!r} has one class only ({found[0]}): nothing to learn")
    return codes[:, None], tuple(str(value) for value in found)


class Source(NamedTuple):
    """A known data set: its name at OpenML, its columns, how its target's name begins, and that of another target."""

    openml: str
    columns: str
    target: tuple[str, ...]
    other: tuple[str, ...] = ()


SOURCES = {
    "boston": Source("boston", "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT MEDV", ("medv",)),
    "concrete": Source(
        "Concrete_Data",
        "cement slag ash water superplasticizer coarse fine age strength",
        ("strength", "compressivestrength", "concretecompressivestrength"),
    ),
    "energy": Source(
        "energy-efficiency", "X1 X2 X3 X4 X5 X6 X7 X8 Y1 Y2", ("y1", "heatingload"), ("y2", "coolingload")
    ),
}
BUNDLED = {"diabetes": False, "digits": True}  # in scikit-learn itself, and whether the target is a class


def load_table(name: str, path: str | Path | None = None) -> tuple[pd.DataFrame, str, bool]:
    """Return a known data set as ``make_table`` takes it: the frame, the name of its target, and ``classify``.

    ``diabetes`` and ``digits`` come with scikit-learn. ``boston``, ``concrete`` and ``energy`` (heating load; cooling
    load is left out) are read from the CSV file ``path``, or fetched from OpenML. A file may lack a row of names if it
    has UCI's columns; cells are parted by commas, or by blanks as in UCI's housing.data; rows and columns without any
    entry, which spreadsheets leave behind, are skipped. The target is found by its name, else it is the last column.
    Raises ValueError for an unknown name, and where scikit-learn, the network, the file or the target is missing.
    """
    if name in BUNDLED:
        if path is not None:
            raise ValueError(f"{name!r} comes with scikit-learn and is read from no file: leave out path")
        return _bundled(name), "target", BUNDLED[name]
    if name not in SOURCES:
        raise ValueError(f"no data set is called {name!r}: choose {', '.join([*BUNDLED, *SOURCES])}")
    source = SOURCES[name]
    frame = _from_openml(name, source) if path is None else _from_file(Path(path), name, source)
    frame = pd.DataFrame({column: _as_numbers(frame[column], column) for column in frame.columns})
    target, other = _begins(frame, source.target), _begins(frame, source.other)
    if target is None and source.other:  # the last column may be the other target
        raise ValueError(f"no target of {name!r} among {', '.join(frame.columns)}: call it {source.target[0]!r}")
    return (frame if other is None else frame.drop(columns=other)), target or frame.columns[-1], False


def _datasets(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError(f"{name!r} comes by way of scikit-learn: pip install 'eve_pyro[tabular]'") from None
    return datasets


def _bundled(name: str) -> pd.DataFrame:
    datasets = _datasets(name)
    if name == "digits":
        return datasets.load_digits(as_frame=True).frame
    return datasets.load_diabetes(as_frame=True, scaled=False).frame  # scaled, its features have seen the test rows


def _from_openml(name: str, source: Source) -> pd.DataFrame:
    try:
        return _datasets(name).fetch_openml(source.openml, version=1, as_frame=True).frame
    except OSError as error:
        raise ValueError(f"cannot fetch {name!r} from OpenML ({error}): pass path, a CSV file of it") from None


def _from_file(path: Path, name: str, source: Source) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            separator = "," if "," in file.readline() else r"\s+"
        cells = pd.read_csv(path, sep=separator, header=None, dtype=str, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' own parsing errors are ValueErrors
        raise ValueError(f"cannot read {path} as CSV: {str(error).splitlines()[0]}") from None
    cells = cells.dropna(how="all").dropna(axis="columns", how="all")
    if min(cells.shape) < 2:
        raise ValueError(f"{path.name} holds no table: write rows of numbers, separated by commas")
    first, known = cells.iloc[0], source.columns.split()
    numbers = pd.to_numeric(first, errors="coerce").notna()
    nameless = numbers | first.isna()
    if numbers.all():
        names = known
        if len(first) != len(known):
            raise ValueError(
                f"{path.name} has {len(first)} columns without names, {name!r} has {len(known)}: add a row of names"
            )
    elif nameless.any():
        raise ValueError(f"{path.name}: the first row has names, but none for column {first.index[nameless][0]}")
    else:
        names, cells = [str(column).strip() for column in first], cells.iloc[1:]
        _check_once(names)
    return cells.set_axis(names, axis="columns").reset_index(drop=True)


def _as_numbers(column: pd.Series, name: str) -> pd.Series:
    """Read the numbers of a column of text, or of categories: OpenML calls columns of few numbers nominal."""
    numbers = pd.to_numeric(column.astype(object), errors="coerce")
    bad = numbers.isna() & column.notna()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"column {name!r}, row {row}: {column.iloc[row]!r} is no number")
    return numbers


def _begins(frame: pd.DataFrame, beginnings: tuple[str, ...]) -> str | None:
    """Return the first column whose name, in small letters and digits only, begins so."""
    plain = ["".join(filter(str.isalnum, column.lower())) for column in frame.columns]
    return next((name for name, short in zip(frame.columns, plain, strict=True) if short.startswith(beginnings)), None)
