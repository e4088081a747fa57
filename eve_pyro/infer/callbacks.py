"""What a training keeps: its history, its best weights, a checkpoint to go on from."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from eve_pyro.infer.loop import Callback, EarlyStopping, L

CHECKPOINT = "checkpoint.ckpt"


class History(Callback):
    """Keeps one row an epoch and writes all tables as it goes, so that a killed run leaves what it had."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.begin = folder, time.monotonic()
        self.rows: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.monotonic() - self.begin

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Add the epoch's row."""
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": self.seconds}
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append(row)
        if self.folder is not None and trainer.is_global_zero:
            for name, table in self.tables(trainer).items():
                table.to_csv(self.folder / f"{name}.csv", index=False)

    def tables(self, trainer: Any) -> dict[str, pd.DataFrame]:
        """Return all rows so far as ``history``, and the tables of all callbacks that keep some."""
        kept = [callback for callback in trainer.callbacks if callback is not self and hasattr(callback, "tables")]
        tables = {"history": pd.DataFrame(self.rows)}
        for callback in kept:
            tables |= callback.tables()
        return tables

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the time spent, for a checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = state_dict["rows"]
        self.begin -= state_dict["seconds"]


class Keeper(Callback):
    """Keeps a copy of the weights of the epoch with the lowest ``monitor``, or of the last where there is none.

    An epoch in which the loss broke or the score is NaN does not count; while there is none that does, the weights kept
    are those that the training began with.
    """

    def __init__(self, monitor: str | None) -> None:
        self.monitor, self.best = monitor, math.inf
        self.epoch: int | None = None
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Copy what there is."""
        self.weights = self.weights or _copied(task)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Copy the weights if they are the best so far."""
        if task.not_finite is not None:
            return
        score = float(trainer.callback_metrics[self.monitor]) if self.monitor else -math.inf
        if score < self.best or not self.monitor:
            self.best, self.epoch, self.weights = score, trainer.current_epoch, _copied(task)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, for a checkpoint."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.epoch, self.weights = state_dict["best"], state_dict["epoch"], state_dict["weights"]


def _copied(task: L.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.state_dict().items()}


class Patience(EarlyStopping):
    """Lightning's early stopping, which a training that is taken up again after it had stopped does not forget."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stay stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Pause(Callback):
    """Stops a training after ``epochs`` of its epochs; resumed without it, or with a later one, it goes on.

    Schedule and controllers are those of the whole training, so that it ends as one that was never stopped.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Do not go on where the checkpoint is as far already."""
        self._stop(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Stop once all epochs are done; the checkpoint is written after that."""
        self._stop(trainer, trainer.current_epoch + 1)

    def _stop(self, trainer: L.Trainer, done: int) -> None:
        if done >= self.epochs:
            trainer.should_stop = True
