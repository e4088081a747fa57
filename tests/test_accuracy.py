"""The accuracy benchmark: which runs, a table that goes on and loses nothing, refusals, the command."""

import multiprocessing
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_panel

from eve_pyro.bench import accuracy
from eve_pyro.bench.accuracy import run_accuracy
from eve_pyro.bench.lineup import MODELS
from eve_pyro.bench.plan import Plan
from eve_pyro.bench.rows import Job, read_rows, run_jobs
from eve_pyro.bench.tables import chosen_rows, markdown
from eve_pyro.cli_accuracy import MODELS as SHOWN
from eve_pyro.config import load_recipe
from eve_pyro.infer.scores import KEYS

SMALL = {"units": 4, "hidden": 8, "features": 12, "batch_size": 64, "epochs": 1, "progress": False}


@pytest.fixture
def data(tmp_path):
    panel, folder = make_panel(), tmp_path / "data"
    folder.mkdir()
    frame = pd.DataFrame({"date": panel.index[0], **dict(zip(panel.names, panel.values, strict=True))})
    frame.to_csv(folder / "toy.csv", index=False)
    return folder


def plan(data, **options):
    chosen = {"models": ("eve", "twin", "repeat_last"), "seeds": (0, 1), "horizons": (6,), "contexts": (24,)}
    chosen |= {"overrides": SMALL, "num_draws": 4}
    return Plan(data, ("toy",), **(chosen | options))


def fail(*_, **__):
    raise AssertionError("nothing should be trained")


def test_a_row_a_run_at_the_context_the_twin_chooses(data, tmp_path, monkeypatch):
    said = []
    rows = run_accuracy(plan(data, contexts=(12, 24, 500)), tmp_path / "out", said.append)
    assert list(rows)[:7] == ["protocol", "set", "horizon", "context", "model", "options", "seed"]
    assert {*KEYS, "val_crps", "epoch", "seconds", "cpu_seconds", "parameters", "checksum", "settings"} <= set(rows)
    assert any("context 500 is left out: series 's0' is too short" in line for line in said)
    twins = rows[(rows["model"] == "twin") & (rows["seed"] == 0)].set_index("context")["val_crps"]
    assert list(twins.index) == [12, 24]
    best = twins.idxmin()
    found = [tuple(row) for row in rows[["context", "model", "seed"]].itertuples(index=False)]
    assert found == [
        (12, "twin", 0), (24, "twin", 0), (best, "eve", 0), (best, "eve", 1), (best, "twin", 1),
        (best, "repeat_last", 0),
    ]  # fmt: skip

    monkeypatch.setattr(accuracy, "_run_model", fail)
    again = run_accuracy(plan(data, contexts=(12, 24, 500)), tmp_path / "out", said.append)
    pd.testing.assert_frame_equal(again, rows)


@pytest.mark.parametrize(
    ("name", "epochs"), [("ETTh1", 4), ("exchange_rate", 4), ("national_illness", 40), ("ILI", 40)]
)
def test_a_set_has_epochs_of_its_own_that_the_command_overrides(tmp_path, name, epochs):
    plan = partial(Plan, tmp_path, (name,))  # no file is read
    own = plan().config(name, 24, 36)
    assert own.training.epochs == epochs
    assert own.objective == load_recipe("factor").objective  # of no set
    assert plan(overrides={"epochs": 3}).config(name, 24, 36).training.epochs == 3
    tried = plan(tune=True).config(name, 24, 36, options={"alpha": 0.9, "held": "scales"})
    assert (tried.objective.alpha, tried.objective.held, tried.training.epochs) == (0.9, "scales", epochs)


def test_a_recipe_of_ones_own_leaves_the_split_to_the_protocol(data, tmp_path):
    (tmp_path / "own.toml").write_text(
        'recipe = "factor"\n[data]\nrows = [200, 20, 20]\nvalidation = 0.3\ntest = 0.3\n'
    )
    own, standard = (
        plan(data, recipe=recipe).config("toy", 6, 24) for recipe in (str(tmp_path / "own.toml"), "factor")
    )
    assert own.data == standard.data


def test_what_a_recipe_has_already_is_tried_once(data, tmp_path):
    (tmp_path / "own.toml").write_text('recipe = "factor"\n[training]\nlearning_rate = 0.001\n')
    own = plan(data, models=("twin",), seeds=(0,), tune=True, recipe=str(tmp_path / "own.toml"))
    rows = run_accuracy(own, tmp_path / "out", lambda _: None)
    assert list(rows["options"]) == ["recipe", "dropout=0.3", "encoder_layers=3"]


def test_tuning_takes_the_options_of_the_lowest_validation_crps(data, tmp_path, monkeypatch):
    scores = {0.25: 0.3, "scales": 0.1, 0.001: 0.2}  # by alpha, what is held, learning rate; any other: 1
    trained = []

    def run(model, config, panel, plan):
        own = {"alpha": config.objective.alpha, "held": config.objective.held}
        own |= {"learning_rate": config.training.learning_rate, "dropout": config.model.dropout}
        trained.append((model, own, config.training.seed))
        found = (own["held"] or own["alpha"]) if model == "eve" else own["learning_rate"]
        figures = dict.fromkeys(KEYS, 1.0) | {"val_crps": scores.get(found, 1.0) + 0.01 * (own["dropout"] > 0.1)}
        return {**figures, "epoch": 1, "seconds": 0.0}

    monkeypatch.setattr(accuracy, "_run_model", run)
    tuned = plan(data, models=("eve", "twin", "ensemble", "repeat_last"), tune=True)
    rows = run_accuracy(tuned, tmp_path / "out", lambda _: None)
    assert len(trained) == 2 * 6 + 2  # five tries and the second seed; the ensemble takes the twin's options
    assert set(rows["options"][rows["seed"] == 1]) == {
        "objective=predictive alpha=0.9 held=scales",
        "learning_rate=0.001",
    }
    assert {own["learning_rate"] for model, own, _ in trained if model == "ensemble"} == {0.001}
    compared = chosen_rows(rows).groupby("model")["options"].unique().map(list).to_dict()
    twin = ["learning_rate=0.001"]
    assert compared == {
        "eve": ["objective=predictive alpha=0.9 held=scales"],
        "twin": twin,
        "ensemble": twin,
        "repeat_last": ["recipe"],
    }
    text = markdown(rows)
    assert "| toy | 6 | 24 | eve | objective=predictive alpha=0.9 held=scales | 5 |" in text
    assert "Left out" not in text

    run_accuracy(tuned, tmp_path / "out", lambda _: None)
    assert len(trained) == 14


def test_an_interrupted_run_keeps_its_rows_and_goes_on(data, tmp_path, monkeypatch):
    whole = run_accuracy(plan(data), tmp_path / "whole", lambda _: None)
    honest, calls = accuracy._run_model, []

    def stop(*args):
        calls.append(args[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*args)

    monkeypatch.setattr(accuracy, "_run_model", stop)
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(plan(data), tmp_path / "out", lambda _: None)
    assert len(read_rows(tmp_path / "out" / "accuracy.csv")) == 2
    rows = run_accuracy(plan(data), tmp_path / "out", lambda _: None)
    assert calls == ["eve", "eve", "twin", "twin", "twin"]
    times = ["seconds", "cpu_seconds"]
    pd.testing.assert_frame_equal(rows.drop(columns=times), whole.drop(columns=times), rtol=1e-5)


def test_rivals_keep_their_rows_when_only_the_units_change(data, tmp_path):
    run_accuracy(plan(data, models=("twin",)), tmp_path / "out", lambda _: None)
    other = SMALL | {"guide": "conjugate", "alpha": 0.3}
    rows = run_accuracy(plan(data, models=("twin", "eve"), overrides=other), tmp_path / "out", lambda _: None)
    assert list(rows["model"]) == ["twin", "twin", "eve", "eve"]
    with pytest.raises(ValueError, match=r"holds .* model=eve options=recipe seed=0 with other settings"):
        run_accuracy(plan(data), tmp_path / "out", lambda _: None)


def test_probts_has_one_context_and_a_score_of_its_own(data, tmp_path):
    rows = run_accuracy(plan(data, contexts=None, protocol="probts", seeds=(0,)), tmp_path / "out", lambda _: None)
    assert set(rows["context"]) == {96}
    assert rows["crps_probts"].notna().all()


def test_probts_refuses_test_rows_of_zeros_before_it_trains(data, tmp_path, monkeypatch):
    frame = pd.read_csv(data / "toy.csv")
    frame.iloc[-120:, 1:] = 0.0
    frame.to_csv(data / "toy.csv", index=False)
    monkeypatch.setattr(accuracy, "_run_model", fail)
    with pytest.raises(ValueError, match=r"0 all through .* of .* test windows"):
        run_accuracy(plan(data, contexts=None, protocol="probts"), tmp_path / "out", lambda _: None)


def test_a_changed_file_is_refused_by_name(data, tmp_path):
    run_accuracy(plan(data, models=("repeat_last",)), tmp_path / "out", lambda _: None)
    before = (tmp_path / "out" / "accuracy.csv").read_bytes()
    with (data / "toy.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="the file of toy has changed"):
        run_accuracy(plan(data, models=("repeat_last",)), tmp_path / "out", lambda _: None)
    assert (tmp_path / "out" / "accuracy.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("eve", "oracle")}, r"no model 'oracle'; known are eve, twin, .*seasonal_naive"),
        ({"overrides": {"seed": 1}}, "with --seeds"),
        ({"overrides": {"rows": (1, 1, 1)}}, "the protocol fixes the split"),
        (
            {"models": ("nhits",), "peer_python": Path("/no/python")},
            r"cannot run /no/python \(.*\): name the path of a Python",
        ),
        ({"models": ("nhits",), "peer_python": Path("python3")}, "cannot run python3"),
        ({"models": ("nhits",), "peer_python": Path(sys.executable)}, "has no neuralforecast: name one that has it"),
        ({"models": ("twin", "ensemble"), "seeds": (2**61,)}, "name --seeds below 18446744"),
        ({"tune": True, "overrides": SMALL | {"dropout": 0.2}}, "dropout is among those that --tune chooses"),
        (
            {"tune": True, "overrides": SMALL | {"readout": "normal", "guide": "future_aware"}},
            r"or no --held \(--tune tries objective=predictive alpha=0.9 held=scales\)",
        ),
        ({"protocol": "mine"}, "longhorizon or probts, not 'mine'"),
        ({"protocol": "probts", "contexts": (24,)}, "leave out --contexts"),
        ({"contexts": (500, 600)}, "no context fits horizon 6: series 's0' is too short"),
        ({"overrides": SMALL | {"guide": "conjugate", "readout": "normal"}}, "linear in its units"),
    ],
)
def test_what_cannot_run_is_said_before_the_first_training(data, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(accuracy, "_run_model", fail)
    with pytest.raises(ValueError, match=message):
        run_accuracy(plan(data, **options), tmp_path / "out", lambda _: None)


def test_a_row_cut_short_is_named_and_the_others_stay(data, tmp_path):
    table = tmp_path / "out" / "accuracy.csv"
    run_accuracy(plan(data, models=("repeat_last", "seasonal_naive")), tmp_path / "out", lambda _: None)
    whole = table.read_text()
    for cut in (whole.rindex("seasonal_naive") + 20, len(whole) - 3, len(whole) - 16):
        table.write_text(whole[:cut])
        with pytest.raises(ValueError, match="line 3: the row was cut short"):
            run_accuracy(plan(data, models=("repeat_last",)), tmp_path / "out", lambda _: None)
        assert "repeat_last" in table.read_text()


@pytest.mark.parametrize(("column", "model"), [("crps", "repeat_last"), ("val_crps", "eve")])
def test_a_score_that_is_missing_is_named_with_its_line(data, tmp_path, column, model):
    table = tmp_path / "out" / "accuracy.csv"
    run_accuracy(plan(data, models=("repeat_last",)), tmp_path / "out", lambda _: None)
    rows = read_rows(table).assign(model=model)
    rows.assign(**{column: None}).to_csv(table, index=False)
    with pytest.raises(ValueError, match=f"line 2: {column} is missing; take the row out"):
        run_accuracy(plan(data, models=("repeat_last",)), tmp_path / "out", lambda _: None)


def _write(table, number):
    row = {"crps": number, "joint_log_score": 0.0, "seconds": 0.0}
    for seed in range(8):
        job = Job({"model": number, "seed": seed}, f"{number}-{seed}", "s", lambda: None, lambda: row)
        run_jobs([job], table, lambda _: None)


def test_processes_that_write_into_one_table_lose_no_row(tmp_path):
    table = tmp_path / "rows.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(table, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(read_rows(table)) == len(read_rows(table).drop_duplicates(["model", "seed"])) == 24
    assert not list(tmp_path.glob("*.part"))


TINY = ["--units", 4, "--hidden", 8, "--features", 12, "--batch-size", 64, "--epochs", 1, "--no-progress", "--draws", 4]


def test_the_command_end_to_end(data, tmp_path, run, monkeypatch):
    out = tmp_path / "out"
    what = ["--data", data, "--sets", "toy", "--horizons", 6, "--contexts", 24, "--models", "eve,low_rank"]
    command = ["bench", "accuracy", *what, "--seeds", "0,1", "--out", out, *TINY]
    code, said, _ = run(*command)
    assert code == 0
    assert f"{out}: accuracy.csv, summary.csv, tables.md, accuracy.png" in said.replace("\n", "")
    assert (out / "accuracy.png").stat().st_size > 10_000
    assert "| toy | 6 | 24 |" in (out / "tables.md").read_text()
    for name in ("summary.csv", "tables.md", "accuracy.png"):
        (out / name).unlink()
    assert run("bench", "table", out)[0] == 0
    assert (out / "tables.md").exists()

    def stop(*_):
        raise KeyboardInterrupt

    shutil.rmtree(out)
    monkeypatch.setattr(accuracy, "_run_model", stop)
    code, said, _ = run(*command)
    assert code == 130
    assert shlex.join(["eve-pyro", *map(str, command)]) in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nowhere"], "there is no data set 'nowhere': looked for"),
        (["--sets", "toy", "--models", "eve,oracle"], "there is no model 'oracle'; known are eve"),
        (["--sets", "toy", "--horizon", "6"], "--horizons"),
        (["--sets", "toy", "--horizons", "six"], "--horizons takes whole numbers"),
    ],
)
def test_bad_input_is_one_line_and_code_2(data, tmp_path, run, arguments, message):
    code, _, complaint = run("bench", "accuracy", "--data", data, "--out", tmp_path / "out", *arguments)
    assert (code, complaint.count("\n")) == (2, 1)
    assert message in complaint
    code, _, complaint = run("bench", "table", tmp_path / "out")
    assert (code, complaint.count("\n")) == (2, 1)


def test_the_command_shows_every_model():
    assert tuple(SHOWN.split(",")) == MODELS
