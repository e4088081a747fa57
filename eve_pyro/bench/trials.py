"""Trainings to compare, one row each in a CSV file that an interrupted comparison goes on with."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro.builder import build
from eve_pyro.config import Config, to_toml
from eve_pyro.control.steering import MOVES_ROWS
from eve_pyro.data import Panel
from eve_pyro.diagnostics.census import final_census
from eve_pyro.infer.fit import fit
from eve_pyro.infer.programs import evaluating
from eve_pyro.infer.scores import evaluate
from eve_pyro.infer.units import unit_table
from eve_pyro.runs import windows_of

CENSUS_KEYS = ("inside_mass", "too_low", "too_high", "living", "dead", "active", "kl", "energy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One training: ``labels`` say what was swapped, ``config`` everything, its seed included."""

    labels: Mapping[str, Any]
    config: Config


def run_trials(panel: Panel, trials: Sequence[Trial], table: Path, num_draws: int, say: Say = print) -> pd.DataFrame:
    """Train and score every trial that ``table`` does not hold yet, and return these trials' rows in their order.

    A row holds the labels, ``seed``, the test scores (``num_draws`` joint paths a window), the census of validation and
    test at the end of training, whether its KL is sampled (``kl_sampled``), ``epoch`` (the one kept), ``seconds`` of
    training, a ``fingerprint`` of the configuration and the data, and ``settings``, the same without the seed. Rows are
    written as they come. Raises ValueError for a table with rows of the same labels, of any seed, and other settings,
    which is left as it is, and before the first training for options that contradict each other or the data, and for a
    folder that cannot be written to.
    """
    _check_folder(table.parent)
    done = read_rows(table)
    wanted = [{**trial.labels, "seed": trial.config.training.seed} for trial in trials]
    marks = [fingerprint(trial.config, panel, num_draws) for trial in trials]
    settings = [settings_of(trial.config, panel, num_draws) for trial in trials]
    for i, labels in enumerate(wanted):
        _check_alike(done, labels, marks[i], settings[i], table)
    todo = [i for i, labels in enumerate(wanted) if not len(_rows_of(done, labels, marks[i]))]
    for i in todo:
        rehearse(panel, trials[i].config)
    for count, i in enumerate(todo, 1):
        say(f"{count} of {len(todo)}: {' '.join(f'{name}={value}' for name, value in wanted[i].items())}")
        row = wanted[i] | _run(panel, trials[i].config, num_draws) | {"fingerprint": marks[i], "settings": settings[i]}
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
        write_rows(table, done)
        say(f"  crps {row['crps']:.4f}, joint log score {row['joint_log_score']:.4f}, {row['seconds']:.0f} s")
    chosen = [_rows_of(done, labels, mark)[-1] for labels, mark in zip(wanted, marks, strict=True)]
    return done.loc[chosen].reset_index(drop=True)


def fingerprint(config: Config, panel: Panel, num_draws: int) -> str:
    """Return a short checksum of all that decides a row: the configuration, the data, the draws."""
    training = replace(config.training, progress=True, accelerator="cpu")  # neither changes what is learned
    digest = hashlib.sha256(f"{to_toml(replace(config, training=training))}{num_draws}".encode())
    for name, values in zip(panel.names, panel.values, strict=True):
        digest.update(name.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:12]


def settings_of(config: Config, panel: Panel, num_draws: int) -> str:
    """Return the checksum of all that decides a row but its seed."""
    return fingerprint(replace(config, training=replace(config.training, seed=0)), panel, num_draws)


def read_rows(table: Path) -> pd.DataFrame:
    """Return the rows of a table, none where there is no file; ValueError for a file that is no such table."""
    if not table.exists():
        return pd.DataFrame()
    try:
        rows = pd.read_csv(table)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {table}: {error}") from None
    if not {"seed", "fingerprint", "crps"} <= set(rows):
        raise ValueError(f"{table} is no table of a comparison: choose another --out, or move it away")
    return rows


def write_rows(table: Path, rows: pd.DataFrame) -> None:
    """Write all rows at once, so that an interruption leaves the old file or the new one."""
    table.parent.mkdir(parents=True, exist_ok=True)
    half = table.with_suffix(".part")
    rows.to_csv(half, index=False)
    half.replace(table)


def _labelled(rows: pd.DataFrame, labels: Mapping[str, Any]) -> pd.Series:
    """Say of each row whether it has these labels; a number read back may be written otherwise than it was named."""
    found = pd.Series(not rows.empty and set(labels) <= set(rows), index=rows.index, dtype=bool)
    for name, value in labels.items() if found.any() else ():
        number = pd.to_numeric(pd.Series([value]), errors="coerce")[0]
        found &= (rows[name].astype(str) == str(value)) | (pd.to_numeric(rows[name], errors="coerce") == number)
    return found


def _rows_of(rows: pd.DataFrame, labels: Mapping[str, Any], mark: str) -> pd.Index:
    """Return where ``rows`` hold a trial."""
    found = _labelled(rows, labels)
    return rows.index[found & (rows["fingerprint"] == mark)] if found.any() else rows.index[:0]


def _check_alike(rows: pd.DataFrame, labels: Mapping[str, Any], mark: str, settings: str, table: Path) -> None:
    """Raise ValueError where rows of these labels, of whichever seed, were trained with other settings.

    Rows of an older table do not know their settings: of those only the ones of the same seed can be told apart.
    """
    variant = rows[_labelled(rows, {name: value for name, value in labels.items() if name != "seed"})]
    known = variant["settings"].notna() if "settings" in variant else pd.Series(False, index=variant.index)
    other = variant[known & (variant["settings"] != settings)] if known.any() else variant[:0]
    old = variant[~known & _labelled(variant, labels)]
    if len(old) and mark not in set(old["fingerprint"]):
        other = pd.concat([other, old])
    if len(other):
        found = {**labels, "seed": other["seed"].iloc[0]}
        raise ValueError(
            f"{table} holds {' '.join(f'{k}={v}' for k, v in found.items())} with other settings or other data: "
            "choose another --out, or move it away"
        )


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that is a file, or that cannot be made because something above it is one."""
    above = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is no folder: choose another --out, or move it away")
    if not os.access(above, os.W_OK):
        raise ValueError(f"cannot write into {above}: choose another --out")


def rehearse(panel: Panel, config: Config) -> None:
    """Raise ValueError now for what would fail once the training's turn comes."""
    train, pair = windows_of(panel, config).train, build(config)
    config.control.check(config.training.steps(len(train)))
    if config.control.regime in MOVES_ROWS:
        pair.guide.unit_rows()  # says why it has none
    with evaluating(pair.model, pair.guide, config.training.seed):
        pair.elbo.loss(pair.model, pair.guide, *train[:2])


def _run(panel: Panel, config: Config, num_draws: int) -> dict[str, Any]:
    windows = windows_of(panel, config)
    pair = build(config)
    done = fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=config.control)
    progress = config.training.progress
    scores = evaluate(pair.model, pair.guide, windows.test, num_draws, seed=config.training.seed, progress=progress)
    table = unit_table(pair.model, pair.guide, windows.test.at_most(2048))
    _, test = final_census(table, done.tables["census"])
    last = done.history.iloc[-1].to_dict() | test
    census = {f"{split}_{key}": last[f"{split}_{key}"] for split in ("val", "test") for key in CENSUS_KEYS}
    sampled = {"kl_sampled": bool(table["sampled"].any())}
    return {**scores, **census, **sampled, "epoch": done.best_epoch + 1, "seconds": round(done.seconds, 1)}
