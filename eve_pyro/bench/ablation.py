"""Ablations: the same model, seeds and budget with one thing swapped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro import plots
from eve_pyro.bench.compare import summarise
from eve_pyro.bench.regimes import IDLE
from eve_pyro.bench.rows import Say
from eve_pyro.bench.trials import Trial, run_trials
from eve_pyro.config import Config, load_recipe
from eve_pyro.data import Panel
from eve_pyro.infer.local_elbo import FORECASTING

LABELS = ("swapped", "value")
SAMPLED = "kl_sampled"
UNSWAPPABLE = {
    "seed": "name what to train with --seeds",
    "progress": "it changes nothing that is learned",
    "accelerator": "it changes nothing that is learned",
}
SHOWN = ("crps", "joint_log_score", "energy_score", "mse", "val_active", "val_kl", "seconds")


NEEDS: dict[str, tuple[str, Callable[[Config], bool]]] = {  # what an option acts through: else it changes nothing
    "depth": ("model 'stack'", lambda config: config.model.model == "stack"),
    "patches": ("model 'trajectory'", lambda config: config.model.model == "trajectory"),
    "phi": ("an AR(1) prior", lambda config: config.model.prior.endswith("ar1")),
    "learn_phi": ("an AR(1) prior", lambda config: config.model.prior.endswith("ar1")),
    "pooling": ("latent_dim above 1", lambda config: config.model.latent_dim > 1),
    "head_scale": ("a decoded readout", lambda config: config.model.readout != "factor"),
    "rank": ("guide 'low_rank'", lambda config: config.guide.guide == "low_rank"),
    "guide_scale": ("guide 'context'", lambda config: config.guide.guide == "context"),
    "alpha": ("objective 'composite' or 'predictive'", lambda config: config.objective.objective in FORECASTING),
    "held": ("alpha above 0", lambda config: config.objective.alpha > 0),
    "objective": (
        "num_particles above 1, a mixture of one draw being the elbo",
        lambda config: config.objective.objective != "mixture" or config.objective.num_particles > 1,
    ),
    "validation": ("the split by fractions, without rows", lambda config: config.data.rows is None),
    "test": ("the split by fractions, without rows", lambda config: config.data.rows is None),
    "stride": ("a path above 1", lambda config: config.data.path > 1),
    "spread": ("heterogeneous bands", lambda config: config.control.bands == "heterogeneous"),
    "warmup": ("a regime, the thermostat or lambda_ar", lambda config: config.control.acts),
    "c_min": ("the thermostat", lambda config: config.control.thermostat),
    "c_max": ("the thermostat", lambda config: config.control.thermostat),
    "ar_phi": ("lambda_ar above 0", lambda config: config.control.lambda_ar > 0),
    "patience": ("a monitor other than 'last'", lambda config: config.training.monitor != "last"),
}


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
                _check_acts(option, value, config)
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


def _check_acts(option: str, value: str, config: Config) -> None:
    """Raise ValueError for an option without effect in ``config``, which would be the base trained again."""
    what, acts = NEEDS.get(option, ("", None))
    if option in IDLE.get(config.control.regime, set()):
        what, acts = f"another regime than {config.control.regime!r}", lambda _: False
    if acts is not None and not acts(config):
        raise ValueError(f"{option} = {value!r} changes nothing here: it needs {what}")


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
