"""Regimes beside one another: what steering the units costs, and what it buys."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro import plots
from eve_pyro.bench.compare import summarise
from eve_pyro.bench.rows import Say
from eve_pyro.bench.trials import Trial, run_trials
from eve_pyro.config import load_recipe, option_named
from eve_pyro.control.steering import Steering
from eve_pyro.data import Panel
from eve_pyro.effects import IDLE

REGIMES = ("off", "penalty", "projection", "homeostasis")
SHOWN = ("crps", "joint_log_score", "mse", "val_inside_mass", "val_living", "test_inside_mass")


def regime_trials(
    recipe: str,
    overrides: Mapping[str, Any],
    regimes: Sequence[str] = REGIMES,
    seeds: Sequence[int] = (0, 1, 2),
    vary: Mapping[str, Sequence[str]] | None = None,
) -> list[Trial]:
    """Return a trial for each regime, seed, and combination of the values that ``vary`` gives to options of control.

    Labels are the regime and what varies. A regime that has no use for an option is trained once. Raises ValueError for
    an option that is not one of control's, and for bad values.
    """
    vary = vary or {}
    known = {item.name for item in fields(Steering)} - {"regime"}
    for name in {"seed", "regime"} & set(overrides):
        raise ValueError(f"name what to compare with --{name}s, not --{name}")
    for name in vary:
        if name not in known:
            raise ValueError(f"--vary {name}: unknown; options of control are {', '.join(sorted(known))}")
    trials: list[Trial] = []
    for regime, values, seed in itertools.product(regimes, itertools.product(*vary.values()), seeds):
        chosen = dict(zip(vary, values, strict=True))
        used = {name: value for name, value in chosen.items() if name not in IDLE.get(regime, set())}
        config = load_recipe(recipe, {**overrides, **used, "regime": regime, "seed": seed})
        labels = {"regime": regime} | {name: str(used.get(name, "-")) for name in vary}
        trial = Trial(labels, config)
        if trial not in trials:
            trials.append(trial)
    return trials


def compare_regimes(panel: Panel, trials: Sequence[Trial], out: Path, num_draws: int, say: Say = print) -> pd.DataFrame:
    """Run ``trials`` and write ``regimes.csv`` (a row a run), ``summary.csv`` and ``regimes.png`` into ``out``.

    Returns the summary: mean, spread, and paired difference to the first variant, by variant.
    """
    rows = run_trials(panel, trials, out / "regimes.csv", num_draws, say)
    labels = list(trials[0].labels)
    summary = summarise(rows, labels, SHOWN)
    summary.to_csv(out / "summary.csv", index=False)
    plots.regime_scatter(rows, labels).savefig(out / "regimes.png")
    return summary


def parse_vary(options: Sequence[str]) -> dict[str, list[str]]:
    """Read ``NAME=V1,V2,...`` options, the name an option's own or its flag's.

    Raises ValueError for another form and for a name or value given twice.
    """
    vary: dict[str, list[str]] = {}
    for option in options:
        name, _, values = option.partition("=")
        name, parts = option_named(name.strip()), [part.strip() for part in values.split(",")]
        if not name or not all(parts) or len(set(parts)) < len(parts) or name in vary:
            raise ValueError(f"--vary takes NAME=V1,V2,... with each name and value once, not {option!r}")
        vary[name] = parts
    return vary
