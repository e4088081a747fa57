"""The board of a study: which trainings are done, which are to be had, and who is at which.

Every training is a slot, known before the study begins, and every attempt at one a trial in the storage. A worker
claims an attempt by setting it from waiting to running, which a storage lets only one do. While it trains it gives
signs of life; an attempt without any is failed by whoever sees it, which again only one can do, and the slot has one
attempt more. What fills a slot above the first stage follows from the results below it alone, whoever reads them.
"""

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from eve_pyro.autopilot.gates import Figures
from eve_pyro.autopilot.pareto import values_of
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.storage import add_attempt
from eve_pyro.autopilot.training import from_json, jsonable

BEAT = 5.0  # seconds between signs of life
GRACE = 60.0  # seconds without any before an attempt is given up
ATTEMPTS = 2
LOST = f"its worker was lost {ATTEMPTS} times"


@dataclass(frozen=True)
class Outcome:
    """How a slot ended: the ``trial`` it trained, its figures, or ``why`` there are none."""

    trial: int
    figures: Figures | None
    why: str = ""


@dataclass(frozen=True)
class Job:
    """A claimed attempt: at a slot, for a trial, in a storage's trial."""

    slot: int
    trial: int
    storage_id: int


@dataclass(frozen=True)
class View:
    """How a study stood when a worker looked: attempts by slot, the ``trials`` that fill the slots known so far, by
    slot, the outcomes by stage and slot, of the stages begun, and whether that is all.
    """

    attempts: list[list[FrozenTrial]]
    trials: dict[int, int]
    stages: list[dict[int, Outcome]]
    done: bool


@dataclass
class Board:
    """The study ``study_id`` in its storage, as one worker sees it."""

    storage: BaseStorage
    study_id: int
    setup: Setup
    beats: dict[int, tuple[Any, float]] = field(default_factory=dict)  # of others: the last one, and when it came

    def attempts(self) -> list[list[FrozenTrial]]:
        """Return the attempts at each slot in order: a failed one, at most, before one that counts."""
        slots: list[list[FrozenTrial]] = [[] for _ in self.setup.plan.slots]
        for trial in self.storage.get_all_trials(self.study_id, deepcopy=False):
            past = slots[trial.user_attrs["slot"]]
            if len(past) < ATTEMPTS and all(each.state == TrialState.FAIL for each in past):
                past.append(trial)
        return slots

    def look(self) -> "View":
        """Return how the study stands now."""
        plan, attempts = self.setup.plan, self.attempts()
        stages: list[dict[int, Outcome]] = []
        ranked: list[int] = list(range(plan.budget))
        wanted: dict[int, int] = {}
        for stage in range(len(plan.stages)):
            slots = {n: slot for n, slot in enumerate(plan.slots) if slot.stage == stage and slot.rank < len(ranked)}
            trials = {number: ranked[slot.rank] for number, slot in slots.items()}
            found = {number: _outcome(trial, attempts[number]) for number, trial in trials.items()}
            stages.append({number: each for number, each in found.items() if each is not None})
            wanted |= trials
            if len(stages[-1]) < len(trials):
                return View(attempts, wanted, stages, False)
            if stage < len(plan.rungs):
                ranked = self.ranking(stage, stages[-1])
        return View(attempts, wanted, stages, True)

    def ranking(self, stage: int, outcomes: Mapping[int, Outcome]) -> list[int]:
        """Return the trials of a stage of one seed, best first, without those that have no figures."""
        figures = {each.trial: each.figures for each in outcomes.values() if each.figures is not None}
        return self.setup.plan.order(figures, stage)

    def claim(self, view: "View") -> Job | None:
        """Take the first training that waits and is known to be wanted; None where there is none just now."""
        jobs = (self._claim(number, trial, view.attempts[number]) for number, trial in view.trials.items())
        return next((job for job in jobs if job is not None), None)

    def finish(self, job: Job, figures: Figures) -> bool:
        """Write down a training's figures; False where the attempt was given up by others in the meantime."""
        try:
            self.storage.set_trial_user_attr(job.storage_id, "figures", jsonable(dict(figures)))
            values = values_of(figures, self.setup.plan.objectives)
            return self.storage.set_trial_state_values(job.storage_id, TrialState.COMPLETE, values)
        except UpdateFinishedTrialError:
            return False

    def drop(self, job: Job, why: str) -> None:
        """Write down why a training has no figures: it would fail again."""
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(job.storage_id, "why", why)
            self.storage.set_trial_state_values(job.storage_id, TrialState.PRUNED)

    def release(self, job: Job) -> None:
        """Put a training back that the user stopped."""
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(job.storage_id, "worker", None)  # whoever claims it next is not dead
            self.storage.set_trial_state_values(job.storage_id, TrialState.WAITING)

    @contextmanager
    def alive(self, job: Job) -> Iterator[None]:
        """Give signs of life from a thread of its own."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            with suppress(UpdateFinishedTrialError):
                while not stop.wait(BEAT):
                    count += 1
                    with suppress(StorageInternalError):  # out of reach, or locked: the next one may get through
                        self.storage.set_trial_user_attr(job.storage_id, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def fill(self) -> None:
        """Write down a first attempt at every slot that has none."""
        for number, past in enumerate(self.attempts()):
            if not past:
                add_attempt(self.storage, self.study_id, self.setup, number)

    def bury_lost(self) -> None:
        """Fail the attempts whose workers are gone, and give each of their slots one more, once."""
        for past in self.attempts():
            if past and past[-1].state == TrialState.RUNNING and self._is_lost(past[-1]):
                with suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(past[-1]._trial_id, TrialState.FAIL)
        for number, past in enumerate(self.attempts()):
            if past and past[-1].state == TrialState.FAIL and len(past) < ATTEMPTS:
                add_attempt(self.storage, self.study_id, self.setup, number)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        worker, now = trial.user_attrs.get("worker"), time.monotonic()
        if worker is not None and worker["host"] == host() and not _running(worker["pid"]):
            return True
        beat = trial.user_attrs.get("beat")
        last, since = self.beats.get(trial._trial_id, (None, now))
        if trial._trial_id not in self.beats or beat != last:
            self.beats[trial._trial_id] = beat, now
            return False
        return now - since > GRACE

    def _claim(self, number: int, trial: int, past: list[FrozenTrial]) -> Job | None:
        if not past or past[-1].state != TrialState.WAITING:
            return None
        storage_id = past[-1]._trial_id
        try:
            if not self.storage.set_trial_state_values(storage_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        self.storage.set_trial_user_attr(storage_id, "worker", {"host": host(), "pid": os.getpid()})
        self.storage.set_trial_user_attr(storage_id, "trial", trial)
        return Job(number, trial, storage_id)


def host() -> str:
    """Return a name for all processes that see the same process numbers."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return f"{platform.node()} {uuid.getnode()}"


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _outcome(trial: int, past: list[FrozenTrial]) -> Outcome | None:
    if not past:
        return None
    last = past[-1]
    if last.state == TrialState.COMPLETE:
        return Outcome(trial, from_json(last.user_attrs["figures"]))
    if last.state == TrialState.PRUNED:
        return Outcome(trial, None, last.user_attrs["why"])
    if last.state == TrialState.FAIL and len(past) == ATTEMPTS:
        return Outcome(trial, None, LOST)
    return None
