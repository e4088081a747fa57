"""Training: any model and guide, one local ELBO, on Lightning's loop."""

import logging
import os
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from eve_pyro.infer.callbacks import CHECKPOINT, History, Keeper, Patience, Pause
from eve_pyro.infer.local_elbo import FORECASTING, LocalELBO
from eve_pyro.infer.loop import Callback, L, ModelCheckpoint, RichProgressBar, TensorBoardLogger
from eve_pyro.infer.predictive import forecast_trace, is_categorical, observation, refuse_added_sites, values
from eve_pyro.infer.programs import check_accelerator, check_weights, device_of, evaluating, store_parameters
from eve_pyro.infer.task import Task
from eve_pyro.infer.training import Training, checked
from eve_pyro.protocols import Controller, Guide, Model, Rows, RowSplits

MACHINE_OPTIONS = ("accelerator", "progress")  # may differ where a training goes on


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


def fit(
    model: Model,
    guide: Guide,
    windows: RowSplits,
    elbo: LocalELBO | None = None,
    training: Training | None = None,
    *,
    control: Controller | None = None,
    log_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train ``model`` and ``guide`` in place on ``windows.train`` and leave them with the best epoch's weights.

    Modules are trained as they are; plain functions by the parameters they keep in Pyro's param store. The loss is the
    local ELBO divided by the number of values. ``control``, such as ``Steering("homeostasis")``, steers the units while
    they train and takes the census of their states. With a ``log_dir``, the history, the tables, TensorBoard's files
    and, after each epoch, a checkpoint go there; ``resume`` goes on from that checkpoint, if there is one, and ends as
    a training that was never stopped. Started by ``torchrun``, the processes share each batch (see ``processes``).

    Of classes, whose CRPS means nothing, ``monitor="crps"`` watches the validation log score.

    The global random state is left as it was; a seed repeats exactly on one machine. Raises ValueError where nothing
    can be trained, where a checkpoint does not fit, or where the loss, or the score that is monitored, is not finite
    before any epoch was good, which leaves the pair as it was; later, the best epoch is kept.
    """
    elbo, training = elbo or LocalELBO(), checked(Training, asdict(training or Training()))
    steering = [] if control is None else control.callbacks()
    check_accelerator(training.accelerator)
    folder = None if log_dir is None else Path(log_dir)
    if folder is None and resume:
        raise ValueError("resume needs the log_dir that holds the checkpoint")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(), _quiet_lightning():
        stored = store_parameters(model, guide, *windows.train[:2])
        scored = _scored(model, guide, windows, elbo)
        monitor = {"last": None, "crps": f"val_{scored[0]}"}.get(training.monitor, f"val_{training.monitor}")
        history, keeper = History(folder), Keeper(monitor)
        torch.manual_seed(training.seed)
        task = Task(model, guide, elbo, training, stored, scored)
        _check_parameters(task)
        trainer = L.Trainer(
            accelerator=training.accelerator,
            **processes(),
            max_epochs=training.epochs,
            gradient_clip_val=training.clip,
            logger=[TensorBoardLogger(folder, name="tensorboard", version="")] if folder else False,
            callbacks=[*steering, *callbacks, *_stopping(monitor, training), history, keeper, *_saving(folder)],
            enable_checkpointing=folder is not None,
            enable_progress_bar=training.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        train, validation = _loaders(windows, training, trainer)
        checkpoint = _checkpoint(folder, task) if folder is not None and resume else None
        task.train()  # a pair that was fitted before is in eval mode
        with _interruptible():
            trainer.fit(task, train, validation, ckpt_path=checkpoint, weights_only=True)
        task.load_state_dict(keeper.weights)
    if keeper.epoch is None:
        raise ValueError(_why_none(task, monitor))
    for program in (model, guide):
        if isinstance(program, nn.Module):
            program.eval()
    tables = history.tables(trainer)
    return Fit(tables.pop("history"), tables, keeper.epoch, history.seconds, _why(task, trainer, training, monitor))


def _scored(model: Model, guide: Guide, windows: RowSplits, elbo: LocalELBO) -> tuple[str, ...]:
    """Return what validation scores the forecasts by, the first being what is monitored.

    Raises ValueError for a guide that samples, without a future, what the model has not, and for a likelihood that
    holds what this loss has no other term for.
    """
    with evaluating(model, guide, seed=0):
        model_trace, guide_trace = forecast_trace(model, guide, windows.train[:2].context.to(device_of(model)))
        refuse_added_sites(model_trace, guide_trace)
    likelihood = observation(model_trace)
    held = getattr(likelihood, "held", None)
    if held and (elbo.objective not in FORECASTING or elbo.alpha == 1):
        raise ValueError(
            f"held {held} learn from the densities of forecasts alone: LocalELBO('composite', alpha=...), alpha below 1"
        )
    return ("log_score", "accuracy") if is_categorical(values(likelihood)) else ("crps",)


def processes() -> dict[str, Any]:
    """Return how many processes train together, as the Trainer's options: those of ``torchrun``, else one.

    Each takes its share of every batch; gradients and the units' statistics are averaged over all before anything acts
    on them, so that all processes hold the same weights and the same controllers.
    """
    if not torch.distributed.is_torchelastic_launched():
        return {"devices": 1}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": here, "num_nodes": everywhere // here, "strategy": "ddp_find_unused_parameters_true"}


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
            "Checkpoint directory .* exists",
        ):
            warnings.filterwarnings("ignore", f".*{expected}")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning makes an exit of it and stays deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if type(error) is not SystemExit:  # a SIGTERM ends the process, as asked; Lightning's own code would be 0
            raise SystemExit(128 + signal.SIGTERM) from None
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _check_parameters(task: Task) -> None:
    if not task.trained():
        raise ValueError(
            "found no parameters to train: pass modules, or functions that call pyro.param(...) or pyro.module(...)"
        )
    bare = [name for name, value in task.stored.named.items() if not isinstance(value, nn.Parameter)]
    if bare and torch.distributed.is_torchelastic_launched():
        raise ValueError(
            f"parameter {bare[0]!r} comes from a bare pyro.param(...), whose gradients several processes do not share: "
            "make it an nn.Parameter of a module, or train in one process"
        )


def _loaders(windows: RowSplits, training: Training, trainer: L.Trainer) -> tuple[DataLoader[Any], DataLoader[Any]]:
    world = trainer.world_size
    if training.batch_size % world:
        raise ValueError(f"a batch of {training.batch_size} windows does not divide among {world} processes")

    def loader(part: Rows, train: bool) -> DataLoader[Any]:
        sampler: DistributedSampler[Any] = DistributedSampler(
            part, world, trainer.global_rank, shuffle=train, seed=training.seed % 2**62  # type: ignore[arg-type]
        )  # fmt: skip
        full = train and len(part) >= training.batch_size  # a small last batch would weigh as much as a full one
        return DataLoader(
            part,  # type: ignore[arg-type]
            training.batch_size // world,
            sampler=sampler,
            drop_last=full,
            collate_fn=lambda batch: batch,
        )

    return loader(windows.train, True), loader(windows.validation.at_most(training.validation_windows), False)


def _stopping(monitor: str | None, training: Training) -> list[Callback]:
    progress: list[Callback] = [RichProgressBar(leave=False)] if training.progress else []
    if monitor is None:
        return progress
    return [Patience(monitor, patience=training.patience, check_finite=False), *progress]


def _saving(folder: Path | None) -> list[Callback]:
    if folder is None:
        return []
    name = Path(CHECKPOINT).stem
    return [ModelCheckpoint(folder, name, enable_version_counter=False, save_on_train_epoch_end=True)]


def _checkpoint(folder: Path, task: Task) -> Path | None:
    """Return the checkpoint in ``folder``, or None; ValueError for one that is broken or of another training."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        if not is_zipfile(path):
            raise OSError("it is broken or no checkpoint")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, weights = saved["training"], saved["state_dict"]
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot read the checkpoint {path}: {error}") from None
    for name, value in asdict(task.training_options).items():
        if name not in MACHINE_OPTIONS and before.get(name) != value:
            raise ValueError(f"{path} was trained with {name} = {before.get(name)!r}, not {value!r}: resume it so")
    check_weights(path, weights, task.state_dict())
    return path


def _why_none(task: Task, monitor: str | None) -> str:
    if task.not_finite is None:
        return f"{monitor} was not finite after any epoch: check the validation rows"
    return (
        f"the loss was not finite at step {task.not_finite}, before a first epoch was done: lower the learning rate or "
        "check the data"
    )


def _why(task: Task, trainer: L.Trainer, training: Training, monitor: str | None) -> str:
    if task.not_finite is not None:
        return f"the loss was not finite at step {task.not_finite}; the best epoch before it was kept"
    done, callbacks = trainer.current_epoch, trainer.callbacks  # type: ignore[attr-defined]
    if done >= training.epochs:
        return "all epochs done"
    if any(isinstance(each, Pause) and each.epochs <= done for each in callbacks):
        return f"paused after {done} epochs"
    if any(isinstance(each, Patience) and each.wait_count >= each.patience for each in callbacks):
        return f"no better {monitor} in {training.patience} epochs"
    return f"stopped by a callback after epoch {done}"
