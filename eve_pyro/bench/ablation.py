"""Ablations: the same model, seeds and budget with one thing swapped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro import plots
from eve_pyro.bench.compare import summarise
from eve_pyro.bench.rows import Say
from eve_pyro.bench.trials import Trial, run_trials
from eve_pyro.config import load_recipe
from eve_pyro.data import Panel
from eve_pyro.effects import check_acts

LABELS = ("swapped", "value")
SAMPLED = "kl_sampled"
UNSWAPPABLE = {
    "seed": "name what to train with --seeds",
    "progress": "it changes nothing that is learned",
    "accelerator": "it changes nothing that is learned",
}
SHOWN = ("crps", "joint_log_score", "energy_score", "mse", "val_active", "val_kl", "seconds")


def ablation_trials(
    recipe: str, overrides: Mapping[str, Any], swaps: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> list[Trial]:
    """Return the base (``recipe`` with ``overrides``) and the base with each value of each option of ``swaps``.

    The option ``recipe`` swaps the whole recipe, under the same overrides.

    ``swapped`` and ``value`` label a trial; the base's own values are not trained again. Raises ValueError for unknown
    options and values, for those that change nothing in the base, and where nothing is swapped.
    """
    if "seed" in overrides:
        raise ValueError("name what to train with --seeds, not --seed")
    for option in swaps:
        if option in UNSWAPPABLE:
            raise ValueError(f"--vary {option}: {UNSWAPPABLE[option]}")
    base = load_recipe(recipe, dict(overrides))
    variants = [("base", recipe, base)]
    for option, values in swaps.items():
        for value in values:
            swap = {} if option == "recipe" else {option: value}
            config = load_recipe(recipe if swap else value, {**overrides, **swap})
            if config != base:
                check_acts(option, value, config)
                variants.append((option, value, config))
    if len(variants) == 1:
        raise ValueError(
            "nothing is swapped: name values other than the base's, such as --guides future_aware,low_rank"
        )
    for seed in seeds:
        load_recipe(recipe, {**overrides, "seed": seed})  # says what a seed may be
    return [
        Trial({"swapped": option, "value": value}, replace(config, training=replace(config.training, seed=seed)))
        for option, value, config in variants
        for seed in seeds
    ]


def ablate(panel: Panel, trials: Sequence[Trial], out: Path, num_draws: int, say: Say = print) -> pd.DataFrame:
    """Run ``trials`` and write ``ablation.csv`` (a row a run), ``summary.csv`` and ``ablation.png`` into ``out``.

    Returns the summary: mean, spread, and paired difference to the base, by variant, and in ``kl_sampled`` whether
    ``val_kl`` is an estimate from draws, for lack of a closed form.
    """
    rows = run_trials(panel, trials, out / "ablation.csv", num_draws, say)
    summary = summarise(rows, LABELS, SHOWN)
    sampled = rows["kl_sampled"] if "kl_sampled" in rows else pd.Series(pd.NA, index=rows.index)
    by_variant = sampled.groupby([rows[name] for name in LABELS], sort=False, dropna=False).first()
    summary.insert(len(LABELS), SAMPLED, by_variant.to_numpy())
    summary.to_csv(out / "summary.csv", index=False)
    plots.difference_bars(summary, LABELS, ("crps", "joint_log_score", "energy_score")).savefig(out / "ablation.png")
    return summary
