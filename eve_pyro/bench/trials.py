"""Trainings to compare, one row each in a table that an interrupted comparison goes on with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro.bench.rows import Job, Say, run_jobs
from eve_pyro.builder import build
from eve_pyro.config import Config, to_toml
from eve_pyro.control.persistence import ArPenalty
from eve_pyro.control.steering import MOVES_ROWS
from eve_pyro.data import Panel
from eve_pyro.diagnostics.census import final_census
from eve_pyro.infer.fit import fit
from eve_pyro.infer.programs import evaluating
from eve_pyro.infer.scores import evaluate
from eve_pyro.infer.units import unit_table
from eve_pyro.runs import windows_of

CENSUS_KEYS = ("inside_mass", "too_low", "too_high", "living", "dead", "active", "kl", "energy")


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
    written as they come. Raises ValueError as ``run_jobs`` does, before the first training also for options that
    contradict each other or the data.
    """
    return run_jobs([_job(panel, trial, num_draws) for trial in trials], table, say)


def _job(panel: Panel, trial: Trial, num_draws: int) -> Job:
    config = trial.config
    return Job(
        {**trial.labels, "seed": config.training.seed},
        fingerprint(config, panel, num_draws),
        settings_of(config, panel, num_draws),
        rehearse=lambda: rehearse(panel, config),
        run=lambda: _run(panel, config, num_draws),
    )


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


def rehearse(panel: Panel, config: Config) -> None:
    """Raise ValueError now for what would fail once the training's turn comes."""
    train, pair = windows_of(panel, config).train, build(config)
    config.control.check(config.training.steps(len(train)))
    if config.control.regime in MOVES_ROWS:
        pair.guide.unit_rows()  # says why it has none
    with evaluating(pair.model, pair.guide, config.training.seed):
        pair.elbo.loss(pair.model, pair.guide, *train[:2])
        if config.control.lambda_ar:
            ArPenalty(config.control.lambda_ar, config.control.ar_phi)(pair.elbo.terms)  # says where there is no path


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
