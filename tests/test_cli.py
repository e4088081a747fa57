"""The command line as a user meets it: runs end to end, and one line with exit code 2 for what is wrong."""

import json
import os
import re
import signal
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from conftest import make_panel
from typer.main import get_command

from eve_pyro import cli
from eve_pyro.config import SECTIONS, load_recipe, to_toml
from eve_pyro.infer.scores import KEYS

TINY = ["--context", "24", "--horizon", "6", "--units", "4", "--hidden", "8", "--features", "12"]
TINY += ["--epochs", "2", "--batch-size", "64", "--no-progress"]


def frame_of(panel):
    return pd.DataFrame(dict(zip(panel.names, panel.values, strict=True))).assign(date=panel.index[0])[
        ["date", *panel.names]
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    frame_of(make_panel(300, 2)).to_csv("data.csv", index=False)
    return tmp_path


def test_fit_evaluate_forecast(here, run):
    code, out, _ = run("fit", "data.csv", *TINY, "--twin", "--out", "r", "--seed", 3)
    assert code == 0
    assert "repeat_last" in out
    names = _files(here / "r")
    assert {
        "config.toml", "scaler.json", "weights.safetensors", "history.csv", "metrics.json", "units.csv",
        "twin/weights.safetensors", "twin/history.csv", "forecasts/future.csv", "forecasts/test_windows.csv",
        "figures/fan.png", "figures/training.png", "figures/units.png",
    } <= names  # fmt: skip
    metrics = json.loads((here / "r" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"eve", "twin", "repeat_last", "seasonal_naive"}
    assert all(set(KEYS) <= set(row) for row in metrics["test"].values())
    assert {"train_eve", "train_twin"} <= set(metrics["seconds"])
    units = pd.read_csv(here / "r" / "units.csv")
    assert list(units) == ["site", "unit", "kl", "energy", "scale", "sampled"]
    assert units["site"].value_counts().to_dict() == {"eve.z": 4, "volatility.z": 1}
    assert (units.kl >= 0).all()

    code, out, _ = run("evaluate", "r", "data.csv", "--out", "again.json")
    assert code == 0
    again = json.loads((here / "again.json").read_text())
    assert again["windows"] == metrics["windows"]
    for name in ("eve", "twin"):
        for key in KEYS:
            assert again["test"][name][key] == pytest.approx(metrics["test"][name][key], rel=1e-6), key

    code, out, _ = run("forecast", "r", "data.csv", "--out", "next.csv", "--levels", "0.1,0.9")
    assert code == 0
    assert "exact quantiles for 2 series" in out
    following = pd.read_csv(here / "next.csv")
    assert list(following) == ["unique_id", "window", "ds", "mean", "q0.1", "q0.9"]
    assert following.ds.min() == "2024-10-27"
    code, _, err = run("forecast", "r", "data.csv", "--out", "next.parquet")
    assert code == 2
    assert "forecasts are written as CSV: --out next.csv" in err
    assert run("forecast", "r", "data.csv", "--out", "paths.csv", "--paths", 7)[0] == 0
    assert pd.read_csv(here / "paths.csv").draw.nunique() == 7


def _files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_runs_configuration_repeats_it(here, run):
    assert run("fit", "data.csv", *TINY, "--out", "first")[0] == 0
    assert run("fit", "data.csv", "--recipe", "first/config.toml", "--out", "second")[0] == 0
    scores = [json.loads((here / name / "metrics.json").read_text())["test"] for name in ("first", "second")]
    assert scores[0] == scores[1]


def test_a_recipe_takes_overrides(here, run):
    options = ("--recipe", "paper", "--num-particles", 2, "--warmup", 1, "--out", "p")
    code, _, _ = run("fit", "data.csv", *TINY, *options)
    assert code == 0
    assert "num_particles = 2" in (here / "p" / "config.toml").read_text()
    code, out, _ = run("census", "p")
    assert code == 0
    assert "eve.z: 4 units at the end of training, bands [0.024, 0.048]\n" in out
    assert re.search(r"train +┃ val +┃ test ", out)
    last = pd.read_csv(here / "p" / "history.csv").iloc[-1]
    assert last["test_inside_mass"] + last["test_too_low"] + last["test_too_high"] == pytest.approx(1)
    assert {path.name for path in (here / "p" / "figures").glob("census*")} == {
        "census_eve.z_train.png", "census_eve.z_val.png",
    }  # fmt: skip


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_census_has_a_table_for_each_layer(here, run, calibrate):
    (here / "r").mkdir()
    config = load_recipe("factor", {"calibrate": calibrate})
    (here / "r" / "config.toml").write_text(to_toml(config))
    units = pd.DataFrame({"unit": range(4), "kl": [0.0, 0.02, 0.4, 0.58], "energy": [0.0, 0.03, 0.04, 0.05]})
    units = units.assign(scale=0.5, low=0.0234, high=0.0456, beta=1.0, step=9)
    units["state"] = ["dead", "living", "living", "too_high"]
    layers = [units.assign(site=f"layer{i}.z", split=name) for name in ("train", "val", "test") for i in range(3)]
    pd.concat(layers).to_csv("r/census.csv", index=False)
    code, out, _ = run("census", "r")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for site in ("layer0.z", "layer1.z", "layer2.z"):
        bands = "bands [0.0234, 0.0456]" + ", calibrated" * calibrate
        assert f"{site}: 4 units at the end of training, {bands}\n" in out
    for row in (r"living", r"inside mass"):
        assert len(re.findall(rf"│ {row} +│ 50\.0% +│ 50\.0% +│ 50\.0% +│", out)) == 3
    assert len(re.findall(r"│ active, over 0\.01 nats +│ 75\.0% +│", out)) == 3
    assert len(re.findall(r"│ effective KL, nats an active unit +│ 0\.3333 +│", out)) == 3
    assert len(re.findall(r"│ KL, nats a window +│ 1\.000 +│", out)) == 3


def test_without_out_runs_get_names_of_their_own(here, run):
    for name in ("data", "data-2"):
        assert run("fit", "data.csv", *TINY)[0] == 0
        assert (here / "runs" / name / "metrics.json").is_file()


BAD_CALLS = [
    (("census", "."), ". holds no census"),
    (("fit", "data.csv", "--thermostat", "--c-min", "1"), "c_min <= c_max"),
    (("fit", "data.csv", "--phi", "0.5"), "phi = 0.5 changes nothing here: it needs an AR(1) prior"),
    (("fit", "data.csv", "--target", "-1"), "option control.target = -1"),
    (("fit", "data.csv", "--regime", "penalty", "--epochs", "1"), "a warm-up of 64 steps leaves nothing"),
    (("fit", "gone.csv"), "no such file: gone.csv"),
    (("fit", "data.csv", "--units", "0"), "option model.units = 0"),
    (("fit", "data.csv", "--guide", "psychic"), "option guide.guide = 'psychic'"),
    (("fit", "data.csv", "--horizon", "0"), "option data.horizon = 0"),
    (("fit", "data.csv", "--horizon", "many"), "Invalid value for '--horizon'"),
    (("fit", "data.csv", "--colour", "red"), "No such option: --colour"),
    (("fit", "data.csv", "--context", "24", "--horizon", "60"), "series 's0' is too short"),
    (("fit", "data.csv", "--rows", "1,2"), "--rows takes three whole numbers"),
    (("fit", "data.csv", "--recipe", "best"), "there is no recipe 'best'"),
    (("fit", "data.csv", "--out", "taken"), "taken already holds something"),
    (("fit",), "Missing argument"),
    (("forecast", "gone", "data.csv"), "gone holds no run"),
    (("forecast", "gone", "data.csv", "--levels", "2"), "--levels lie between 0 and 1"),
    (("forecast", "gone", "data.csv", "--levels", "a"), "--levels takes numbers"),
    (("evaluate", "gone", "data.csv"), "gone holds no run"),
    (("train",), "No such command 'train'"),
    (("fit", "data.csv", "--learning-rate", "inf"), "option training.learning_rate = inf"),
    (("fit", "data.csv", "--units", "9000000000000"), "option model.units = 9000000000000"),
    (("fit", "data.csv", "--seed", "99999999999999999999"), "option training.seed"),
    (("fit", "data.csv", "--beta", "nan"), "option objective.beta = nan"),
    (("fit", "data.csv", "--recipe", "folder.toml"), "cannot read folder.toml"),
    (("fit", "data.csv", "--recipe", "odd.toml"), "[data] is a section of options, not 3"),
    (("fit", "taken"), "taken is a folder"),
    (("evaluate", "gone", "data.csv", "--out", "no/s.json"), "gone holds no run"),
    (("forecast", "gone", "data.csv", "--levels", "0.5,0.5"), "each named once"),
    (("forecast", "gone", "data.csv", "--paths", "99999999999"), "Invalid value for '--paths'"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[" ".join(call) for call, _ in BAD_CALLS])
def test_what_is_wrong_is_one_line_and_nothing_is_written(here, run, call, message):
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").write_text("precious")
    (here / "folder.toml").mkdir()
    (here / "odd.toml").write_text("data = 3")
    before = _files(here)
    code, _, err = run(*call)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert _files(here) == before


BAD_DATA = {
    "missing value at row 5": lambda f: f.assign(s1=f.s1.where(f.index != 5)),
    "infinite value at row 5": lambda f: f.assign(s1=f.s1.where(f.index != 5, np.inf)),
    "occurs twice": lambda f: pd.concat([f, f.tail(1)]),
    "time goes back": lambda f: f.iloc[::-1],
    "irregular step": lambda f: f.drop(index=17),
    "as a date": lambda f: f.assign(date="yesterday"),
    "is constant": lambda f: f.assign(s0=1.0),
    "at least one series": lambda f: f[["date"]],
    "too large to scale": lambda f: f.assign(s0=f.s0.where(f.index != 5, 1e300)),
    "column 's0' occurs twice": lambda f: f.rename(columns={"s1": "s0"}),
    "mixes time zones": lambda f: f.assign(date=[f"{d:%F}T00:00{'Z' if i else ''}" for i, d in enumerate(f.date)]),
    "missing: y": lambda f: f.rename(columns={"date": "ds", "s0": "unique_id"}),
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_is_one_line_and_makes_no_folder(here, run, message):
    BAD_DATA[message](frame_of(make_panel(300, 2))).to_csv("bad.csv", index=False)
    code, _, err = run("fit", "bad.csv", *TINY)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (here / "runs").exists()


def test_results_are_not_overwritten(here, run):
    assert run("fit", "data.csv", *TINY, "--out", "r")[0] == 0
    (here / "next.csv").write_text("precious")
    for command in ("forecast", "evaluate"):
        code, _, err = run(command, "r", "data.csv", "--out", "next.csv")
        assert code == 2
        assert "next.csv exists already" in err
    code, _, err = run("fit", "data.csv", *TINY, "--out", "r")
    assert code == 2
    assert (here / "next.csv").read_text() == "precious"


def test_the_defaults_shown_are_those_of_the_default_recipe():
    shown = {option.name: option.show_default for option in get_command(cli.app).commands["fit"].params}
    config = load_recipe("factor")
    for section in SECTIONS:
        for name, value in asdict(getattr(config, section)).items():
            assert shown[name] == (False if value is None else str(value)), name


@pytest.mark.parametrize("command", ["fit", "demo", "forecast", "evaluate"])
def test_help_teaches(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--out" in out
    if command == "fit":
        assert "census.csv" in out
        assert "signals.csv" in out
        for word in ("--context", "--guide", "--alpha", "--learning-rate", "--latent-dim", "--twin", "--recipe"):
            assert word in out


def test_a_stopped_run_is_resumed(here, run, monkeypatch):
    from eve_pyro.infer.task import Task

    whole = [*TINY, "--epochs", "3", "--twin"]
    assert run("fit", "data.csv", *whole, "--out", "whole")[0] == 0
    step = Task.training_step

    def stop(task, batch, index):
        if task.current_epoch == 2:
            raise KeyboardInterrupt
        return step(task, batch, index)

    monkeypatch.setattr(Task, "training_step", stop)
    code, out, _ = run("fit", "data.csv", *whole, "--out", "cut")
    assert code == 130
    assert "go on with: eve-pyro resume cut data.csv" in out
    monkeypatch.setattr(Task, "training_step", step)
    assert run("evaluate", "cut", "data.csv")[0] == 2  # not trained yet
    code, out, _ = run("resume", "cut", "data.csv")
    assert code == 0
    scores = [json.loads((here / name / "metrics.json").read_text())["test"] for name in ("whole", "cut")]
    assert scores[0] == scores[1]
    assert _files(here / "cut") - {"tensorboard"} >= {f for f in _files(here / "whole") if "tensorboard" not in f}
    assert not list(here.rglob("*.ckpt"))
    code, _, err = run("resume", "cut", "data.csv")
    assert (code, "is done: there is nothing to resume" in err) == (2, True)


def test_a_run_is_not_resumed_on_other_data(here, run):
    assert run("fit", "data.csv", *TINY, "--out", "r")[0] == 0
    (here / "r" / "metrics.json").unlink()
    frame_of(make_panel(300, 2, seed=5)).to_csv("other.csv", index=False)
    code, _, err = run("resume", "r", "other.csv")
    assert (code, "trained on other data" in err) == (2, True)
    assert run("resume", "r", "data.csv")[0] == 0


def test_compare_regimes(here, run):
    options = ("--regimes", "off,homeostasis", "--seeds", "0", "--vary", "target=0.1,0.2", "--warmup", 2, "--draws", 4)
    code, out, _ = run("compare-regimes", "data.csv", *TINY, *options)
    assert code == 0
    assert "runs/regimes-data: regimes.csv" in out
    assert len(pd.read_csv("runs/regimes-data/regimes.csv")) == 4
    assert run("compare-regimes", "data.csv", *TINY, "--vary", "colour=red")[0] == 2


def test_ablate(here, run):
    options = ("--guides", "context,future_aware", "--latent-dim", "2", "--vary", "prior=learned", "--seeds", 0)
    code, out, _ = run("ablate", "data.csv", *TINY, *options, "--draws", 4)
    assert code == 0
    assert "runs/ablation-data: ablation.csv" in out
    assert len(pd.read_csv("runs/ablation-data/ablation.csv")) == 5
    code, _, err = run("ablate", "data.csv", *TINY)
    assert (code, "nothing is swapped" in err) == (2, True)


def test_an_option_named_both_ways_and_a_stopped_ablation(here, run, monkeypatch):
    from eve_pyro.bench import ablation

    seen = []
    monkeypatch.setattr(ablation, "run_trials", lambda panel, found, *_: seen.extend(found) or stop())

    def stop():
        raise KeyboardInterrupt

    both = ("--guides", "flow", "--vary", "guide=low_rank,flow", "--vary", "context=20", "--seeds", "0")
    code, out, _ = run("ablate", "data.csv", *TINY, *both)
    assert code == 130
    assert "stopped; go on with the same command: eve-pyro ablate data.csv --context 24" in out
    assert [trial.labels["value"] for trial in seen] == ["factor", "flow", "low_rank", "20"]
    assert run("ablate", "data.csv", *TINY, "--guides", "flow", "--seeds", "1,01")[0] == 2


def test_sigterm_ends_in_its_own_exit_code(here, run, monkeypatch):
    from eve_pyro.infer import task

    def terminate(self, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(task.Task, "on_train_batch_start", terminate)
    assert run("fit", "data.csv", *TINY, "--out", "r")[0] == 143
