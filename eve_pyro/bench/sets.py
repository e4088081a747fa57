"""The field's data sets by name, from a folder of files: ETT and the like as CSV, the large ones as datasetsforecast's.

``ETTh1`` is FOLDER/ETTh1.csv; ``ECL``, ``Traffic`` and ``Weather`` are FOLDER/ECL/df_y.csv and so on, long frames with
the columns unique_id, ds, y, also where datasetsforecast itself puts them (FOLDER/longhorizon/datasets/ECL/M/df_y.csv).
Files of datasetsforecast are standardised already: what depends on the original units, ProbTS's score, does not compare
with print for them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_pyro.data import Panel

DOWNLOADED = ("ECL", "Traffic", "Weather")
ILLNESS = ("national_illness", "ili")


@dataclass(frozen=True)
class DataSet:
    """A set by its ``name``, with a short sha256 ``checksum`` of its file."""

    name: str
    panel: Panel
    checksum: str


def default_horizons(name: str) -> tuple[int, ...]:
    """Return the horizons that the field reports for a set."""
    return (24, 36, 48, 60) if name.lower() in ILLNESS else (96, 192, 336, 720)


def default_contexts(name: str) -> tuple[int, ...]:
    """Return the look-backs to choose among."""
    return (36, 104) if name.lower() in ILLNESS else (96, 336, 512)


def default_options(name: str) -> dict[str, Any]:
    """Return the options that every model takes on a set: 40 passes over illness are as many steps as Exchange's 4."""
    return {"epochs": 40} if name.lower() in ILLNESS else {}


def find_set(folder: Path, name: str) -> Path:
    """Return the file of a set; ValueError where there is none and it cannot be downloaded.

    ECL, Traffic and Weather are downloaded into ``folder`` by datasetsforecast where that is installed.
    """
    if (found := _local(folder, name)) is None and name in DOWNLOADED and _download(folder):
        found = _local(folder, name)
    if found is not None:
        return found
    where = f"{folder / name}.csv or {folder / name / 'df_y.csv'}"
    hint = "; pip install 'eve_pyro[sets]' lets it be downloaded there" if name in DOWNLOADED else ""
    raise ValueError(f"there is no data set {name!r}: looked for {where}{hint}")


def load_set(path: Path, name: str) -> DataSet:
    """Read the file of a set; ValueError says what is wrong with it."""
    return DataSet(name, Panel.from_file(path), checksum_of(path))


def checksum_of(path: Path) -> str:
    """Return the first twelve digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _local(folder: Path, name: str) -> Path | None:
    named = dict.fromkeys((name, name.lower()))
    below = [folder, folder / "longhorizon" / "datasets"]
    paths = [folder / f"{name}.csv", folder / f"{name}.parquet"]
    paths += [top / each / kind / "df_y.csv" for top in below for each in named for kind in ("", "M", "S")]
    return next((path for path in paths if path.is_file()), None)


def _download(folder: Path) -> bool:
    """Fetch datasetsforecast's long-horizon sets, all at once; False where the package is not installed."""
    try:
        from datasetsforecast.long_horizon import LongHorizon
    except ImportError:
        return False
    try:
        LongHorizon.download(str(folder))
    except OSError as error:  # requests' errors are OSErrors
        raise ValueError(f"cannot download the long-horizon sets into {folder}: {error}") from None
    return True
