"""The accuracy benchmark: sets, horizons, models and seeds under one harness, a row a run."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from eve_pyro.bench.lineup import TRAINED, build_pair, config_of, train
from eve_pyro.bench.peers import PEERS, check_lengths, peer_row
from eve_pyro.bench.plan import KNOWN, Plan
from eve_pyro.bench.protocols import NAIVE, Protocol, model_scores, naive_row, scored_windows, sizes_probts
from eve_pyro.bench.rows import MARKS, Job, Say, read_rows, run_jobs
from eve_pyro.bench.sets import DataSet, default_horizons, find_set, load_set
from eve_pyro.bench.trials import fingerprint, settings_of
from eve_pyro.bench.tuning import Options, chosen_label, label_of, tried
from eve_pyro.config import Config
from eve_pyro.data import Panel
from eve_pyro.infer.programs import evaluating
from eve_pyro.infer.scores import KEYS
from eve_pyro.runs import windows_of

TABLE = "accuracy.csv"
CELL = ("protocol", "set", "horizon")
LABELS = [*CELL, "context", "model", "options", "seed"]  # which name a run
SCORED = ("mse", "mae", "crps", "val_crps")  # what every model has
WHOLE = ("horizon", "context", "seed")
WORDS = {"model": KNOWN, "protocol": get_args(Protocol)}
CHOOSER = "twin"  # whose validation CRPS, at seed 0, chooses the context of a cell


@dataclass(frozen=True)
class Cell:
    """A set at a horizon, and the ``contexts`` that fit it."""

    source: DataSet
    horizon: int
    contexts: Sequence[int]


def run_accuracy(plan: Plan, out: Path, say: Say = print) -> pd.DataFrame:
    """Run what ``out``/accuracy.csv has no row of yet, and return all of its rows.

    A row holds ``protocol, set, horizon, context, model, options, seed``, the scores of ``evaluate`` (``crps_probts``
    too under ProbTS), ``val_crps`` and ``epoch`` of the weights kept, ``seconds`` and ``cpu_seconds`` of training,
    ``parameters`` and the ``checksum`` of the set's file. Where a cell has several contexts, the twin of seed 0 is
    trained at each, and the one of the lowest ``val_crps`` serves every model; so it is, model by model, with the
    options of a plan that is to ``tune``.

    Raises ValueError before the first training for an unknown model, a set that is missing, too short, or not the one
    that rows of it were made from, and for options that contradict each other.
    """
    plan.check()
    table, cells = out / TABLE, []
    known = read_rows(table)
    check_table(known, table, {"checksum"})
    for name in plan.sets:
        source = load_set(find_set(plan.data, name), name)
        _check_same(known, source, table)
        cells += list(_cells(plan, source, say))
    for cell in cells:
        context = _chosen_context(plan, cell, table, say)
        options = {model: _chosen_options(plan, cell, context, model, table, say) for model in plan.models}
        jobs = [
            _job(plan, cell, context, model, seed, options[model])
            for model in plan.models
            for seed in (plan.seeds if model not in NAIVE else plan.seeds[:1])
        ]
        run_jobs(jobs, table, say)
    return read_rows(table)


def _cells(plan: Plan, source: DataSet, say: Say) -> Iterator[Cell]:
    for horizon in plan.horizons or default_horizons(source.name):
        fitting = []
        for context in plan.contexts_of(source.name):
            config = plan.config(source.name, horizon, context)
            try:
                windows = windows_of(source.panel, config)
            except ValueError as error:
                reason = error
                say(f"{source.name}, horizon {horizon}: context {context} is left out: {error}")
            else:
                fitting.append(context)
        if not fitting:
            raise ValueError(f"{source.name}: no context fits horizon {horizon}: {reason}")
        if plan.protocol == "probts":
            sizes_probts(scored_windows(windows.test, plan.protocol))  # refused now, not after a training
        cell = Cell(source, horizon, fitting)
        for model in plan.models:
            if model in PEERS:
                check_lengths(model, source.panel)
            for options in plan.candidates(model) if model in TRAINED else ():
                _rehearse(plan, cell, model, options)
        yield cell


def _chosen_context(plan: Plan, cell: Cell, table: Path, say: Say) -> int:
    """Return the context whose twin of seed 0 has the lowest validation CRPS, training those that are not there yet."""
    if len(cell.contexts) == 1:
        return cell.contexts[0]
    rows = run_jobs([_job(plan, cell, context, CHOOSER, 0, {}) for context in cell.contexts], table, say)
    chosen = int(rows["context"][int(rows["val_crps"].argmin())])
    say(f"{cell.source.name}, horizon {cell.horizon}: context {chosen} has the lowest validation CRPS")
    return chosen


def _chosen_options(plan: Plan, cell: Cell, context: int, model: str, table: Path, say: Say) -> Options:
    """Return the candidate that seed 0 chooses, see ``chosen_label``, training those that are not there yet."""
    candidates = plan.candidates(model)
    if len(candidates) == 1:
        return candidates[0]
    jobs: dict[str, Job] = {}
    for options in candidates:
        job = _job(plan, cell, context, tried(model), 0, options)
        jobs.setdefault(job.mark, job)  # a recipe may have a candidate's options already
    chosen = chosen_label(run_jobs(list(jobs.values()), table, say))
    say(f"{cell.source.name}, horizon {cell.horizon}: {model} takes {chosen}")
    return next(options for options in candidates if label_of(options) == chosen)


def _job(plan: Plan, cell: Cell, context: int, model: str, seed: int, options: Options) -> Job:
    source = cell.source
    config = config_of(model, plan.config(source.name, cell.horizon, context, seed, options))
    place = {"protocol": plan.protocol, "set": source.name, "horizon": cell.horizon, "context": context}

    def run() -> dict[str, Any]:
        run_one = _run_naive if model in NAIVE else _run_peer if model in PEERS else _run_model
        return run_one(model, config, source.panel, plan) | {"checksum": source.checksum}

    return Job(
        {**place, "model": model, "options": label_of(options), "seed": seed},
        fingerprint(config, source.panel, plan.num_draws),
        settings_of(config, source.panel, plan.num_draws),
        rehearse=lambda: None,  # done for all cells, before the first of them
        run=run,
    )


def _run_model(model: str, config: Config, panel: Panel, plan: Plan) -> dict[str, Any]:
    windows, training = windows_of(panel, config), config.training
    done = train(model, config, windows)
    scores = model_scores(
        done.model, done.guide, windows.test, plan.protocol, plan.num_draws, training.seed, training.progress
    )
    took = {"seconds": round(done.seconds, 1), "cpu_seconds": round(done.cpu_seconds, 1)}
    return {**scores, "val_crps": done.val_crps, "epoch": done.epoch, **took, "parameters": done.parameters}


def _run_naive(model: str, config: Config, panel: Panel, plan: Plan) -> dict[str, Any]:
    windows = windows_of(panel, config)
    scores = dict.fromkeys(KEYS, float("nan")) | {
        key: value for key, value in naive_row(model, windows.test, plan.protocol).items() if value is not None
    }
    val_crps = naive_row(model, windows.validation, "longhorizon")["crps"]
    return {**scores, "val_crps": val_crps, "epoch": 0, "seconds": 0.0, "cpu_seconds": 0.0, "parameters": 0}


def _run_peer(model: str, config: Config, panel: Panel, plan: Plan) -> dict[str, Any]:
    assert plan.peer_python is not None
    return peer_row(model, plan.peer_python, config, windows_of(panel, config), plan.protocol, plan.num_draws)


def _rehearse(plan: Plan, cell: Cell, model: str, options: Options) -> None:
    """Raise ValueError now for what would fail once the training's turn comes."""
    config = config_of(model, plan.config(cell.source.name, cell.horizon, cell.contexts[0], options=options))
    train_rows = windows_of(cell.source.panel, config).train
    try:
        pair = build_pair(model, config)
        config.control.check(config.training.steps(len(train_rows)))
        with evaluating(pair.model, pair.guide, config.training.seed):
            pair.elbo.loss(pair.model, pair.guide, *train_rows[:2])
    except ValueError as error:
        raise ValueError(f"{error} (--tune tries {label_of(options)})" if options else str(error)) from None


def check_table(rows: pd.DataFrame, table: Path, wanted: Collection[str] = ()) -> None:
    """Raise ValueError for a table with rows that lacks a column, the ``wanted`` among them, has a figure or a name
    that no run writes, or has a row twice.
    """
    if rows.empty:
        return
    if missing := {*LABELS, *SCORED, *KEYS, *wanted} - set(rows):
        raise ValueError(f"{table} is no table of this benchmark: it has no column {sorted(missing)[0]!r}")
    for name in map(str, rows):
        faults = _faults(rows, name)
        if faults.any():
            line, value = int(faults.to_numpy().argmax()), rows[name][faults].iloc[0]
            found = "missing" if pd.isna(value) else repr(value) if isinstance(value, str) else value
            raise ValueError(
                f"{table}, line {line + 2}: {name} is {found}; take the row out, and its run is done again"
            )
    twice = rows.duplicated(LABELS).to_numpy()
    if twice.any():
        raise ValueError(f"{table}, line {int(twice.argmax()) + 2}: this run is there twice; take out one of its rows")


def _faults(rows: pd.DataFrame, name: str) -> pd.Series:
    """Say of each row whether column ``name`` has nothing where it must, or what no run writes there."""
    column = rows[name]
    faults = column.isna() & (name in (*LABELS, *SCORED, "checksum"))
    if name in WORDS:
        faults |= ~column.isin(WORDS[name])
    elif name not in ("set", "options", *MARKS):
        numbers = pd.to_numeric(column, errors="coerce").replace([inf, -inf], nan)
        faults |= numbers.isna() & column.notna()
        if name in WHOLE:
            faults |= numbers % 1 != 0
    return faults


def _check_same(rows: pd.DataFrame, source: DataSet, table: Path) -> None:
    """Raise ValueError where rows of the set were made from another file."""
    if rows.empty:
        return
    made_from = set(rows["checksum"][rows["set"] == source.name]) - {source.checksum}
    if made_from:
        raise ValueError(
            f"the file of {source.name} has changed (sha256 {source.checksum}..., rows in {table} are of "
            f"{sorted(made_from)[0]}...): put the old file back, or choose another --out"
        )
