"""One training of a study: on from its checkpoint to the end of its rung, and what it then shows."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from eve_pyro.builder import Built, build
from eve_pyro.config import Config
from eve_pyro.data import Panel, Splits
from eve_pyro.infer.callbacks import CHECKPOINT, Pause
from eve_pyro.infer.fit import Fit, fit
from eve_pyro.infer.scores import evaluate
from eve_pyro.runs import windows_of

DRAWS = 32  # joint paths a window behind the scores that have no closed form
EARLY = 0.2  # of a training: when its signals are held against its end
CENSUS = ("inside_mass", "too_low", "too_high", "living", "kl")


@dataclass(frozen=True)
class Trainer:
    """Trains configurations that differ in no option of data on the same windows; one folder each."""

    windows: Splits
    folder: Path

    @classmethod
    def of(cls, panel: Panel, base: Config, folder: Path) -> "Trainer":
        """Return the trainer of a study; ValueError for data too short for ``base``."""
        return cls(windows_of(panel, base), folder)

    def home(self, trial: int, seed: int) -> Path:
        """Return the folder of a training."""
        return self.folder / f"{trial:03d}-{seed}"

    def train(self, config: Config, home: Path, epochs: int) -> dict[str, float]:
        """Train up to ``epochs`` of all epochs, going on from ``home``'s checkpoint, and return the figures.

        Of the weights kept: validation scores (``crps``, ``joint_log_score``, ``coverage_90``, ...) and census; of the
        rung's end: ``out_of_band``, ``not_living``, ``kl_drift``, ``val_loss``, ``step``, ``seconds``; ``parameters``,
        and the steps of the ``whole`` training. At the end of all epochs also the test scores, ``test_*``, and what the
        signals were at a fifth of training, ``early_*``. ValueError for a training that cannot go on, such as one that
        is not finite.
        """
        pair, options = build(config), config.training
        home.mkdir(parents=True, exist_ok=True)
        done = fit(
            pair.model, pair.guide, self.windows, pair.elbo, options, control=config.control, log_dir=home, resume=True,
            callbacks=[Pause(epochs)],
        )  # fmt: skip
        figures = kept(done) | signals(done, int(done.history["step"].iloc[-1]))
        figures |= self._scores(pair, config, "validation")
        figures |= {"seconds": done.seconds, "parameters": float(_parameters(pair))}
        figures |= {"whole": float(options.steps(len(self.windows.train)))}
        if epochs >= options.epochs:
            early = signals(done, EARLY * options.steps(len(self.windows.train)))
            figures |= {f"early_{name}": value for name, value in early.items()}
            figures |= {f"test_{name}": value for name, value in self._scores(pair, config, "test").items()}
        return figures

    def tidy(self) -> None:
        """Remove the checkpoints: nothing goes on from here."""
        for checkpoint in self.folder.rglob(CHECKPOINT):
            checkpoint.unlink()

    def _scores(self, pair: Built, config: Config, split: str) -> dict[str, float]:
        rows = self.windows.test if split == "test" else self.windows.validation
        rows = rows if split == "test" else rows.at_most(config.training.validation_windows)
        found = evaluate(pair.model, pair.guide, rows, DRAWS, seed=config.training.seed)
        if not math.isfinite(found["crps"]):
            raise ValueError("its forecasts are not finite")
        return found


def kept(done: Fit) -> dict[str, float]:
    """Return the census of the epoch whose weights were kept, on validation windows."""
    row = done.history.iloc[done.best_epoch]
    return {name: float(row[f"val_{name}"]) for name in CENSUS} | {"epoch": float(done.best_epoch + 1)}


def signals(done: Fit, step: float) -> dict[str, float]:
    """Return what the neurons and the validation said at the end of the epoch nearest to ``step``.

    ``out_of_band`` and ``not_living`` are shares of the units on validation windows, ``kl_drift`` is by how much, in
    logs, the KL of training windows moved since half as many steps, ``val_loss`` and ``val_crps`` the validation's.
    """
    history = done.history
    row = history.iloc[int((history["step"] - step).abs().to_numpy().argmin())]
    found = {"out_of_band": 1 - row["val_inside_mass"], "not_living": 1 - row["val_living"]}
    found |= {"kl_drift": _drift(done.tables["signals"], row["step"])}
    found |= {name: row[name] for name in ("val_loss", "val_crps", "step")}
    return {name: float(value) for name, value in found.items()}


def _drift(records: pd.DataFrame, step: float) -> float:
    past = records[(records["split"] == "train") & (records["step"] <= step)]
    if len(past) < 2:
        return math.nan
    before = past.iloc[int((past["step"] - step / 2).abs().to_numpy().argmin())]
    now, then = (max(float(row["kl"]), 1e-12) for row in (past.iloc[-1], before))
    return abs(math.log(now / then))


def _parameters(pair: Built) -> int:
    return sum(each.numel() for each in pair.weights().parameters())


def seeded(config: Config, more: int) -> Config:
    """Return ``config`` with its seed moved on by ``more``."""
    return replace(config, training=replace(config.training, seed=config.training.seed + more))


def jsonable(figures: dict[str, float]) -> dict[str, Any]:
    """Return figures as any storage takes them: what is not finite as text."""
    return {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}


def from_json(figures: dict[str, Any]) -> dict[str, float]:
    """Return figures as they were."""
    return {name: float(value) for name, value in figures.items()}
