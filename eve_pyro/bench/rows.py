"""A table of runs, one row each in a CSV file: written as they come, never half, and taken up where it was left."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

Say = Callable[[str], None]
LAST = ("fingerprint", "settings")  # the last columns: a row that was cut short lacks a part of them
MARKS = (*LAST, "checksum")  # text, also where all their digits are decimal


@dataclass(frozen=True)
class Job:
    """One row to be had: ``labels`` name it, ``seed`` among them.

    ``mark`` is a checksum of all that decides the row, ``settings`` of the same without the seed. ``rehearse`` raises
    ValueError for what ``run``, which returns the row's figures, would fail of after a while.
    """

    labels: Mapping[str, Any]
    mark: str
    settings: str
    rehearse: Callable[[], object]
    run: Callable[[], dict[str, Any]]


def run_jobs(jobs: Sequence[Job], table: Path, say: Say = print) -> pd.DataFrame:
    """Run every job that ``table`` has no row of yet, and return these jobs' rows in their order.

    Rows are written as they come, under a lock, so that several processes may write into one table; a job that another
    process has done meanwhile is left out. Raises ValueError for a table with rows of the same labels, of any seed, and
    other settings, which is left as it is, before the first run for what a rehearsal refuses, and for a folder that
    cannot be written to.
    """
    _check_folder(table.parent)
    done = read_rows(table)
    for job in jobs:
        _check_alike(done, job, table)
    todo = [job for job in jobs if not len(_rows_of(done, job))]
    for job in todo:
        job.rehearse()
    for count, job in enumerate(todo, 1):
        if len(_rows_of(read_rows(table), job)):
            continue
        say(f"{count} of {len(todo)}: {' '.join(f'{name}={value}' for name, value in job.labels.items())}")
        row = {**job.labels, **job.run(), "fingerprint": job.mark, "settings": job.settings}
        _append(table, job, row)
        shown = {name.replace("_", " "): row[name] for name in ("crps", "joint_log_score") if isfinite(row[name])}
        say(f"  {', '.join(f'{name} {value:.4f}' for name, value in shown.items())}, {row['seconds']:.0f} s")
    done = read_rows(table)
    return done.loc[[_rows_of(done, job)[-1] for job in jobs]].reset_index(drop=True)


def read_rows(table: Path) -> pd.DataFrame:
    """Return the rows of a table, none where there is no file.

    Raises ValueError for a file that is no such table, or has a row that was cut short.
    """
    if not table.exists():
        return pd.DataFrame()
    try:
        rows = pd.read_csv(table, dtype=dict.fromkeys(MARKS, str))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {table}: {error}") from None
    if not {"seed", "fingerprint", "crps"} <= set(rows):
        raise ValueError(f"{table} is no table of a comparison: choose another --out, or move it away")
    cut = rows[["seed", "fingerprint"]].isna().any(axis=1)
    for mark in {*LAST} & set(rows):
        lengths = rows[mark].fillna("").str.len()
        cut = cut | ((lengths > 0) & (lengths < lengths.max()))
    if cut.any():
        line = int(cut.to_numpy().argmax()) + 2
        raise ValueError(f"{table}, line {line}: the row was cut short; take it out, and its run is done again")
    return rows


def write_rows(table: Path, rows: pd.DataFrame) -> None:
    """Write all rows at once, so that an interruption leaves the old file or the new one."""
    table.parent.mkdir(parents=True, exist_ok=True)
    half = table.with_suffix(".part")
    rows[sorted(rows, key=lambda name: name in LAST)].to_csv(half, index=False)  # a stable sort
    half.replace(table)


def _append(table: Path, job: Job, row: dict[str, Any]) -> None:
    """Add a row to what the table holds by now, unless somebody else has added it."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_suffix(".lock")):
        rows = read_rows(table)
        if not len(_rows_of(rows, job)):
            write_rows(table, pd.concat([rows, pd.DataFrame([row])], ignore_index=True))


def _labelled(rows: pd.DataFrame, labels: Mapping[str, Any]) -> pd.Series:
    """Say of each row whether it has these labels; a number read back may be written otherwise than it was named."""
    found = pd.Series(not rows.empty and set(labels) <= set(rows), index=rows.index, dtype=bool)
    for name, value in labels.items() if found.any() else ():
        number = pd.to_numeric(pd.Series([value]), errors="coerce")[0]
        found &= (rows[name].astype(str) == str(value)) | (pd.to_numeric(rows[name], errors="coerce") == number)
    return found


def _rows_of(rows: pd.DataFrame, job: Job) -> pd.Index:
    """Return where ``rows`` hold a job."""
    found = _labelled(rows, job.labels)
    return rows.index[found & (rows["fingerprint"] == job.mark)] if found.any() else rows.index[:0]


def _check_alike(rows: pd.DataFrame, job: Job, table: Path) -> None:
    """Raise ValueError where rows of these labels, of whichever seed, were made with other settings.

    Rows of an older table do not know their settings: of those only the ones of the same seed can be told apart.
    """
    variant = rows[_labelled(rows, {name: value for name, value in job.labels.items() if name != "seed"})]
    known = variant["settings"].notna() if "settings" in variant else pd.Series(False, index=variant.index)
    other = variant[known & (variant["settings"] != job.settings)] if known.any() else variant[:0]
    old = variant[~known & _labelled(variant, job.labels)]
    if len(old) and job.mark not in set(old["fingerprint"]):
        other = pd.concat([other, old])
    if len(other):
        found = {**job.labels, "seed": other["seed"].iloc[0]}
        raise ValueError(
            f"{table} holds {' '.join(f'{k}={v}' for k, v in found.items())} with other settings or other data, "
            "or by a version with other options: choose another --out, or move it away"
        )


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that is a file, or that cannot be made because something above it is one."""
    above = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is no folder: choose another --out, or move it away")
    if not os.access(above, os.W_OK):
        raise ValueError(f"cannot write into {above}: choose another --out")
