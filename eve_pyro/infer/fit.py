"""Training: any model and guide, one local ELBO, on Lightning's loop."""

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from eve_pyro.data import Splits, Windows
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict
from eve_pyro.infer.programs import StoreParameters, check_accelerator, store_parameters
from eve_pyro.infer.scores import marginal_scores
from eve_pyro.infer.training import Training
from eve_pyro.protocols import Batch, Controller, Guide, Model

with warnings.catch_warnings():  # importing Lightning adds filters to everybody's warnings
    import lightning as L
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger

VALIDATION_DRAWS = 16


@dataclass(frozen=True)
class Fit:
    """What training left behind: one row of ``history`` an epoch, the epoch whose weights were kept, why it ended.

    ``tables`` holds what callbacks with a method ``tables()`` wrote down: under a ``Steering``, ``census`` and
    ``signals``.
    """

    history: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    best_epoch: int
    seconds: float
    stopped: str


class Task(L.LightningModule):
    """A model, a guide and their local ELBO as Lightning sees them: losses a value, terms apart."""

    def __init__(
        self, model: Model, guide: Guide, elbo: LocalELBO, training: Training, stored: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.model, self.guide, self.elbo, self.training_options = model, guide, elbo, training
        self.stored = StoreParameters(stored)
        self.not_finite: int | None = None

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        """Return the loss a value; a loss that is not finite ends the training before it reaches a weight."""
        with pyro.validation_enabled(self.global_step == 0):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *batch) / batch.future.numel()
        if not torch.isfinite(loss):
            self.not_finite, self.trainer.should_stop = self.global_step, True
            return None
        self._log_terms("train", loss.detach(), batch)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the same terms without gradients, and the CRPS of the forecast."""
        with pyro.validation_enabled(False):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *batch) / batch.future.numel()
            self._log_terms("val", loss.detach(), batch)
            crps = torch.full_like(loss, math.nan)
            # Weights can be lost while the loss is still a number: no covariance comes of them.
            with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                if torch.isfinite(loss):
                    prediction = predict(self.model, self.guide, batch.context, VALIDATION_DRAWS)
                    crps = marginal_scores(prediction, batch.future)["crps"].mean()
        self.log("val_crps", crps, batch_size=len(batch.future), prog_bar=True)

    def on_after_backward(self) -> None:
        """Refuse, at the first step, to leave parameters of the param store as they are without a word."""
        if self.global_step > 0:
            return
        silent = [name for name, value in self.stored.named.items() if value.grad is None]
        if silent or not any(p.grad is not None for p in self._trained()):
            raise ValueError(
                f"the loss does not reach {silent[0] if silent else 'any parameter'!r}: Pyro's param store may hold "
                "another program's parameters of this name; call pyro.clear_param_store() or rename them"
            )

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle over all steps."""
        options = self.training_options
        optimizer = torch.optim.AdamW(self._trained(), lr=options.learning_rate, weight_decay=options.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, max(steps, 2), pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def _trained(self) -> list[Tensor]:
        own = {id(p): p for p in self.parameters() if p.requires_grad}
        return list((own | {id(t): t for t in self.stored.named.values()}).values())

    def _log_terms(self, split: str, loss: Tensor, batch: Batch) -> None:
        terms, horizon = self.elbo.terms, batch.future.shape[-1]
        values = {"loss": loss, "log_likelihood": terms.log_likelihood.mean() / horizon}
        values["kl"] = sum((units.kl.mean(0).sum() for units in terms.units.values()), start=loss.new_zeros(()))
        if terms.predictive is not None:
            values["predictive"] = terms.predictive.mean() / horizon
        values |= terms.penalties
        named = {f"{split}_{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch.future))


class History(Callback):
    """Keeps one row an epoch and writes all tables as it goes, so that a killed run leaves what it had."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.begin = folder, time.monotonic()
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Add the epoch's row."""
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": time.monotonic() - self.begin}
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append(row)
        if self.folder is not None:
            for name, table in self.tables(trainer).items():
                table.to_csv(self.folder / f"{name}.csv", index=False)

    def tables(self, trainer: Any) -> dict[str, pd.DataFrame]:
        """Return all rows so far as ``history``, and the tables of all callbacks that keep some."""
        kept = [callback for callback in trainer.callbacks if callback is not self and hasattr(callback, "tables")]
        tables = {"history": pd.DataFrame(self.rows)}
        for callback in kept:
            tables |= callback.tables()
        return tables


def fit(
    model: Model,
    guide: Guide,
    windows: Splits,
    elbo: LocalELBO | None = None,
    training: Training | None = None,
    *,
    control: Controller | None = None,
    log_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train ``model`` and ``guide`` in place on ``windows.train`` and leave them with the best epoch's weights.

    Modules are trained as they are; plain functions by the parameters they keep in Pyro's param store. The loss is the
    local ELBO divided by the number of values. ``control``, such as ``Steering("homeostasis")``, steers the units while
    they train and takes the census of their states. With a ``log_dir``, the history, the tables and TensorBoard's files
    go there.
    The global random state is left as it was; a seed repeats exactly on one machine. Raises ValueError where nothing
    can be trained, or where the loss is not finite before any epoch was good; later, the best epoch is kept.
    """
    elbo, training = elbo or LocalELBO(), training or Training()
    steering = [] if control is None else control.callbacks()
    check_accelerator(training.accelerator)
    begin = time.monotonic()
    folder = None if log_dir is None else Path(log_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    history = History(folder)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch, _quiet_lightning():
        stored = store_parameters(model, guide, *windows.train[:2])
        torch.manual_seed(training.seed)
        task = Task(model, guide, elbo, training, stored)
        if not task._trained():
            raise ValueError(
                "found no parameters to train: pass modules, or functions that call pyro.param(...) or pyro.module(...)"
            )
        monitor = None if training.monitor == "last" else f"val_{training.monitor}"
        keeper = ModelCheckpoint(scratch, monitor=monitor, save_weights_only=True, save_on_train_epoch_end=True)
        trainer = L.Trainer(
            accelerator=training.accelerator,
            devices=1,
            max_epochs=training.epochs,
            gradient_clip_val=training.clip,
            logger=[TensorBoardLogger(folder, name="tensorboard", version="")] if folder else False,
            callbacks=[*steering, *callbacks, *_stopping(monitor, training), history, keeper, *_progress(training)],
            enable_progress_bar=training.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        train, validation = _loaders(windows, training)
        trainer.fit(task, train, validation)
        if task.not_finite is not None and task.not_finite < len(train):
            raise ValueError(
                f"the loss was not finite at step {task.not_finite}, before a first epoch was done: lower the learning "
                "rate or check the data"
            )
        weights = torch.load(keeper.best_model_path, weights_only=True)
        task.load_state_dict(weights["state_dict"])
    for program in (model, guide):
        if isinstance(program, torch.nn.Module):
            program.eval()
    tables = history.tables(trainer)
    done = time.monotonic() - begin
    return Fit(tables.pop("history"), tables, int(weights["epoch"]), done, _why(task, trainer, training))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips and device notes to itself while it runs; errors and other warnings come through."""
    loggers = [logging.getLogger(f"lightning.{part}.utilities.rank_zero") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for expected in (
            "does not have many workers",
            "`training_step` returned `None`",
            "`lr_scheduler.step",
            "LeafSpec",
        ):
            warnings.filterwarnings("ignore", f".*{expected}")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _loaders(windows: Splits, training: Training) -> tuple[DataLoader[Any], DataLoader[Any]]:
    def loader(part: Windows, shuffle: bool) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(training.seed)
        full = shuffle and len(part) >= training.batch_size  # a small last batch would weigh as much as a full one
        return DataLoader(
            part,  # type: ignore[arg-type]
            training.batch_size,
            shuffle=shuffle,
            drop_last=full,
            collate_fn=lambda batch: batch,
            generator=generator,
        )

    return loader(windows.train, True), loader(windows.validation.at_most(training.validation_windows), False)


def _stopping(monitor: str | None, training: Training) -> list[Callback]:
    return [] if monitor is None else [EarlyStopping(monitor, patience=training.patience)]


def _progress(training: Training) -> list[Callback]:
    return [RichProgressBar(leave=False)] if training.progress else []


def _why(task: Task, trainer: L.Trainer, training: Training) -> str:
    if task.not_finite is not None:
        return f"the loss was not finite at step {task.not_finite}; the best epoch before it was kept"
    if trainer.current_epoch < training.epochs:
        return f"no better val_{training.monitor} in {training.patience} epochs"
    return "all epochs done"
