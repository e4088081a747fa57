"""Where a study is kept: what is refused, what a cut or crash leaves behind, and what its outcome says."""

import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import make_panel
from test_autopilot import setup_of, table_of

from eve_pyro.autopilot import board as board_module
from eve_pyro.autopilot import cluster
from eve_pyro.autopilot import storage as storage_module
from eve_pyro.autopilot import study as study_module
from eve_pyro.autopilot.board import LOST, Board
from eve_pyro.autopilot.cluster import ray_workers
from eve_pyro.autopilot.outcome import Result, result_of
from eve_pyro.autopilot.plan import Plan
from eve_pyro.autopilot.signals import read_full
from eve_pyro.autopilot.space import parse_space
from eve_pyro.autopilot.storage import begin_study, find_study, hidden, importances, open_storage
from eve_pyro.autopilot.study import Place, search
from eve_pyro.config import load_recipe

PLAN = Plan(4, 1, seeds=1)


@pytest.fixture(scope="module")
def data():
    return make_panel()


def test_storages_that_cannot_be_reached_are_refused(tmp_path):
    (tmp_path / "junk.log").write_text("no journal\nat all\n")
    for where, message in (
        (f"sqlite:///{tmp_path}/no/s.db", "cannot reach the storage sqlite:///"),
        ("oracle+nothing://x/y", "cannot reach the storage oracle"),
        ("postgresql://me:secret@host:port/db", r"cannot use the storage postgresql://\*\*\*@host:port/db"),
        (str(tmp_path / "no" / "s.log"), "there is no folder"),
        (str(tmp_path), "it is a folder"),
        (str(tmp_path / "junk.log"), "is no journal of a study"),
    ):
        with pytest.raises(ValueError, match=message):
            open_storage(where)
    assert hidden("postgresql://me:secret@host/db") == "postgresql://***@host/db"
    assert hidden("--storage=postgresql://me:secret@host/db") == "--storage=postgresql://***@host/db"


@pytest.mark.parametrize("text", ["hello\n", "hello", "[1]\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "notes.log"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no journal of a study"):
        open_storage(str(path))
    assert path.read_text() == text


def test_a_lock_that_a_killed_worker_left_is_taken_away(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage_module, "GRACE", 3)
    open_storage("study.log")._backend._lock.acquire()  # and never released
    assert Path("study.log.lock").resolve(strict=True) == tmp_path / "study.log"  # or it would be waited for for ever
    assert begin_study(open_storage("study.log"), "one", setup_of(data, PLAN)) == 0
    assert not Path("study.log.lock").is_symlink()


@pytest.mark.parametrize("cut", [1, 40])
def test_a_journal_whose_last_line_was_cut_goes_on_without_it(data, tmp_path, monkeypatch, cut):
    monkeypatch.setattr(board_module, "GRACE", 3.0)  # an attempt whose end was cut is this process's, which is alive
    setup = setup_of(data, PLAN)
    whole = table_of(search(data, setup, Place(tmp_path / "one"), lambda _: None))
    journal = tmp_path / "one" / "study.log"
    journal.write_bytes(journal.read_bytes()[:-cut])
    for _ in range(2):
        again = search(data, setup, Place(tmp_path / "one"), lambda _: None)
        pd.testing.assert_frame_equal(table_of(again), whole)


def test_a_training_whose_algebra_fails_is_dropped_and_the_study_ends(data, tmp_path, monkeypatch):
    real = study_module.Trainer.train

    def fail(self, config, home, epochs):
        if home.name == "001-0":
            raise RuntimeError("linalg.cholesky: not positive-definite")
        return real(self, config, home, epochs)

    monkeypatch.setattr(study_module.Trainer, "train", fail)
    table = table_of(search(data, setup_of(data, PLAN), Place(tmp_path / "one"), lambda _: None)).set_index("trial")
    assert table.loc[1, "why"] == "failed: linalg.cholesky: not positive-definite"


def test_lost_twice_a_training_is_given_up_and_one_that_diverges_is_dropped(data, tmp_path, monkeypatch):
    """Workers that die are processes of this host whose numbers nobody has."""

    def lose(board, job):
        if job.slot == 1:
            board.storage.set_trial_user_attr(job.storage_id, "worker", {"host": board_module.host(), "pid": 2**22 + 1})
            return True
        return False

    def train(board, trainer, job, say):
        if not lose(board, job):
            original(board, trainer, job, say)

    original, real = study_module._train, study_module.Trainer.train

    def diverge(self, config, home, epochs):
        if home.name == "002-0":
            raise ValueError("the loss was not finite at step 1")
        return real(self, config, home, epochs)

    monkeypatch.setattr(study_module, "POLL", 0.01)
    monkeypatch.setattr(study_module, "_train", train)
    monkeypatch.setattr(study_module.Trainer, "train", diverge)
    board = search(data, setup_of(data), Place(tmp_path / "lost"), lambda _: None)
    table = result_of(board).leaderboard.set_index("trial")
    assert table.loc[1, "why"] == f"failed: {LOST}"
    assert table.loc[2, "why"] == "failed: the loss was not finite at step 1"
    states = Counter(trial.state.name for trial in board.storage.get_all_trials(board.study_id))
    assert states == {"COMPLETE": 9, "FAIL": 2, "PRUNED": 1}


def test_a_silent_worker_of_another_host_is_given_up_after_the_grace(data, tmp_path, monkeypatch):
    folder = tmp_path / "far"
    folder.mkdir()
    setup = setup_of(data)
    storage = open_storage(str(folder / "study.log"))
    board = Board(storage, study_module.begin_study(storage, "far", setup), setup)
    board.fill()
    job = board.claim(board.look())
    board.storage.set_trial_user_attr(job.storage_id, "worker", {"host": "elsewhere", "pid": 1})
    board.bury_lost()
    assert board.attempts()[0][-1].state.name == "RUNNING"
    monkeypatch.setattr(board_module, "GRACE", 0.0)
    board.bury_lost()
    assert [each.state.name for each in board.attempts()[0]] == ["FAIL", "WAITING"]
    assert not board.finish(job, {"crps": 1.0})  # whoever comes back late changes nothing


def test_a_new_folder_says_that_its_study_was_begun_elsewhere(data, tmp_path):
    url, said = f"sqlite:///{tmp_path}/s.db", []
    search(data, setup_of(data, PLAN), Place(tmp_path / "one", url), lambda _: None)
    (tmp_path / "other").mkdir()
    search(data, setup_of(data, PLAN), Place(tmp_path / "other" / "one", url), said.append)
    assert "holds a study 'one' already" in said[0]


class Ray:
    """A stand-in whose tasks are threads."""

    def __init__(self, error=None):
        self.error, self.threads, self.up = error, [], False

    def is_initialized(self):
        return self.up

    def init(self, **_):
        if self.error:
            raise self.error
        self.up = True

    def put(self, value):
        return value

    def remote(self, **options):
        assert options["num_cpus"] == 1

        def start(function):
            def task(*arguments):
                self.threads.append(threading.Thread(target=function, args=arguments))
                self.threads[-1].start()
                return self.threads[-1]

            return SimpleNamespace(remote=task)

        return start

    def get(self, threads):
        for thread in threads:
            thread.join()

    def shutdown(self):
        self.up = False


def test_workers_on_ray_join_the_study_and_end_as_one_would(data, tmp_path, monkeypatch):
    alone = table_of(search(data, setup_of(data, PLAN), Place(tmp_path / "alone"), lambda _: None))
    ray, place, joined = Ray(), Place(tmp_path / "one"), []
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "join", lambda *arguments: joined.append(arguments[1]))
    with ray_workers(data, place, 2):
        assert ray.up
        board = search(data, setup_of(data, PLAN), place, lambda _: None)
    pd.testing.assert_frame_equal(table_of(board), alone)
    assert joined == [Place((tmp_path / "one").absolute())] * 2
    assert not ray.up


def test_without_ray_or_its_cluster_there_is_one_line(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Ray(ConnectionError("no node at 1.2.3.4\nmore")))
    with pytest.raises(ValueError, match=r"cannot reach the Ray cluster: no node at 1.2.3.4$"):
        ray_workers(data, Place(tmp_path / "one"), 1).__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'eve_pyro\[ray\]'"):
        ray_workers(data, Place(tmp_path / "one"), 1).__enter__()


def test_importances_come_in_one_order():
    setup = setup_of(make_panel(), Plan(30, 1, seeds=1))
    scores = {trial: 1.0 + (trial % 7) for trial in range(30)}
    found = importances(setup, scores)
    assert list(found) == list(importances(setup, dict(reversed(scores.items()))))
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_condition_that_no_recipe_can_meet_is_refused():
    with pytest.raises(ValueError, match=r"space.toml, \[units\]: option control.regime = 'homeostasys'"):
        parse_space(
            "[units]\nvalues = [4, 8]\nwhen = { regime = ['homeostasys'] }", load_recipe("factor"), "space.toml"
        )


def test_the_verdict_names_a_valid_trial_that_went_no_further():
    setup = setup_of(make_panel(), Plan(4, 9))
    rows = [
        {"trial": 3, "valid": False, "epochs": 9, "gates": "inside mass 0.400 < 0.50, missed by 0.100"},
        {"trial": 1, "valid": True, "epochs": 1, "gates": ""},
    ]
    mixed, none = (Result(setup, pd.DataFrame(rows[:count]), pd.DataFrame(), pd.DataFrame()) for count in (2, 1))
    assert none.verdict().startswith("No trial is valid. The least bad is trial 3: inside mass 0.400")
    assert mixed.verdict().startswith("No trial that was trained to the end is valid; trial 1 was at 1 of 9 epochs")


def test_early_signals_of_a_study_that_dropped_trials_are_refused(tmp_path):
    pd.DataFrame({"trial": range(9), "epochs": [5] * 8 + [1]}).to_csv(tmp_path / "leaderboard.csv", index=False)
    with pytest.raises(ValueError, match="dropped trials on the way: search with --full"):
        read_full(tmp_path)


def test_a_setup_is_read_back_as_it_was(tmp_path):
    setup = setup_of(make_panel(), PLAN)
    storage = open_storage(str(tmp_path / "study.log"))
    Board(storage, begin_study(storage, "one", setup), setup).fill()
    found = find_study(open_storage(str(tmp_path / "study.log")), "one")
    assert found is not None
    found[1].check_same(setup, "one")
