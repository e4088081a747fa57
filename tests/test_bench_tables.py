"""The benchmark's tables by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from eve_pyro import plots
from eve_pyro.bench.tables import cell_table, chosen_rows, duel_table, markdown, rank_table, write_tables

SCORES = {"mse": 1.0, "mae": 1.0, "crps": 1.0, "energy_score": 1.0, "crps_mean": 1.0, "log_score": 1.0}
SCORES |= {"joint_log_score": 1.0, "coverage_90": 0.9, "val_crps": 1.0, "seconds": 2.0, "parameters": 10}


def row(model, seed, horizon=96, context=336, **scores):
    place = {"protocol": "longhorizon", "set": "ETTh1", "horizon": horizon, "context": context}
    return {**place, "model": model, "options": "recipe", "seed": seed, **SCORES, **scores}


@pytest.fixture
def rows():
    return pd.DataFrame(
        [
            row("twin", 0, context=96, val_crps=2.0),
            row("twin", 0, crps=1.2, coverage_90=0.8),
            row("twin", 1, crps=1.4, coverage_90=0.8),
            row("twin", 2, crps=1.1, coverage_90=0.8),
            *(row("eve", seed) for seed in range(3)),
            row("repeat_last", 0, crps=3.0, joint_log_score=np.nan, coverage_90=np.nan),
            row("eve", 0, horizon=720),
            row("twin", 0, horizon=720, crps=0.8),
        ]
    )


def test_the_twins_context_is_the_cells(rows):
    assert set(chosen_rows(rows)["context"]) == {336}
    lone = rows[rows["model"] == "twin"].iloc[:1]
    assert set(chosen_rows(lone)["context"]) == {96}
    assert set(chosen_rows(rows[rows["model"] == "repeat_last"])["context"]) == {336}


def test_an_ensemble_is_compared_by_its_twins_options_where_it_has_them(rows):
    better = [row("twin", 0, val_crps=0.1) | {"options": "dropout=0.3"}]
    members = [row("ensemble", 0, val_crps=0.1), row("ensemble", 0, val_crps=0.9) | {"options": "dropout=0.3"}]

    def compared(*more):
        chosen = chosen_rows(pd.concat([rows, pd.DataFrame([*better, *more])], ignore_index=True))
        return chosen[(chosen["model"] == "ensemble") & (chosen["horizon"] == 96)]["options"].tolist()

    assert compared(*members) == ["dropout=0.3"]
    assert compared(members[0]) == ["recipe"]


def test_differences_are_paired_by_seed(rows):
    cells = cell_table(rows).set_index(["horizon", "model"])
    twin = cells.loc[(96, "twin")]
    assert (twin["crps"], twin["seeds"], twin["context"]) == (pytest.approx(3.7 / 3), 3, 336)
    differences = np.array([-0.2, -0.4, -0.1])
    assert twin["crps_diff"] == pytest.approx(differences.mean())
    assert twin["crps_ci"] == pytest.approx(4.30265 * differences.std(ddof=1) / math.sqrt(3), rel=1e-5)
    assert math.isnan(cells.loc[(720, "twin"), "crps_ci"])
    assert cells.loc[(96, "repeat_last"), "crps_diff"] == pytest.approx(-2.0)
    alone = cell_table(rows[rows["model"] != "eve"])
    assert alone["crps_diff"].isna().all()


def test_ranks_and_duels(rows):
    cells = cell_table(rows)
    ranks = rank_table(cells)
    assert ranks.loc["eve", "crps"] == pytest.approx((1 + 2) / 2)
    assert ranks.loc["repeat_last", "crps"] == 3
    assert ranks.loc["eve", "coverage_90"] == pytest.approx((1 + 1.5) / 2)  # level at 720
    assert math.isnan(ranks.loc["repeat_last", "joint_log_score"])
    assert ranks["cells"].to_dict() == {"eve": 2, "twin": 2, "repeat_last": 1}
    duel = duel_table(cells).set_index(["model", "score"]).loc[("twin", "crps")]
    assert (duel["cells"], duel["ahead"], duel["behind"], duel["lost"]) == (2, 1, 1, "ETTh1 720")
    assert duel["surely ahead"] == 0  # the interval, 0.38, is wider than the difference
    assert duel["worst, %"] == pytest.approx(100 * 0.2 / 0.8)


def test_markdown_holds_every_figure_and_the_best_in_bold(rows):
    text = markdown(rows)
    assert "| ETTh1 | 96 | 336 | **1.0000** ± 0.0000 | 1.2333 ± 0.1528 | 3.0000 |" in text
    assert "| ETTh1 | 720 | 336 | 1.0000 | **0.8000** |  |" in text
    assert "crps_probts" not in text
    assert "nan" not in text


def test_a_cell_without_a_score_stands_beside_one_that_has_it(rows):
    lone = pd.DataFrame([row("quantile", 0, horizon=192, energy_score=np.nan, joint_log_score=np.nan)])
    text = markdown(pd.concat([rows, lone], ignore_index=True))
    assert "| ETTh1 | 192 | 336 |  |" in text.split("### energy_score")[1].split("###")[0]


def test_rows_at_another_context_are_named(rows):
    other = pd.DataFrame([row("quantile", 0, context=96), row("eve", 0, context=96)])
    assert "Left out of ETTh1 96, at context 96: quantile, eve." in markdown(
        pd.concat([rows, other], ignore_index=True)
    )
    assert "Left out" not in markdown(rows)


def test_a_cell_whose_models_were_tried_with_more_and_less_is_named(rows):
    more = pd.DataFrame([row("eve", 0, val_crps=0.9) | {"options": "alpha=0.25"}])
    assert "Not tuned alike" not in markdown(rows)
    text = markdown(pd.concat([rows, more], ignore_index=True))
    assert "Not tuned alike at ETTh1 96, by options tried: eve 2, twin 1.\n" in text
    assert "Not tuned alike at ETTh1 720" not in text


def test_another_table_is_refused(tmp_path):
    (tmp_path / "accuracy.csv").write_text("seed,fingerprint,crps\n0,abc,0.1\n")
    with pytest.raises(ValueError, match="is no table of this benchmark: it has no column 'context'"):
        write_tables(tmp_path)


def test_the_picture_has_a_point_a_cell_and_rival(rows):
    cells = cell_table(rows)
    axes = plots.accuracy_chart(cells, ("crps", "joint_log_score")).axes
    points = [container.lines[0].get_xydata() for container in axes[0].containers]
    assert [len(each) for each in points] == [2, 1]  # twin in both cells, repeat_last in one
    assert points[0][:, 0] == pytest.approx([100 * (3.7 / 3 - 1), -20.0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: pd.concat([rows, rows.iloc[3:4]]), "line 12: this run is there twice"),
        (lambda rows: rows.assign(crps=["abc", *rows["crps"][1:]]), "line 2: crps is 'abc'"),
        (lambda rows: rows.assign(context=["long", *rows["context"][1:]]), "line 2: context is 'long'"),
        (lambda rows: rows.assign(model=[*rows["model"][:-1], None]), "line 11: model is missing"),
        (lambda rows: rows.assign(val_crps=np.nan), "line 2: val_crps is missing"),
        (lambda rows: rows.drop(columns="context"), "it has no column 'context'"),
        (lambda rows: rows.drop(columns="joint_log_score"), "it has no column 'joint_log_score'"),
        (lambda rows: rows.assign(model=[" eve", *rows["model"][1:]]), "line 2: model is ' eve'"),
        (lambda rows: rows.assign(protocol="mine"), "line 2: protocol is 'mine'"),
        (lambda rows: rows.assign(horizon=8.5), "line 2: horizon is 8.5"),
        (lambda rows: rows.assign(crps=math.inf), "line 2: crps is inf"),
    ],
)
def test_a_table_edited_by_hand_is_refused_with_the_line(rows, tmp_path, edit, message):
    edit(rows.assign(fingerprint="f0")).to_csv(tmp_path / "accuracy.csv", index=False)
    with pytest.raises(ValueError, match=message):
        write_tables(tmp_path)


def test_a_rival_far_off_does_not_press_the_others_flat(rows):
    rows = rows[rows["model"] != "repeat_last"]  # 200 % behind
    cells = cell_table(rows.assign(joint_log_score=[*rows["joint_log_score"][:-1], 7e4]))
    axes = plots.accuracy_chart(cells, ("crps", "joint_log_score")).axes
    assert [ax.get_xscale() for ax in axes] == ["linear", "symlog"]
    assert [tick.get_text() for tick in axes[1].get_xticklabels()] == ["0", "0.5", "1", "10", "100", "1000", "10000"]
