"""Trainings to compare, one row each in a CSV file that an interrupted comparison goes on with."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro.builder import build
from eve_pyro.config import Config, to_toml
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
    """Train and score every trial that ``table`` does not hold yet, and return all rows of these trials.

    A row holds the labels, ``seed``, the test scores (``num_draws`` joint paths a window), the census of validation and
    test at the end of training, ``epoch`` (the one kept), ``seconds`` of training and a ``fingerprint`` of the
    configuration and the data. Rows are written as they come. Raises ValueError for a table with rows of the same
    labels and another fingerprint, which is left as it is, and before the first training for options that contradict
    each other or the data.
    """
    done = read_rows(table)
    wanted = [{**trial.labels, "seed": trial.config.training.seed} for trial in trials]
    marks = [fingerprint(trial.config, panel, num_draws) for trial in trials]
    todo = [i for i, labels in enumerate(wanted) if not _holds(done, labels, marks[i], table)]
    for i in todo:
        _rehearse(panel, trials[i].config)
    for count, i in enumerate(todo, 1):
        say(f"{count} of {len(todo)}: {' '.join(f'{name}={value}' for name, value in wanted[i].items())}")
        row = wanted[i] | _run(panel, trials[i].config, num_draws) | {"fingerprint": marks[i]}
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
        write_rows(table, done)
        say(f"  crps {row['crps']:.4f}, joint log score {row['joint_log_score']:.4f}, {row['seconds']:.0f} s")
    return done[done["fingerprint"].isin(marks)].reset_index(drop=True)


def fingerprint(config: Config, panel: Panel, num_draws: int) -> str:
    """Return a short checksum of all that decides a row: the configuration, the data, the draws."""
    training = replace(config.training, progress=True, accelerator="cpu")  # neither changes what is learned
    digest = hashlib.sha256(f"{to_toml(replace(config, training=training))}{num_draws}".encode())
    for name, values in zip(panel.names, panel.values, strict=True):
        digest.update(name.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:12]


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


def _holds(rows: pd.DataFrame, labels: Mapping[str, Any], mark: str, table: Path) -> bool:
    if rows.empty or not set(labels) <= set(rows):
        return False
    same = pd.concat([rows[name].astype(str) == str(value) for name, value in labels.items()], axis=1).all(axis=1)
    if same.any() and mark not in set(rows.loc[same, "fingerprint"]):
        raise ValueError(
            f"{table} holds {' '.join(f'{k}={v}' for k, v in labels.items())} with other settings or other data: "
            "choose another --out, or move it away"
        )
    return bool(same.any())


def _rehearse(panel: Panel, config: Config) -> None:
    """Raise ValueError now for what would fail once the training's turn comes."""
    train, pair = windows_of(panel, config).train, build(config)
    config.control.check(config.training.steps(len(train)))
    with evaluating(pair.model, pair.guide, config.training.seed):
        pair.elbo.loss(pair.model, pair.guide, *train[:2])


def _run(panel: Panel, config: Config, num_draws: int) -> dict[str, Any]:
    windows = windows_of(panel, config)
    pair = build(config)
    done = fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=config.control)
    progress = config.training.progress
    scores = evaluate(pair.model, pair.guide, windows.test, num_draws, seed=config.training.seed, progress=progress)
    _, test = final_census(unit_table(pair.model, pair.guide, windows.test.at_most(2048)), done.tables["census"])
    last = done.history.iloc[-1].to_dict() | test
    census = {f"{split}_{key}": last[f"{split}_{key}"] for split in ("val", "test") for key in CENSUS_KEYS}
    return {**scores, **census, "epoch": done.best_epoch + 1, "seconds": round(done.seconds, 1)}
