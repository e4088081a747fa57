"""Comparisons: which trials, a table that goes on where it stopped, differences by hand."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from conftest import make_panel

from eve_pyro import plots
from eve_pyro.bench import trials as trials_module
from eve_pyro.bench.ablation import ablate, ablation_trials
from eve_pyro.bench.compare import half_width, summarise
from eve_pyro.bench.regimes import compare_regimes, parse_vary, regime_trials
from eve_pyro.bench.trials import run_trials
from eve_pyro.infer.scores import KEYS
from eve_pyro.likelihoods import FactorReadout

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


def test_a_whole_recipe_is_swapped_under_the_same_options():
    base, other = ablation_trials("factor", SMALL, {"recipe": ["trajectory"]}, (0,))
    assert (other.labels, other.config.model.model) == ({"swapped": "recipe", "value": "trajectory"}, "trajectory")
    assert (base.config.model.model, other.config.training) == ("forecaster", base.config.training)


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


def test_an_ablation_swaps_one_thing_at_a_time(tmp_path):
    swaps = {"guide": ["conjugate", "future_aware"], "latent_dim": ["1", "2"], "model": ["trajectory"]}
    trials = ablation_trials("factor", SMALL | {"patches": 2}, swaps, seeds=(0, 1))
    assert [tuple(trial.labels.values()) for trial in trials[::2]] == [
        ("base", "factor"), ("guide", "future_aware"), ("latent_dim", "2"), ("model", "trajectory"),
    ]  # fmt: skip
    base, guide, latents, _ = (trial.config for trial in trials[1::2])
    assert (base.training.seed, guide.guide.guide, guide.model) == (1, "future_aware", base.model)
    assert (latents.model.latent_dim, latents.guide) == (2, base.guide)
    summary = ablate(make_panel(), trials, tmp_path, num_draws=4, say=lambda _: None)
    rows = pd.read_csv(tmp_path / "ablation.csv")
    assert list(rows)[:3] == ["swapped", "value", "seed"]
    assert set(KEYS) <= set(rows)
    assert len(rows) == 8
    assert list(summary["seeds"]) == [2] * 4
    paired = rows[rows["swapped"] == "guide"]["crps"].to_numpy() - rows[rows["swapped"] == "base"]["crps"].to_numpy()
    assert summary["crps_diff"][1] == pytest.approx(paired.mean())
    assert (tmp_path / "ablation.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("overrides", "swaps", "message"),
    [
        ({}, {"guide": ["conjugate"]}, "nothing is swapped"),
        ({}, {"guide": ["psychic"]}, "guide = 'psychic'"),
        ({}, {"colour": ["red"]}, "unknown option 'colour'"),
        ({"seed": 1}, {"guide": ["delta"]}, "--seeds, not --seed"),
    ],
)
def test_bad_ablations_are_refused(overrides, swaps, message):
    with pytest.raises(ValueError, match=message):
        ablation_trials("factor", SMALL | overrides, swaps, (0,))


def test_what_a_swap_cannot_do_is_said_before_the_first_training(tmp_path):
    trials = ablation_trials("conditional", SMALL, {"guide": ["conjugate"]}, (0,))
    with pytest.raises(ValueError, match="linear in its units"):
        run_trials(make_panel(), trials, tmp_path / "t.csv", 4)
    assert not (tmp_path / "t.csv").exists()


def test_rows_of_another_variant_stay_out_of_the_summary(tmp_path):
    panel, table = make_panel(), tmp_path / "t.csv"
    say = {"say": lambda _: None}
    first, second = (ablation_trials("factor", SMALL | {"epochs": 1}, {"units": [units]}, (0,)) for units in ("3", "2"))
    run_trials(panel, first, table, 4, **say)
    swapped = ablation_trials("factor", SMALL | {"epochs": 1, "units": 3}, {"units": ["4"]}, (0,))
    with pytest.raises(ValueError, match=r"holds swapped=base value=factor seed=0 with other settings"):
        run_trials(panel, [replace(trial, config=seeded(trial.config, 1)) for trial in swapped], table, 4, **say)
    rows = pd.read_csv(table)
    rows.iloc[::-1].to_csv(table, index=False)  # the base comes first all the same
    rows = run_trials(panel, [*first, second[1]], table, 4, **say)
    assert list(rows["swapped"]) == ["base", "units", "units"]
    assert list(rows["value"].astype(str)) == ["factor", "3", "2"]
    assert not rows["kl_sampled"].any()
    old = pd.read_csv(table).drop(columns=["settings", "kl_sampled"])
    old.to_csv(table, index=False)
    assert len(run_trials(panel, first, table, 4, **say)) == 2


def seeded(config, seed):
    return replace(config, training=replace(config.training, seed=seed))


def test_what_would_fail_late_is_said_before_the_first_training(tmp_path, monkeypatch):
    monkeypatch.setattr(FactorReadout, "rows", lambda self: None)
    trials = regime_trials("factor", SMALL | {"guide": "conjugate"}, ["off", "homeostasis"], (0,))
    with pytest.raises(ValueError, match="names no rows"):
        run_trials(make_panel(), trials, tmp_path / "t.csv", 4)
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(ValueError, match="file is no folder: choose another --out"):
            run_trials(make_panel(), trials, tmp_path / folder / "t.csv", 4)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", "1", "--vary seed: name what to train with --seeds"),
        ("progress", "true", "--vary progress: it changes nothing"),
        ("rank", "2", "rank = '2' changes nothing here: it needs guide 'low_rank'"),
        ("eta", "2", "eta = '2' changes nothing here: it needs another regime than 'off'"),
        ("objective", "mixture", "num_particles above 1"),
    ],
)
def test_swaps_that_change_nothing_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        ablation_trials("factor", SMALL, {option: [value]}, (0,))


def test_seeds_are_checked_and_flags_name_options():
    with pytest.raises(ValueError, match="seed"):
        ablation_trials("factor", SMALL, {"units": ["3"]}, (2**63,))
    assert parse_vary(["context=20"]) == {"context_length": ["20"]}
