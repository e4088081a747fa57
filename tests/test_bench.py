"""Comparisons: which trials, a table that goes on where it stopped, differences by hand."""

import math

import pandas as pd
import pytest
from conftest import make_panel

from eve_pyro import plots
from eve_pyro.bench import trials as trials_module
from eve_pyro.bench.compare import half_width, summarise
from eve_pyro.bench.regimes import compare_regimes, parse_vary, regime_trials
from eve_pyro.bench.trials import run_trials
from eve_pyro.infer.scores import KEYS

SMALL = {"context_length": 24, "horizon": 6, "units": 4, "hidden": 8, "features": 12, "batch_size": 64, "epochs": 2}
SMALL |= {"progress": False, "warmup": 2, "ramp": 2, "target": 0.1}


def test_trials_are_the_product_without_what_a_regime_has_no_use_for():
    trials = regime_trials("factor", SMALL, seeds=(0, 1), vary={"eta": ["0.1", "0.2"], "lambda_band": ["1", "5"]})
    counts = pd.Series([trial.labels["regime"] for trial in trials]).value_counts()
    assert counts.to_dict() == {"off": 2, "penalty": 4, "projection": 4, "homeostasis": 8}
    last = trials[-1]
    assert last.labels == {"regime": "homeostasis", "eta": "0.2", "lambda_band": "5"}
    assert (last.config.control.eta, last.config.control.lambda_band, last.config.training.seed) == (0.2, 5.0, 1)
    assert trials[0].labels == {"regime": "off", "eta": "-", "lambda_band": "-"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regime_trials("factor", SMALL, vary={"units": ["4"]}), "--vary units: unknown"),
        (lambda: regime_trials("factor", SMALL | {"seed": 3}), "with --seeds, not --seed"),
        (lambda: regime_trials("factor", SMALL, regimes=["chaos"]), "regime = 'chaos'"),
        (lambda: regime_trials("factor", SMALL, vary={"eta": ["-1"]}), "eta = '-1'"),
        (lambda: parse_vary(["eta"]), "NAME=V1,V2"),
        (lambda: parse_vary(["eta=0.1,0.1"]), "each name and value once"),
        (lambda: parse_vary(["eta=0.1", "eta=0.2"]), "each name and value once"),
    ],
)
def test_bad_comparisons_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_vary_reads_names_and_values():
    assert parse_vary(["eta=0.1, 0.2", "lambda-band=1"]) == {"eta": ["0.1", "0.2"], "lambda_band": ["1"]}


def test_a_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch):
    panel, said, whole = make_panel(), [], tmp_path / "whole"
    trials = regime_trials("factor", SMALL, regimes=("off", "homeostasis"), seeds=(0, 1))
    summary = compare_regimes(panel, trials, whole, num_draws=4, say=said.append)
    rows = pd.read_csv(whole / "regimes.csv")
    assert (len(rows), len(said)) == (4, 8)
    assert set(KEYS) | {"val_inside_mass", "test_living", "seconds", "fingerprint"} <= set(rows)
    assert (whole / "regimes.png").stat().st_size > 10_000
    assert list(summary["regime"]) == ["off", "homeostasis"]

    rows.iloc[[0, 2]].to_csv(tmp_path / "half.csv", index=False)
    done = run_trials(panel, trials, tmp_path / "half.csv", 4, said.append)
    assert len(said) == 12  # two were left
    again = done.sort_values(["regime", "seed"]).reset_index(drop=True)
    expected = rows.sort_values(["regime", "seed"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), expected.drop(columns="seconds"), rtol=1e-5)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials_module, "_run", fail)
    assert len(run_trials(panel, trials, tmp_path / "half.csv", 4)) == 4  # nothing is trained twice
    before = (tmp_path / "half.csv").read_bytes()
    for other, draws in ((make_panel(seed=1), 4), (panel, 5)):
        with pytest.raises(ValueError, match=r"holds regime=off seed=0 with other settings or other data"):
            run_trials(other, trials, tmp_path / "half.csv", draws)
    assert (tmp_path / "half.csv").read_bytes() == before


def test_contradictions_end_a_comparison_before_the_first_training(tmp_path):
    trials = regime_trials("factor", SMALL | {"warmup": 99})
    with pytest.raises(ValueError, match="warm-up of 99 steps"):
        run_trials(make_panel(), trials, tmp_path / "t.csv", 4)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no table of a comparison"):
        run_trials(make_panel(), trials, tmp_path / "t.csv", 4)


ROWS = pd.DataFrame(
    {
        "regime": ["off", "off", "off", "penalty", "penalty", "penalty"],
        "seed": [0, 1, 2, 0, 1, 2],
        "crps": [1.0, 2.0, 3.0, 1.1, 2.3, 3.2],
        "joint_log_score": [0.0] * 6,
        "val_inside_mass": [0.1, 0.2, 0.3, 0.8, 0.9, 1.0],
    }
)


def test_a_summary_by_hand():
    off, penalty = summarise(ROWS, ["regime"], ["crps"]).to_dict("records")
    assert (off["crps"], off["crps_sd"], off["crps_diff"], off["seeds"]) == (2.0, 1.0, 0.0, 3)
    assert penalty["crps_diff"] == pytest.approx(0.2)
    assert penalty["crps_ci"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert math.isnan(half_width(pd.Series([1.0])))


def test_the_picture_has_a_point_a_variant():
    figure = plots.regime_scatter(ROWS, ["regime"])
    points = [container.lines[0].get_xydata()[0] for container in figure.axes[0].containers]
    assert points[1] == pytest.approx([0.9, 2.2])
    assert len(points) == 2
