"""What was trained, and how it scores."""

import math
import platform
from importlib.metadata import version

import pandas as pd
from torch import nn

from eve_pyro.infer.local_elbo import FORECASTING
from eve_pyro.infer.scores import KEYS
from eve_pyro.report.blocks import NONE, Facts, Note, Row, Section, Table, Text, Tiles, joined, percent, short
from eve_pyro.report.record import Record

NAMES = {
    "mse": "MSE",
    "mae": "MAE",
    "crps": "CRPS",
    "energy_score": "energy score",
    "crps_mean": "CRPS of the mean",
    "log_score": "log score",
    "joint_log_score": "joint log score",
    "coverage_90": "90 % coverage",
}
WORDS = {
    "mse": "squared error of the forecast's mean",
    "mae": "absolute error of the forecast's median",
    "crps": "how far each step's whole distribution lies from the truth; of a point forecast, its absolute error",
    "energy_score": "the same for whole paths: it sees, a little, how steps hang together",
    "crps_mean": "CRPS of the average over the horizon, which depends on how steps hang together",
    "log_score": "surprise at the truth, each value by itself: minus log density, nats a value",
    "joint_log_score": "surprise at the whole path, in nats a value: it sees all of the dependence between steps",
    "coverage_90": "share of truths inside central 90 % intervals; 0.90 is right",
}
FORECASTERS = {"eve": "EVE", "twin": "twin", "repeat_last": "last value", "seasonal_naive": "last season"}
GUIDES = {
    "future_aware": "independent normals given context and future",
    "context": "independent normals given the context alone",
    "delta": "a point",
    "autoregressive": "a Gaussian chain along the units' path",
    "low_rank": "diagonal plus low rank across units",
    "flow": "coupling layers on a mean field",
    "conjugate": "the exact posterior under the factor readout",
}


def headline(record: Record) -> Section:
    """Say what was trained, on what, for how long, and how it did."""
    tiles = [
        (NAMES[key], _figure(record.scores["eve"][key]), _against(record, key))
        for key in ("joint_log_score", "energy_score", "crps", "coverage_90")
    ]
    return Section("run", "The run", [Text(_verdict(record)), Tiles(tiles), Facts(_facts(record))])


def scores(record: Record) -> Section:
    """Show every score beside the twin's and the naive forecasts', the best in bold."""
    found = record.scores
    rows = [
        Row(NAMES[key], [_figure(each.get(key)) for each in found.values()], _best(record, key), WORDS[key])
        for key in KEYS
    ]
    told = (
        f"On all {len(record.windows.test):,} test windows, in the scale of the training rows, where every series has "
        "a deviation of 1. Lower is better, but for the coverage; the best figure of each row is bold."
    )
    table = Table("Scores by forecaster", ["", *(FORECASTERS.get(name, name) for name in found)], rows)
    return Section("scores", "Scores", [Text(told), table, *_remarks(record)])


def _remarks(record: Record) -> list[Note]:
    """Say what the scores do not."""
    eve = record.scores["eve"]
    draws, error = eve.get("joint_log_score_draws"), short(eve.get("joint_log_score_se"))
    notes = [
        "One training from one seed: what another seed would change is not in these figures. The last value and the "
        "last season are repeated as they are, without a spread, so they have no density."
    ]
    if draws is not None:
        notes.append(
            f"EVE's joint log score has no closed form: it is estimated from {draws:.0f} draws by importance sampling "
            f"(standard error {error}), and on average lies above the true one."
        )
    if "twin" not in record.scores:
        notes.append("There is no twin to compare with: eve-pyro fit trains one with --twin.")
    return [Note(note) for note in notes]


def _best(record: Record, key: str) -> list[int]:
    """Return which forecasters are best at a score, by position."""
    found = [_distance(key, each.get(key)) for each in record.scores.values()]
    return [number for number, value in enumerate(found) if value == min(found)]


def _distance(key: str, value: float | None) -> float:
    """Return how far a score is from the best it could be, up to a constant."""
    if value is None:
        return math.inf
    return abs(value - 0.9) if key == "coverage_90" else value


def _against(record: Record, key: str) -> str:
    if key == "coverage_90":
        return "should be 0.9"
    others = [name for name in record.scores if name != "eve" and record.scores[name].get(key) is not None]
    if not others:
        return "lower is better"
    name = "twin" if "twin" in others else min(others, key=lambda other: _distance(key, record.scores[other][key]))
    return f"{FORECASTERS.get(name, name)} {_figure(record.scores[name][key])}"


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _verdict(record: Record) -> str:
    config, found = record.run.config.data, record.scores
    naive = min(_distance("crps", each.get("crps")) for name, each in found.items() if name not in record.pairs)
    change = (found["eve"]["crps"] or 0.0) / naive - 1
    told = (
        f"Trained for {record.seconds['train_eve']:.0f} s to forecast {config.horizon} steps from "
        f"{config.context_length}, and scored on {len(record.windows.test):,} windows it had not seen. Its CRPS is "
        f"{percent(abs(change))} {'below' if change < 0 else 'above'} that of the better naive forecast. "
    )
    if "twin" not in found:
        return told + "It was trained without its deterministic twin."
    mine, other = ({key: _distance(key, found[name][key]) for key in KEYS} for name in ("eve", "twin"))
    ahead = joined([NAMES[key] for key in KEYS if mine[key] < other[key]]) or "nothing"
    behind = joined([NAMES[key] for key in KEYS if mine[key] > other[key]]) or "nothing"
    return told + (
        f"Beside its twin, the same network with every unit a point, it is ahead in {ahead}, and behind in {behind}."
    )


def _facts(record: Record) -> list[tuple[str, str]]:
    config, (train, validation, test) = record.run.config, record.windows
    data, model, objective = config.data, config.model, config.objective
    layers = f"{model.depth} layers of {model.units}" if model.model == "stack" else str(model.units)
    size = f" of {model.latent_dim} dimensions" if model.latent_dim > 1 else ""
    alpha = f", alpha {objective.alpha:g}" if objective.objective in FORECASTING else ""
    held = f", {objective.held} held" if objective.held else ""
    below = "" if record.volatility is None else " above a volatility unit"
    regime = config.control.regime
    splits = f"{len(train):,} for training, {len(validation):,} for validation, {len(test):,} for testing"
    versions = [f"{name} {version(name)}" for name in ("eve_pyro", "torch", "pyro-ppl")]
    return [
        ("Data", _data(record)),
        ("Windows", f"{splits}; {data.context_length} steps of context, {data.horizon} ahead"),
        ("Recipe", config.recipe),
        ("Model", f"{model.model}: {layers} units{size}{below}, {model.prior} prior, {model.readout} readout"),
        ("Guide", f"{config.guide.guide}: {GUIDES[config.guide.guide]}"),
        ("Objective", f"{objective.objective}{alpha}{held}, beta {objective.beta:g}"),
        ("Regime", regime if regime == "off" else f"{regime}, target energy {config.control.target:g}"),
        ("Parameters", f"{_count(record.eve.model):,} in the model, {_count(record.eve.guide):,} in the guide"),
        ("Training", _training(record)),
        ("Versions", ", ".join([*versions, f"Python {platform.python_version()}"])),
    ]


def _data(record: Record) -> str:
    panel = record.windows.test.panel
    names, index = panel.names, panel.index[0]
    shown = joined(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"
    rows = max(len(values) for values in panel.values)
    ends = [f"{each:%d %b %Y}" if isinstance(each, pd.Timestamp) else str(each) for each in (index[0], index[-1])]
    series = "1 series" if len(names) == 1 else f"{len(names):,} series"
    return f"{record.data}: {series} ({shown}), {rows:,} rows from {ends[0]} to {ends[1]}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _training(record: Record) -> str:
    options, done = record.run.config.training, record.training["eve"]
    return (
        f"{len(record.histories['eve'])} of {options.epochs} epochs ({done['stopped']}), epoch {done['epoch']} kept "
        f"({options.monitor}); {record.seconds['train_eve']:.1f} s, seed {options.seed}"
    )
