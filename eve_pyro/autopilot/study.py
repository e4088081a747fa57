"""A study from its beginning to its outcome, or a worker's part in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage

from eve_pyro.autopilot.board import Board, Job, View
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.storage import JOURNAL, begin_study, find_study, hidden, open_storage, reaching
from eve_pyro.autopilot.training import DRAWS, Trainer, seeded
from eve_pyro.bench.trials import fingerprint
from eve_pyro.data import Panel

Say = Callable[[str], None]
POLL = 1.0  # seconds between looks where there is nothing to train just now
PATIENCE = 60.0  # seconds that a worker waits for a study to be begun
TRIALS = "trials"


@dataclass(frozen=True)
class Place:
    """Where a study lives: the folder of its trainings, whose name is the study's, and its storage."""

    folder: Path
    storage: str | None = None

    @property
    def name(self) -> str:
        """The study's name."""
        return self.folder.absolute().name

    @property
    def where(self) -> str:
        """The storage's URL or path: a journal in the folder unless named otherwise."""
        return self.storage or str(self.folder / JOURNAL)


def search(panel: Panel, setup: Setup, place: Place, say: Say = print) -> Board:
    """Begin the study that ``setup`` describes, or go on with it, and work on it until it is complete.

    Raises ValueError, and leaves the study as it is, for a storage that cannot be reached, for a study of another
    version or setup, and, before anything is written, for a plan or space that makes no sense.
    """
    setup.plan.check()
    new = not place.folder.exists()
    if not new and not place.folder.is_dir():
        raise ValueError(f"{place.folder} is no folder: choose another --out, or move it away")
    found = None if new and place.storage is None else _found(place)
    if found is None:
        setup.rehearse(panel)
        if place.folder.is_dir() and any(each.name not in (JOURNAL, TRIALS) for each in place.folder.iterdir()):
            raise ValueError(f"{place.folder} already holds something: choose another --out, or move it away")
    else:
        found[1].check_same(setup, place.name)
        if new:
            say(f"the storage {hidden(place.where)} holds a study {place.name!r} already: going on with it")
    place.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(place.where)
    with reaching(place.where):
        study_id = begin_study(storage, place.name, setup) if found is None else found[0]
        board = Board(storage, study_id, setup)
        board.fill()
        trainer = Trainer.of(panel, setup.base, place.folder / TRIALS)
        _work(board, trainer, say)
    trainer.tidy()
    return board


def join(panel: Panel, place: Place, say: Say = print) -> Board:
    """Work on a study that was begun elsewhere until it is complete.

    Raises ValueError where there is none after a minute, and for data other than the study's.
    """
    deadline, found = time.monotonic() + PATIENCE, _found(place)
    if found is None:
        say(f"waiting for the study {place.name!r} to be begun")
    while found is None:
        if time.monotonic() > deadline:
            raise ValueError(f"there is no study {place.name!r} to work on: begin it with the same --out, no --worker")
        time.sleep(POLL)
        found = _found(place)
    study_id, setup = found
    setup.check_data(fingerprint(setup.base, panel, DRAWS), place.name)
    storage = open_storage(place.where)
    with reaching(place.where):
        board = Board(storage, study_id, setup)
        _work(board, Trainer.of(panel, setup.base, place.folder / TRIALS), say)
    return board


def _found(place: Place) -> tuple[int, Setup] | None:
    if place.storage is None and not (place.folder / JOURNAL).is_file():
        return None
    storage: BaseStorage = open_storage(place.where)
    with reaching(place.where):
        return find_study(storage, place.name)


def _work(board: Board, trainer: Trainer, say: Say) -> None:
    waiting = False
    while not (view := board.look()).done:
        job = board.claim(view)
        if job is not None:
            _train(board, trainer, job, say)
        else:
            if not waiting:
                say("waiting for the trainings of other workers")
            board.bury_lost()
            time.sleep(POLL)
        waiting = job is None
    say(_progress(board, view))


def _train(board: Board, trainer: Trainer, job: Job, say: Say) -> None:
    slot, plan = board.setup.plan.slots[job.slot], board.setup.plan
    stage = plan.stages[slot.stage]
    config = seeded(board.setup.config(job.trial), slot.seed)
    what = f"trial {job.trial}" + (f", seed {config.training.seed}" if slot.seed else "")
    what += f", {stage.epochs} of {plan.epochs} epochs"
    try:
        with board.alive(job):
            figures = trainer.train(config, trainer.home(job.trial, slot.seed), stage.epochs)
    except (ValueError, RuntimeError) as error:  # an algebra that fails is a RuntimeError, and would fail again
        board.drop(job, str(error).split("\n")[0])
        say(f"{_progress(board, board.look())}: {what}: {error}")
        return
    except BaseException:
        board.release(job)
        raise
    if board.finish(job, figures):
        shown = f"validation crps {figures['crps']:.4f}, inside mass {figures['inside_mass']:.2f}"
        say(f"{_progress(board, board.look())}: {what}: {shown}")


def _progress(board: Board, view: View) -> str:
    return f"{sum(map(len, view.stages))} of {len(board.setup.plan.slots)}"
