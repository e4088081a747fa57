"""Where a study is kept: a journal file on one host or a shared disk, or a database for a cluster."""

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.space import Entry, kind_of

JOURNAL, SETUP = "study.log", "setup"
GRACE = 30  # seconds after which the lock of a journal that does not grow is taken for a dead worker's


@contextmanager
def reaching(where: str) -> Iterator[None]:
    """Turn what a storage may raise into a ValueError that names it, without its password."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, JSONDecodeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"cannot reach the storage {hidden(where)}: {first}; the study is as it was") from None


def hidden(where: str) -> str:
    """Return a storage's name as it may be shown."""
    head, at, tail = where.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at and "://" in head else where


def open_storage(where: str) -> BaseStorage:
    """Open a database by its URL, or a journal by the path of its file, in a folder that exists.

    Raises ValueError for a storage that cannot be reached, and for a file that is no journal.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reaching(where):
        if "://" in where:
            return _database(where)
        path = Path(where).absolute()  # a lock is a link to the journal: a relative one would lead nowhere
        if not path.parent.is_dir():
            raise ValueError(f"cannot reach the storage {where}: there is no folder {path.parent}")
        if path.is_dir():
            raise ValueError(f"cannot reach the storage {where}: it is a folder; name a file in it")
        if path.is_file():
            _mend(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return JournalStorage(JournalFileBackend(str(path), _lock(path)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is no journal of a study, or broken: {error}") from None


def _lock(path: Path) -> JournalFileSymlinkLock:
    return JournalFileSymlinkLock(str(path), GRACE)


def _mend(path: Path) -> None:
    """Cut off a last line that was only half written: appended to, it would break the journal for good.

    Raises ValueError, and leaves the file as it is, where it is no journal.
    """
    with path.open("rb") as file:
        first = file.readline()
    if first and not (first.startswith(b"{") and b'"op_code"' in first):
        raise ValueError(f"{path} is no journal of a study: choose another --storage")
    lock = _lock(path)
    lock.acquire()
    try:
        written = path.read_bytes()
        if written and not written.endswith(b"\n"):
            os.truncate(path, written.rfind(b"\n") + 1)
    finally:
        lock.release()


def _database(url: str) -> RDBStorage:
    try:
        try:
            return RDBStorage(url)
        except SQLAlchemyError:  # another worker may have been making the tables at this very moment
            time.sleep(1.0)
            return RDBStorage(url)
    except (RuntimeError, ValueError) as error:  # tables of another version of Optuna; a port that is no number
        raise ValueError(f"cannot use the storage {hidden(url)}: {error}") from None


def find_study(storage: BaseStorage, name: str) -> tuple[int, Setup] | None:
    """Return a study's id in the storage and its setup, or None; ValueError for one of another version."""
    found = [each for each in storage.get_all_studies() if each.study_name == name]
    if not found:
        return None
    study_id = found[0]._study_id
    attrs = storage.get_study_user_attrs(study_id)
    if not attrs and not storage.get_all_trials(study_id, deepcopy=False):
        return None  # whoever began it did not get as far as to say what it is
    return study_id, Setup.from_attrs(attrs.get(SETUP, {}), name)


def begin_study(storage: BaseStorage, name: str, setup: Setup) -> int:
    """Write a new study down and return its id; of several who begin it at once, all go on with the same one."""
    directions = [StudyDirection.MINIMIZE] * len(setup.plan.objectives)
    try:
        study_id = storage.create_new_study(directions, name)
    except optuna.exceptions.DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
    storage.set_study_user_attr(study_id, SETUP, setup.to_attrs())
    return study_id


def add_attempt(storage: BaseStorage, study_id: int, setup: Setup, number: int) -> None:
    """Write down one more attempt at the slot of this number, as a waiting trial; those of the first stage with their
    options.
    """
    slot = setup.plan.slots[number]
    options = setup.options(slot.rank) if slot.stage == 0 else {}
    trial = create_trial(
        state=TrialState.WAITING,
        params=options,
        distributions={name: _distribution(setup.space.entries[name], kind_of(name)) for name in options},
        user_attrs={"slot": number, "stage": slot.stage, "seed": slot.seed},
    )
    storage.create_new_trial(study_id, trial)


def importances(setup: Setup, scores: Mapping[int, float]) -> dict[str, float]:
    """Return each option's share in how the trials' ``scores`` differ (PED-ANOVA), the largest first.

    Empty for fewer than eight trials, or scores that do not differ.
    """
    if len(scores) < 8 or len(set(scores.values())) < 2:
        return {}
    study = optuna.create_study()
    for number, score in scores.items():
        options = setup.options(number)
        distributions = {name: _distribution(setup.space.entries[name], kind_of(name)) for name in options}
        study.add_trial(create_trial(params=options, distributions=distributions, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return dict(sorted(found.items(), key=lambda item: (-round(item[1], 12), item[0])))  # its ties come in any order


def _distribution(entry: Entry, kind: Any) -> BaseDistribution:
    if entry.values is not None:
        return CategoricalDistribution(entry.values)
    assert entry.low is not None
    assert entry.high is not None
    if kind is int:
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return FloatDistribution(entry.low, entry.high, log=entry.log)
