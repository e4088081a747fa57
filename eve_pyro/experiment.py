"""One experiment, end to end: train EVE and its twin side by side, score, forecast, draw, write the run folder."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eve_pyro import plots
from eve_pyro.builder import Built, build
from eve_pyro.config import Config
from eve_pyro.data import Panel, Splits, Windows
from eve_pyro.diagnostics.census import final_census
from eve_pyro.infer.callbacks import CHECKPOINT
from eve_pyro.infer.fit import Fit, fit
from eve_pyro.infer.forecast import Forecast, forecast
from eve_pyro.infer.programs import check_accelerator, is_leader
from eve_pyro.infer.scores import evaluate
from eve_pyro.infer.units import unit_table
from eve_pyro.naive import naive_scores
from eve_pyro.runs import (
    CENSUS,
    METRICS,
    TWIN,
    claim_folder,
    latest_of,
    load_setup,
    save_run,
    save_setup,
    windows_of,
    write_json,
)

Scores = dict[str, dict[str, float | None]]
Say = Callable[[str], None]
SHOWN_SERIES = 6


def run_experiment(panel: Panel, config: Config, folder: Path, twin: bool, say: Say = print) -> Scores:
    """Train what ``config`` describes on ``panel`` (and its twin), score it on every test window, write ``folder``.

    Returns the scores by forecaster. Bad data and a folder that holds something raise ValueError before anything is
    written. An interrupted run can be taken up again by ``resume_experiment``. Of several processes (``torchrun``) the
    first one writes and scores; the others return no scores.
    """
    windows = windows_of(panel, config)
    check_accelerator(config.training.accelerator)
    if is_leader():
        save_setup(claim_folder(folder), config, windows.train.scaler, twin)
    try:
        return _run(panel, config, folder, twin, windows, say if is_leader() else _silent)
    except ValueError:
        if is_leader() and not list(folder.rglob(CHECKPOINT)):  # nothing was learned: leave nothing behind
            shutil.rmtree(folder)
        raise


def resume_experiment(panel: Panel, folder: Path, say: Say = print) -> Scores:
    """Go on with the run in ``folder`` that was stopped, to the end it would have had.

    Raises ValueError for a folder without a run, for a run that is done, and for data other than it was trained on.
    """
    config, scaler = load_setup(folder)
    if (folder / METRICS).exists():
        raise ValueError(f"{folder} is done: there is nothing to resume")
    windows = windows_of(panel, config)
    if windows.train.scaler != scaler:
        raise ValueError(f"{folder} was trained on other data: their training rows have another mean or deviation")
    return _run(panel, config, folder, (folder / TWIN).is_dir(), windows, say if is_leader() else _silent)


def _silent(_: str) -> None:
    """Say nothing: another process speaks."""


def _run(panel: Panel, config: Config, folder: Path, twin: bool, windows: Splits, say: Say) -> Scores:
    say(
        f"{len(panel)} series, windows of {config.data.context_length} + {config.data.horizon} steps: "
        f"{len(windows.train)} for training, {len(windows.validation)} for validation, {len(windows.test)} for testing"
    )
    pairs = {"eve": build(config)} | ({"twin": build(config, twin=True)} if twin else {})
    fits = {name: _fit(name, pair, windows, config, folder, say) for name, pair in pairs.items()}
    if not is_leader():
        return {}
    save_run(folder, config, windows.train.scaler, pairs["eve"], pairs.get("twin"))
    seconds = {f"train_{name}": round(done.seconds, 2) for name, done in fits.items()}
    scores: Scores = {}
    for name, pair in pairs.items():
        begin, options = time.monotonic(), config.training
        found = evaluate(pair.model, pair.guide, windows.test, seed=options.seed, progress=options.progress)
        scores[name] = dict(found)
        seconds[f"evaluate_{name}"] = round(time.monotonic() - begin, 2)
    scores |= naive_scores(windows.test)
    _write_forecasts(folder, panel, config, pairs, windows.test)
    _write_units(folder, pairs["eve"], windows.test, fits["eve"], say)
    _save(plots.training_curves({name: each.history for name, each in fits.items()}), folder, "training")
    training = {name: {"epoch": each.best_epoch + 1, "stopped": each.stopped} for name, each in fits.items()}
    figures = {"test": scores, "windows": len(windows.test), "seconds": seconds, "training": training}
    write_json(folder / METRICS, figures)
    for checkpoint in folder.rglob(CHECKPOINT):  # the run is done: nothing goes on from here
        checkpoint.unlink()
    return scores


def _fit(name: str, pair: Built, windows: Splits, config: Config, folder: Path, say: Say) -> Fit:
    control, logs = (config.control, folder) if name == "eve" else (None, folder / TWIN)
    done = fit(
        pair.model, pair.guide, windows, pair.elbo, config.training, control=control, log_dir=logs, resume=True
    )  # fmt: skip
    say(f"{name}: trained in {done.seconds:.0f} s, epoch {done.best_epoch + 1} kept ({done.stopped})")
    return done


def _write_forecasts(folder: Path, panel: Panel, config: Config, pairs: dict[str, Built], test: Windows) -> None:
    """Write the forecast beyond the end of the data, and a test window of some series with its fan chart."""
    eve, latest = pairs["eve"], latest_of(panel, config, test.scaler)
    (folder / "forecasts").mkdir(exist_ok=True)
    forecast(eve.model, eve.guide, latest).frame().to_csv(folder / "forecasts" / "future.csv", index=False)
    shown = shown_windows(test)
    fans: dict[str, Forecast] = {name: forecast(pair.model, pair.guide, shown) for name, pair in pairs.items()}
    fans["eve"].frame().to_csv(folder / "forecasts" / "test_windows.csv", index=False)
    _save(plots.fan_chart(fans["eve"], fans.get("twin")), folder, "fan")


def _write_units(folder: Path, eve: Built, test: Windows, fitted: Fit, say: Say) -> None:
    """Write the units' figures on test windows, their census at the end, and its pictures."""
    table = unit_table(eve.model, eve.guide, test.at_most(2048))
    table.to_csv(folder / "units.csv", index=False)
    sampled = sorted(table.loc[table["sampled"], "site"].unique())
    if sampled:
        say(f"the KL of {', '.join(sampled)} has no closed form: its figures are estimates from draws")
    _save(plots.unit_bars(table), folder, "units")
    census, history = fitted.tables["census"], fitted.history.copy()
    rows, summary = final_census(table, census)
    pd.concat([census, rows]).to_csv(folder / CENSUS, index=False)
    for name, value in summary.items():
        history.loc[history.index[-1], name] = value
    history.to_csv(folder / "history.csv", index=False)
    for (site, split), layer in census.groupby(["site", "split"]):
        _save(plots.census_map(layer), folder, f"census_{site}_{split}")


def shown_windows(windows: Windows) -> Windows:
    """Return the middle window of each of the first few series."""
    series = range(min(SHOWN_SERIES, len(windows.panel)))
    positions = [(windows.series == number).nonzero()[:, 0] for number in series]
    return windows.select([int(rows[len(rows) // 2]) for rows in positions])


def _save(figure: Figure, folder: Path, name: str) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png")
