"""The rules of the search by hand: gates, fronts, plans, spaces, and what early signals foretell."""

import math
import threading

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import make_panel
from optuna.trial import TrialState
from test_autopilot import SMALL, SPACE, setup_of

from eve_pyro.autopilot import board as board_module
from eve_pyro.autopilot.board import Board, Job, Outcome, View
from eve_pyro.autopilot.gates import gate_margins, is_valid, mean_ranks, penalty, why_invalid
from eve_pyro.autopilot.leaderboard import Leaderboard
from eve_pyro.autopilot.pareto import fronts, values_of
from eve_pyro.autopilot.plan import Plan, Stage
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.signals import correlations, pruned, read_full, spearman
from eve_pyro.autopilot.space import parse_space, read_space
from eve_pyro.autopilot.storage import begin_study, open_storage
from eve_pyro.config import load_recipe


def test_gates_by_hand():
    good = {"too_high": 0.12, "too_low": 0.38, "inside_mass": 0.50}
    assert is_valid(good)
    assert penalty(good) == pytest.approx(0.2)
    assert penalty({"too_high": 0.0, "too_low": 0.3, "inside_mass": 0.7}) == 0
    assert why_invalid(good) == ""
    high = {"too_high": 0.30, "too_low": 0.0, "inside_mass": 0.70}
    assert not is_valid(high)
    assert penalty(high) == pytest.approx(0.2)
    assert why_invalid(high) == "too-high share 0.300 > 0.12, missed by 0.180"
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


@pytest.mark.parametrize("storage", ["study.log", "sqlite:///{}/study.db"])
def test_an_objective_that_is_no_number_is_the_worst(tmp_path, storage):
    where = storage.format(tmp_path) if "://" in storage else str(tmp_path / storage)
    objectives = ("crps", "seconds")
    setup = setup_of(make_panel(), Plan(3, 9, reduction=3, objectives=objectives))
    storage = open_storage(where)
    board = Board(storage, begin_study(storage, "one", setup), setup)
    board.fill()
    broken = {"crps": 2.0, "seconds": math.nan}
    assert board.finish(board.claim(board.look()), broken)
    assert board.attempts()[0][0].values == [2.0, math.inf]
    assert fronts([values_of(each, objectives) for each in ({"crps": 1.0, "seconds": 3.0}, broken)]) == [0, 1]


def test_the_plan_promotes_by_gates_then_penalty_then_score():
    shown = {5: figures(0.3), 1: figures(0.2, 0.6), 2: figures(0.1, 0.2), 6: figures(0.4), 4: figures(0.2, 0.3)}
    assert Plan(8, 9).order(shown, stage=1) == [5, 6, 1, 4, 2]
    assert Plan(8, 9, prune="signals").order(shown, stage=1) == [5, 6, 1, 4, 2]
    assert Plan(8, 9, prune="signals").order(shown | {2: figures(9, 0.9)}, stage=1)[0] == 2
    assert Plan(8, 9, prune="signals").order(shown | {2: figures(9, 0.9)}, stage=2)[0] == 5
    two = Plan(8, 9, objectives=("crps", "seconds"))
    assert two.order({0: figures(1, seconds=3), 1: figures(2, seconds=4), 2: figures(3, seconds=1)}, 2) == [0, 2, 1]


def test_no_gate_stands_in_the_first_of_several_rungs():
    shown = {5: figures(0.3), 1: figures(0.2, 0.6), 2: figures(0.1, 0.2), 6: figures(0.4)}
    assert Plan(8, 9).order(shown, stage=0) == [2, 1, 5, 6]
    assert Plan(8, 9, full=True).order(shown, stage=0) == [5, 6, 1, 2]
    both = Plan(8, 9, prune="both")
    shown = {3: figures(0.3, 0.9), 1: figures(0.1, 0.4), 2: figures(0.2, 0.3)}  # ranks 3 + 1, 1 + 2, 2 + 3
    assert both.order(shown, stage=0) == [1, 3, 2]
    assert both.order(shown, stage=1) == [3, 1, 2]


@pytest.mark.parametrize("prune", ["score", "signals", "both"])
def test_the_recipe_goes_on_to_the_end_and_has_no_favour_there(prune):
    shown = {0: figures(0.9, 0.1), 1: figures(0.2), 2: figures(0.1, 0.9)}
    plan = Plan(8, 9, prune=prune)
    assert [plan.order(shown, stage)[0] for stage in range(3)] == [0, 0, 2]
    assert plan.order(shown, stage=3) == [2, 1, 0]


def shown(crps, **more):
    figures = {"too_high": 0.0, "too_low": 0.1, "inside_mass": 0.9, "step": 1.0, "coverage_90": 0.88, "seconds": 2.0}
    return figures | {"out_of_band": 0.1, "not_living": 0.1, "kl_drift": 0.1, "crps": crps} | more


def whys(plan, stages):
    """Why each trial lost where the stages ended with these figures."""
    outcomes = [{n: Outcome(trial, found) for n, (trial, found) in enumerate(stage)} for stage in stages]
    board = Board(None, 0, setup_of(make_panel(), plan))
    table = Leaderboard(board, View([], {}, outcomes, True))
    return {row["trial"]: row["why"] for row in table.rows()}


def test_why_a_trial_lost_is_what_it_was_ranked_by():
    first = [
        (0, shown(0.2)),
        (1, shown(0.4, kl_drift=0.05)),
        (2, shown(0.25, kl_drift=0.9, out_of_band=0.2, not_living=0.2)),
        (3, shown(0.3)),
    ]
    last = [(0, shown(0.3)), (1, shown(0.4)), (3, shown(0.5))]
    why = whys(Plan(4, 2, reduction=2, seeds=1, prune="both"), [first, last])
    assert why[2].endswith(
        "4 of 4: validation crps 0.2500, out of band 0.2000, not living 0.2000, kl drift 0.9000; "
        "the last to go on had crps 0.3000, out of band 0.1000, not living 0.1000, kl drift 0.1000"
    )
    assert why[1] == "validation crps 0.4000; the winner had crps 0.3000"
    swift = [(0, shown(0.3)), (1, shown(0.2, seconds=9.0, coverage_90=0.5)), (2, shown(0.4, seconds=5.0))]
    why = whys(Plan(3, 1, full=True, seeds=1, objectives=("coverage_error", "seconds")), [swift])
    assert (
        why[1]
        == "validation coverage error 0.4000, seconds 9.0000; the winner had coverage error 0.0200, seconds 2.0000"
    )


def test_who_is_no_finalist_is_held_against_the_last_one_at_the_same_seed():
    rung = [(0, shown(0.30)), (1, shown(0.31)), (2, shown(0.32))]
    more = [(0, shown(0.40)), (1, shown(0.41))]
    why = whys(Plan(3, 9, full=True, seeds=2), [rung, more])
    assert why[0] == "the winner"
    assert why[2] == "dropped at 9 of 9 epochs, 3 of 3: validation crps 0.3200; the last to go on had crps 0.3100"


def test_the_default_plan_takes_less_than_a_third_of_the_steps():
    plan = Plan(40, 9)
    assert plan.stages == [Stage(1, 40), Stage(3, 10), Stage(9, 3), Stage(9, 2, (1, 2))]
    assert 40 * 1 + 10 * 2 + 3 * 6 + 2 * 2 * 9 < 40 * 9 / 3
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
    drawn = [space.draw(base, 0, number) for number in range(1, 200)]
    assert drawn[6] == space.draw(base, 0, 7) != space.draw(base, 1, 7)
    assert {each["units"] for each in drawn} == {3, 4, 5, 6}
    assert all(1e-3 <= each["learning_rate"] <= 1e-2 for each in drawn)
    assert all(("eta" in each) == (each["regime"] == "homeostasis") for each in drawn)
    rates = np.log10([each["learning_rate"] for each in drawn])
    assert abs(rates.mean() + 2.5) < 0.1  # evenly in logs


def test_the_first_trial_is_the_recipe_or_what_the_space_has_nearest_to_it():
    base = load_recipe("factor", {"units": 100, "learning_rate": 0.5, "beta": 1.0})
    space = """
        [units]\nvalues = [16, 64, 128]\n[learning_rate]\nlow = 1e-3\nhigh = 1e-2\n[latent_dim]\nlow = 3\nhigh = 8
        [guide]\nvalues = ["conjugate", "context"]\n[regime]\nvalues = ["homeostasis", "penalty"]\n[beta]
        values = [0.1, 1.0]\n[eta]\nlow = 0.05\nhigh = 0.5\nwhen = { regime = ["penalty"] }"""
    own = {"units": 128, "learning_rate": 0.01, "latent_dim": 3, "guide": "conjugate", "regime": "homeostasis"}
    parsed = parse_space(space.replace("        ", ""), base, "space.toml")
    for seed in (0, 1):
        assert parsed.draw(base, seed, 0) == own | {"beta": 1.0}


@pytest.mark.parametrize("recipe", ["factor", "conditional", "paper", "trajectory"])
def test_the_default_space_fits_every_recipe(recipe):
    base = load_recipe(recipe)
    names = set(read_space(None, base).entries)
    assert {"learning_rate", "units", "latent_dim", "guide_scale", "target", "width", "spread", "phi", "beta"} <= names
    small = load_recipe(recipe, SMALL)
    Setup.of(make_panel(), small, read_space(None, small), Plan(12, 9)).rehearse(make_panel())


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


def test_a_training_put_back_is_not_lost_while_the_next_worker_claims_it(tmp_path):
    setup = setup_of(make_panel())
    storage = open_storage(str(tmp_path / "study.log"))
    board = Board(storage, begin_study(storage, "one", setup), setup)
    board.fill()
    job = board.claim(board.look())
    board.storage.set_trial_user_attr(job.storage_id, "worker", {"host": board_module.host(), "pid": 2**22 + 1})
    board.release(job)
    storage.set_trial_state_values(job.storage_id, TrialState.RUNNING)  # half of a claim
    board.bury_lost()
    assert [each.state.name for each in board.attempts()[0]] == ["RUNNING"]


def test_signs_of_life_go_on_after_one_that_did_not_get_through(tmp_path, monkeypatch):
    setup, job, beats = setup_of(make_panel()), Job(0, 0, 0), []
    storage = open_storage(str(tmp_path / "study.log"))
    board = Board(storage, begin_study(storage, "one", setup), setup)

    def beat(trial, name, count):
        beats.append(count)
        if count == 1:
            raise optuna.exceptions.StorageInternalError("database is locked")
        enough.set()

    enough = threading.Event()
    monkeypatch.setattr(board_module, "BEAT", 0.01)
    monkeypatch.setattr(storage, "set_trial_user_attr", beat)
    with board.alive(job):
        assert enough.wait(10)
    assert beats[:2] == [1, 2]
