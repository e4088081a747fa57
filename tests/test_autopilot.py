"""The search: its space, gates and plan by hand, and small studies that repeat, resume and share their work."""

import math
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import make_panel

from eve_pyro import cli
from eve_pyro.autopilot import board as board_module
from eve_pyro.autopilot import study as study_module
from eve_pyro.autopilot.board import LOST, Board
from eve_pyro.autopilot.gates import gate_margins, is_valid, mean_ranks, penalty, why_invalid
from eve_pyro.autopilot.outcome import result_of
from eve_pyro.autopilot.page import write_outcome
from eve_pyro.autopilot.pareto import fronts
from eve_pyro.autopilot.plan import Plan, Stage
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.signals import correlations, pruned, read_full, spearman
from eve_pyro.autopilot.space import parse_space, read_space
from eve_pyro.autopilot.storage import find_study, hidden, open_storage
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


def test_gates_by_hand():
    good = {"too_high": 0.12, "too_low": 0.38, "inside_mass": 0.50}
    assert is_valid(good)
    assert penalty(good) == pytest.approx(0.2)
    assert penalty({"too_high": 0.0, "too_low": 0.3, "inside_mass": 0.7}) == 0
    assert why_invalid(good) == ""
    high = {"too_high": 0.30, "too_low": 0.0, "inside_mass": 0.70}
    assert not is_valid(high)
    assert penalty(high) == pytest.approx(0.2)
    assert why_invalid(high) == "too-high share 0.30 > 0.12, missed by 0.18"
    low = {"too_high": 0.0, "too_low": 0.49, "inside_mass": 0.51}
    assert gate_margins(low) == pytest.approx({"too-high share": -0.12, "inside mass": -0.01, "too-low share": 0.01})
    assert not is_valid(low)
    assert is_valid(low | {"inside_mass": 0.58})  # the third gate needs both
    assert math.isinf(penalty(low | {"inside_mass": math.nan}))


def test_fronts_and_ranks_by_hand():
    assert fronts([(1, 4), (2, 2), (4, 1), (3, 3), (4, 4), (2, 2)]) == [0, 0, 0, 1, 2, 0]
    assert fronts([]) == []
    assert mean_ranks([[3.0, 1.0, math.nan], [1.0, 1.0, 2.0]]) == [1.75, 1.25, 3.0]


def figures(crps, inside=0.8, **more):
    found = {"crps": crps, "inside_mass": inside, "too_high": 0.0, "too_low": 1 - inside}
    return found | {"out_of_band": 1 - inside, "not_living": 1 - inside, "kl_drift": 0.1} | more


def test_the_plan_promotes_by_gates_then_penalty_then_score():
    shown = {0: figures(0.3), 1: figures(0.2, 0.6), 2: figures(0.1, 0.2), 3: figures(0.4), 4: figures(0.2, 0.3)}
    assert Plan(8, 9).order(shown, final=False) == [0, 3, 1, 4, 2]
    assert Plan(8, 9, prune="signals").order(shown, final=False) == [0, 3, 1, 4, 2]
    assert Plan(8, 9, prune="signals").order(shown | {2: figures(9, 0.9)}, final=False)[0] == 2
    assert Plan(8, 9, prune="signals").order(shown | {2: figures(9, 0.9)}, final=True)[0] == 0
    two = Plan(8, 9, objectives=("crps", "seconds"))
    assert two.order({0: figures(1, seconds=3), 1: figures(2, seconds=4), 2: figures(3, seconds=1)}, True) == [0, 2, 1]


def test_the_default_plan_takes_less_than_a_third_of_the_steps():
    plan = Plan(40, 9)
    assert plan.stages == [Stage(1, 40), Stage(3, 10), Stage(9, 2), Stage(9, 2, (1, 2))]
    assert 40 * 1 + 10 * 2 + 2 * 6 + 2 * 2 * 9 < 40 * 9 / 3
    assert Plan(5, 9, full=True, seeds=1).stages == [Stage(9, 5)]
    assert Plan(4, 1).stages == [Stage(1, 4), Stage(1, 2, (1, 2))]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(3, 9), "a budget of 3 is smaller than the first rung: one trial in 4 goes on"),
        (Plan(8, 9, prune="luck"), "score, signals or both, not by 'luck'"),
        (Plan(8, 9, objectives=("crps", "fun")), "no objective 'fun'; choose among crps"),
        (Plan(8, 9, objectives=("crps", "crps")), "two or three different ones"),
        (Plan(8, 9, prune="signals", objectives=("crps", "seconds")), "promoted by their fronts"),
    ],
)
def test_plans_without_sense_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        plan.check()


def test_draws_depend_on_seed_and_number_alone_and_stay_inside():
    base = load_recipe("factor", SMALL)
    space = parse_space(SPACE, base, "space.toml")
    drawn = [space.draw(base, 0, number) for number in range(200)]
    assert drawn[7] == space.draw(base, 0, 7) != space.draw(base, 1, 7)
    assert {each["units"] for each in drawn} == {3, 4, 5, 6}
    assert all(1e-3 <= each["learning_rate"] <= 1e-2 for each in drawn)
    assert all(("eta" in each) == (each["regime"] == "homeostasis") for each in drawn)
    rates = np.log10([each["learning_rate"] for each in drawn])
    assert abs(rates.mean() + 2.5) < 0.1  # evenly in logs


@pytest.mark.parametrize("recipe", ["factor", "conditional", "paper", "trajectory"])
def test_the_default_space_fits_every_recipe_that_it_does_not_contradict(recipe):
    base = load_recipe(recipe)
    names = set(read_space(None, base).entries)
    assert {"learning_rate", "units", "latent_dim", "guide_scale", "target", "width", "spread", "phi", "beta"} <= names


BAD_SPACES = [
    ("", "space.toml is empty"),
    ("[colour]\nvalues = [1]", r"\[colour\]: no such option to search; known: .*units"),
    ("[epochs]\nlow = 1\nhigh = 3", r"\[epochs\]: it cannot be searched: all trials have the same"),
    ("[horizon]\nvalues = [6]", r"\[horizon\]: no such option"),
    ("units = 3", r"\[units\]: a section with low and high, or values, not 3"),
    ("[units]\nlow = 8\nhigh = 8", "low must lie below high, not 8 and 8"),
    ("[units]\nlow = 1.5\nhigh = 8", "whole numbers"),
    ("[units]\nlow = 8", "either low and high, or values"),
    ("[units]\nvalues = []", "values are at least one"),
    ("[units]\nvalues = [4, 4]", "each named once"),
    ("[units]\nvalues = [4, 0]", r"\[units\]: option model.units = 0"),
    ("[units]\nsize = 4", "'size' is none of low, high, log, values, when"),
    ("[guide]\nlow = 1\nhigh = 2", "it is no number"),
    ("[beta]\nlow = 0.0\nhigh = 2.0\nlog = true", "in logs low must be positive"),
    ("[eta]\nlow = 0.1\nhigh = 0.2\nwhen = { mood = [1] }", "depends on 'mood', which is no option"),
    (
        "[eta]\nlow = 0.1\nhigh = 0.2\nwhen = { regime = ['off'] }\n[regime]\nvalues = ['off']",
        "comes later in the file",
    ),
    ("[units", "no valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), BAD_SPACES)
def test_empty_and_contradictory_spaces_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_space(text, load_recipe("factor"), "space.toml")


def test_options_at_odds_are_refused_before_anything_is_written(data, tmp_path):
    space = "[guide]\nvalues = ['conjugate']\n[readout]\nvalues = ['normal']"
    with pytest.raises(ValueError, match=r"the space contradicts itself: .* \(trial 0: guide = conjugate, readout = n"):
        search(data, setup_of(data, space=space), Place(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_study_accounts_for_every_trial_once_and_repeats(data, done, tmp_path):
    _, board, table = done
    assert sorted(table["trial"]) == list(range(6))
    assert list(table["epochs"]) == [3, 3, 1, 1, 1, 1]
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
        (data, setup_of(data, alpha=0.9), "another recipe or other options"),
        (data, setup_of(data, space="[units]\nvalues = [4, 5]"), "another space"),
        (make_panel(seed=1), setup_of(make_panel(seed=1)), "other data"),
    ]
    for panel, setup, message in others:
        with pytest.raises(ValueError, match=message):
            search(panel, setup, Place(folder), lambda _: None)
    assert (folder / "study.log").read_bytes() == before
    storage = optuna.storages.RDBStorage(url := f"sqlite:///{tmp_path}/old.db")
    for name, attrs, message in (
        ("old", {"version": 0}, "is of version 0; this is version 1"),
        ("alien", {}, "is none of autopilot's"),
    ):
        storage.set_study_user_attr(
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name), "setup", attrs
        )
        with pytest.raises(ValueError, match=message):
            find_study(open_storage(url), name)


def test_storages_that_cannot_be_reached_are_refused(tmp_path):
    (tmp_path / "junk.log").write_text("no journal\nat all\n")
    for where, message in (
        (f"sqlite:///{tmp_path}/no/s.db", "cannot reach the storage sqlite:///"),
        ("oracle+nothing://x/y", "cannot reach the storage oracle"),
        (str(tmp_path / "no" / "s.log"), "there is no folder"),
        (str(tmp_path), "it is a folder"),
        (str(tmp_path / "junk.log"), "no journal of a study, or broken"),
    ):
        with pytest.raises(ValueError, match=message):
            open_storage(where)
    assert hidden("postgresql://me:secret@host/db") == "postgresql://***@host/db"


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
    assert states == {"COMPLETE": 8, "FAIL": 2, "PRUNED": 1}


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

    def kill_the_other(board, trainer, job, say):
        jobs.append(job.slot)
        while len(jobs) == 2 and other.poll() is None:
            running = [past[-1] for past in board.attempts() if past and past[-1].state.name == "RUNNING"]
            if other.pid in [each.user_attrs.get("worker", {}).get("pid") for each in running]:
                other.send_signal(signal.SIGKILL)
                other.wait()
        train(board, trainer, job, say)

    monkeypatch.setattr(study_module, "_train", kill_the_other)
    monkeypatch.setattr(study_module, "POLL", 0.1)
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
    flags = [*FLAGS, "--regime", "off", "--target", "9"]
    assert call(monkeypatch, "autopilot", "data.csv", *flags, "--out", "off") == 0
    out = capsys.readouterr().out
    assert "No trial is valid. The least bad is trial" in out
    assert "inside mass 0.00 < 0.50, missed by 0.50" in out
    assert "the least bad, invalid: inside mass 0.00" in pd.read_csv("off/leaderboard.csv")["why"].iloc[0]


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


def test_early_signals_of_full_trials(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=40)
    rows = pd.DataFrame({"trial": np.arange(40), "step": 100.0, "early_step": 20.0, "whole": 100.0})
    rows = rows.assign(crps=truth, test_crps=truth, test_mse=-truth, early_out_of_band=truth, early_kl_drift=1.0)
    rows = rows.assign(early_not_living=truth, early_val_loss=rng.uniform(size=40), early_val_crps=truth)
    rows.to_csv(tmp_path / "leaderboard.csv", index=False)
    found = correlations(read_full(tmp_path)).set_index(["early", "end"])
    assert found.loc[("early_out_of_band", "test_crps"), "spearman"] == pytest.approx(1)
    assert found.loc[("early_out_of_band", "test_mse"), "spearman"] == pytest.approx(-1)
    assert np.isnan(found.loc[("early_kl_drift", "test_crps"), "spearman"])
    low, high = found.loc[("early_val_loss", "test_crps"), ["low", "high"]]
    assert low < 0.2 < high + 0.4
    half = pruned(read_full(tmp_path)).iloc[0]
    assert (half["kept"], half["saved"], half["lost"]) == (20, pytest.approx(0.4), 0)
    assert spearman(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(0.5)
    rows.head(5).to_csv(tmp_path / "leaderboard.csv", index=False)
    with pytest.raises(ValueError, match="has 5 trials trained in full, 8 are needed"):
        read_full(tmp_path)
