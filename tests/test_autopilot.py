"""The search at work: small studies that repeat, resume and share their work."""

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
from conftest import make_panel
from optuna.exceptions import StorageInternalError

from eve_pyro import cli
from eve_pyro.autopilot import study as study_module
from eve_pyro.autopilot.outcome import result_of
from eve_pyro.autopilot.page import first_and_last, write_outcome
from eve_pyro.autopilot.plan import Plan
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.signals import correlations, pruned
from eve_pyro.autopilot.space import parse_space
from eve_pyro.autopilot.storage import find_study, open_storage
from eve_pyro.autopilot.study import Place, search
from eve_pyro.config import load_recipe

SMALL = {"context_length": 24, "horizon": 6, "hidden": 8, "features": 12, "batch_size": 64, "warmup": 2, "ramp": 2}
SPACE = """
[learning_rate]
low = 1e-3
high = 1e-2
log = true
[units]
low = 3
high = 6
[regime]
values = ["penalty", "homeostasis"]
[eta]
low = 0.1
high = 0.5
when = { regime = ["homeostasis"] }
"""
PLAN = Plan(6, 3, reduction=3, seeds=2)
VOLATILE = ["seconds"]


@pytest.fixture(scope="module")
def data():
    return make_panel()


def setup_of(data, plan=PLAN, space=SPACE, **options):
    base = load_recipe("factor", SMALL | {"target": 0.1, "width": 4.0} | options)
    return Setup.of(data, base, parse_space(space, base, "space.toml"), plan)


def table_of(board):
    """The leaderboard without what a clock says."""
    return result_of(board).leaderboard.drop(columns=VOLATILE)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A study of one worker that is done: folder, board and leaderboard."""
    folder = tmp_path_factory.mktemp("pilot") / "one"
    board = search(data, setup_of(data), Place(folder), lambda _: None)
    return folder, board, table_of(board)


def test_options_at_odds_are_refused_before_anything_is_written(data, tmp_path):
    space = "[guide]\nvalues = ['conjugate']\n[readout]\nvalues = ['normal']"
    with pytest.raises(ValueError, match=r"the space contradicts itself: .* \(trial 0: guide = conjugate, readout = n"):
        search(data, setup_of(data, space=space), Place(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_study_accounts_for_every_trial_once_and_repeats(data, done, tmp_path):
    _, board, table = done
    assert sorted(table["trial"]) == list(range(6))
    assert list(table["epochs"]) == [3, 3, 3, 1, 1, 1]
    assert list(table["seeds"]) == [2, 2, 1, 1, 1, 1]
    states = Counter(trial.state.name for trial in board.storage.get_all_trials(board.study_id))
    assert states == {"COMPLETE": len(board.setup.plan.slots)}
    again = search(data, setup_of(data), Place(tmp_path / "one"), lambda _: None)
    pd.testing.assert_frame_equal(table_of(again), table)


def test_a_promoted_trial_equals_one_that_was_never_stopped(data, done, tmp_path):
    full = search(data, setup_of(data, Plan(6, 3, full=True, seeds=1)), Place(tmp_path / "full"), lambda _: None)
    whole = {each.trial: each.figures for each in full.look().stages[0].values()}
    rung = {each.trial: each.figures for each in done[1].look().stages[1].values()}
    for trial, found in rung.items():
        assert found | {"seconds": 0} == whole[trial] | {"seconds": 0}
    rows = result_of(full).leaderboard
    assert list(first_and_last(full, result_of(full))["first_crps"]) == list(rows["early_val_crps"])
    assert len(correlations(rows)) == 10
    for _, row in pruned(rows).iterrows():
        assert 0 < row["saved"] < 1
        assert row["best_lost"] >= 0


def test_a_stopped_study_goes_on_with_the_same_command(data, done, tmp_path, monkeypatch):
    train, calls = study_module.Trainer.train, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(study_module.Trainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        search(data, setup_of(data), Place(tmp_path / "one"), lambda _: None)
    board = search(data, setup_of(data), Place(tmp_path / "one"), lambda _: None)
    pd.testing.assert_frame_equal(table_of(board), done[2])
    assert len(calls) == len(board.setup.plan.slots) + 1


def test_another_setup_data_or_version_is_refused_and_the_study_stays(data, done, tmp_path):
    folder = done[0]
    before = (folder / "study.log").read_bytes()
    others = [
        (data, setup_of(data, replace(PLAN, seeds=3)), "was begun with seeds = 2, not 3"),
        (data, setup_of(data, alpha=0.9), "was begun with alpha = 0.5, not 0.9"),
        (data, setup_of(data, space="[units]\nvalues = [4, 5]"), "another space"),
        (make_panel(seed=1), setup_of(make_panel(seed=1)), "other data"),
    ]
    for panel, setup, message in others:
        with pytest.raises(ValueError, match=message):
            search(panel, setup, Place(folder), lambda _: None)
    assert (folder / "study.log").read_bytes() == before
    storage = optuna.storages.RDBStorage(url := f"sqlite:///{tmp_path}/old.db")
    for name, attrs, message in (
        ("old", {"version": 0}, "is of version 0; this is version 2"),
        ("alien", {}, "is none of autopilot's"),
    ):
        storage.set_study_user_attr(
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name), "setup", attrs
        )
        with pytest.raises(ValueError, match=message):
            find_study(open_storage(url), name)


def write(data, path):
    frame = pd.DataFrame(dict(zip(data.names, data.values, strict=True)))
    frame.insert(0, "date", data.index[0])
    frame.to_csv(path, index=False)


FLAGS = ["--context", "24", "--horizon", "6", "--hidden", "8", "--features", "12", "--batch-size", "64"]
FLAGS += ["--warmup", "2", "--ramp", "2", "--target", "0.1", "--width", "4", "--budget", "6", "--epochs", "3"]
FLAGS += ["--reduction", "3", "--seeds", "2", "--space", "space.toml"]


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(data, "data.csv")
    Path("space.toml").write_text(SPACE)
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eve-pyro", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.parametrize("storage", [[], ["--storage", "sqlite:///study.db"]], ids=["journal", "database"])
def test_two_workers_one_killed_end_as_one_alone(here, done, monkeypatch, storage):
    command = [sys.executable, "-m", "eve_pyro", "autopilot", "data.csv", *FLAGS, "--out", "shared", *storage]
    other = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    train, jobs, seen = study_module._train, [], []

    def is_training(board):
        running = [past[-1] for past in board.attempts() if past and past[-1].state.name == "RUNNING"]
        return other.pid in [each.user_attrs.get("worker", {}).get("pid") for each in running]

    def kill_the_other(board, trainer, job, say):
        jobs.append(job.slot)
        while len(jobs) == 2 and other.poll() is None:
            if is_training(board):
                other.send_signal(signal.SIGSTOP)  # or it might be done between the look and the kill
                os.waitpid(other.pid, os.WUNTRACED)
                with suppress(StorageInternalError):  # it stands in the middle of a write, and locks the database
                    if is_training(board):
                        other.kill()
                        other.wait()
                        break
                other.send_signal(signal.SIGCONT)
        train(board, trainer, job, say)

    monkeypatch.setattr(study_module, "_train", kill_the_other)
    monkeypatch.setattr(study_module, "POLL", 0.1)
    monkeypatch.setattr(study_module, "PATIENCE", 300.0)
    assert call(monkeypatch, "autopilot", "data.csv", "--worker", "--out", "shared", *storage) == 0
    assert other.returncode == -signal.SIGKILL
    board = search_on(monkeypatch, seen, storage)
    states = Counter(past.state.name for past in board.storage.get_all_trials(board.study_id))
    assert states == {"COMPLETE": len(board.setup.plan.slots), "FAIL": 1}
    done[2].to_csv("alone.csv", index=False)
    shared = pd.read_csv("shared/leaderboard.csv").drop(columns=VOLATILE)
    pd.testing.assert_frame_equal(shared, pd.read_csv("alone.csv"))


def search_on(monkeypatch, seen, storage):
    """Call the study's command again, and return its board."""
    real = study_module.search
    monkeypatch.setattr(study_module, "search", lambda *arguments: seen.append(real(*arguments)) or seen[-1])
    assert call(monkeypatch, "autopilot", "data.csv", *FLAGS, "--out", "shared", *storage) == 0
    return seen[0]


def test_the_page_needs_nothing_else_and_files_say_the_same(done, tmp_path, monkeypatch):
    folder, board, table = done
    result = write_outcome(board, folder, "ETTh1.csv", "eve-pyro autopilot ETTh1.csv")
    html = (folder / "report.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "--validation 0.1 --test 0.2 --out" in html  # no standard rows were asked for
    for trial in range(6):
        assert f"trial {trial}" in html
    written = pd.read_csv(folder / "leaderboard.csv")
    assert list(written["why"]) == list(table["why"])
    assert load_recipe(str(folder / "config.toml")) == result.config
    assert pd.read_csv(folder / "pareto.csv")["front"].any()
    assert (folder / "early_signals.png").stat().st_size > 10_000
    assert not list(folder.rglob("*.ckpt"))


def test_without_a_valid_trial_the_least_bad_is_shown_with_its_gate(here, monkeypatch, capsys):
    flags = [*FLAGS, "--regime", "off", "--target", "1e-6"]
    assert call(monkeypatch, "autopilot", "data.csv", *flags, "--out", "off") == 0
    out = capsys.readouterr().out
    assert "No trial is valid. The least bad is trial" in out
    assert "too-high share 1.000 > 0.12, missed by 0.880; inside mass 0.000 < 0.50, missed by 0.500" in out
    assert "the least bad, invalid: too-high share 1.00" in pd.read_csv("off/leaderboard.csv")["why"].iloc[0]


BAD_CALLS = [
    (["--budget", "2"], "smaller than the first rung"),
    (["--space", "gone.toml"], "cannot read gone.toml: No such file"),
    (["--storage", "sqlite:///no/s.db"], "cannot reach the storage sqlite:///no/s.db"),
    (["--objectives", "crps,fun"], "no objective 'fun'"),
    (["--prune", "luck"], "not by 'luck'"),
    (["--out", "data.csv"], "data.csv is no folder"),
    (["--learning-rate", "1e-3", "--units", "3", "--regime", "penalty", "--eta", "0.1"], "the space is empty"),
    (["--warmup", "999"], "the space contradicts itself: a warm-up of 999 steps"),
]


@pytest.mark.parametrize(("more", "message"), BAD_CALLS, ids=[" ".join(more) for more, _ in BAD_CALLS])
def test_bad_calls_are_one_line_and_leave_nothing(here, monkeypatch, capsys, more, message):
    before = sorted(here.rglob("*"))
    assert call(monkeypatch, "autopilot", "data.csv", *FLAGS, "--out", "runs/x", *more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_worker_without_a_study_says_so(here, monkeypatch, capsys):
    monkeypatch.setattr(study_module, "PATIENCE", 0.0)
    assert call(monkeypatch, "autopilot", "data.csv", "--worker", "--out", "nowhere") == 2
    assert "there is no study 'nowhere' to work on" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--budget", "4"], ["--beta", "1"], ["--context", "24"], ["--no-volatility"]])
def test_a_worker_takes_no_options_of_the_study(here, monkeypatch, capsys, more):
    assert call(monkeypatch, "autopilot", "data.csv", "--worker", "--out", "nowhere", *more) == 2
    assert f"leave out {more[0].replace('--no-', '--')}\n" in capsys.readouterr().err
