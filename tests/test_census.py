"""The census: states by hand, summaries that add up, and the tables a training leaves."""

import pandas as pd
import pytest
import torch
from conftest import GUIDES, UNITS, make_model

from eve_pyro.control.steering import Steering
from eve_pyro.diagnostics.census import Tally, UnitFigures, has_drifted, judge, last_figures, state_names, summary
from eve_pyro.infer.fit import fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.training import Training
from eve_pyro.infer.units import unit_table

LOW, HIGH = torch.full((6,), 0.1), torch.full((6,), 0.2)
FIGURES = UnitFigures(
    kl=torch.tensor([0.3, 0.02, 0.5, 0.0, 0.9, 0.4]),
    energy=torch.tensor([0.15, 0.05, 0.3, 0.0, 0.9, 0.15]),
    scale=torch.tensor([0.7, 0.9, 0.6, 1.0, 0.5, 0.15]),
)


def test_states_by_hand():
    states = judge(FIGURES, LOW, HIGH)
    assert state_names(states) == ["living", "too_low", "too_high", "dead", "saturated", "collapsed"]
    assert states["too_low"].tolist() == [False, True, False, True, False, False]
    assert states["too_high"].tolist() == [False, False, True, False, True, False]
    drifting = judge(FIGURES, LOW, HIGH, torch.tensor([True] + [False] * 5))
    assert state_names(drifting)[0] == "drifting"


def test_a_summary_by_hand():
    found = summary(judge(FIGURES, LOW, HIGH), FIGURES)
    expected = {
        "inside_mass": 2 / 6, "living": 1 / 6, "too_low": 2 / 6, "too_high": 2 / 6, "dead": 1 / 6, "saturated": 1 / 6,
        "collapsed": 1 / 6, "drifting": 0.0, "active": 5 / 6, "kl": 2.12, "effective_kl": 2.12 / 5, "energy": 1.55 / 6,
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_a_unit_without_an_energy_is_neither_inside_nor_living():
    figures = FIGURES._replace(energy=torch.tensor([torch.nan, 0.05, 0.3, 0.0, 0.9, torch.nan]))
    states = judge(figures, LOW, HIGH)
    assert state_names(states)[0] == "unknown"
    assert state_names(states)[5] == "collapsed"
    assert not states["living"].any()
    assert summary(states, figures)["inside_mass"] == pytest.approx(0, abs=1e-6)


def test_the_last_figures_are_those_of_each_layers_last_record_of_a_split():
    states = state_names(judge(FIGURES, LOW, HIGH))
    record = pd.DataFrame({name: values.numpy() for name, values in FIGURES._asdict().items()})
    record = record.assign(low=0.1, high=0.2, state=states, unit=range(6), site="a.z", split="train", step=8)
    before = record.assign(step=4, kl=9.0, state="living", high=7.0)
    above, unseen = record.assign(site="b.z", state="living"), record.assign(split="val", step=6, energy=0.15)
    found = last_figures(pd.concat([before, record, above, unseen, before.assign(site="b.z")]))
    assert found[["site", "split"]].to_numpy().tolist() == [["a.z", "train"], ["b.z", "train"], ["a.z", "val"]]
    assert (found["units"] == 6).all()
    assert found[["low", "high"]].to_numpy().tolist() == [[0.1, 0.2]] * 3
    shares = ["living", "too_low", "too_high", "dead", "saturated", "collapsed", "drifting"]
    expected = [[1 / 6] * 6 + [0], [1, *[0] * 6], [1 / 6] * 6 + [0]]
    assert found[shares].to_numpy().tolist() == [pytest.approx(row) for row in expected]
    assert found["inside_mass"].tolist() == pytest.approx([2 / 6, 2 / 6, 1])
    assert found["active"].tolist() == pytest.approx([5 / 6] * 3)
    assert found["kl"].tolist() == pytest.approx([2.12] * 3)
    assert found["effective_kl"].tolist() == pytest.approx([2.12 / 5] * 3)
    assert found["energy"].tolist() == pytest.approx([1.55 / 6, 1.55 / 6, 0.15])


def test_drift_is_movement_that_gains_nothing():
    before, now = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.16, 0.14, 0.06])
    assert has_drifted(now, before, gained=False).tolist() == [True, False, True]
    assert not has_drifted(now, before, gained=True).any()


def test_a_tally_weighs_windows_alike(windows):
    model = make_model()
    guide, elbo, tally = GUIDES["context"](model), LocalELBO(), Tally()
    table = unit_table(model, guide, windows.test, batch_size=len(windows.test))
    for part in (windows.test.select(range(10)), windows.test.select(range(10, len(windows.test)))):
        elbo.differentiable_loss(model.eval(), guide, *part[:])
        tally.add(elbo.terms)
    kl, energy, scale = tally.take()["eve.z"]
    for ours, column in ((kl, "kl"), (energy, "energy"), (scale, "scale")):
        torch.testing.assert_close(ours, torch.tensor(table[column].to_numpy()).float(), rtol=1e-4, atol=1e-6)
    assert tally.windows == 0


def test_a_training_leaves_its_census(windows, tmp_path):
    model = make_model()
    guide = GUIDES["context"](model)
    steering = Steering("homeostasis", target=0.1, warmup=5, ramp=5)
    training = Training(epochs=3, batch_size=32, monitor="last", progress=False)
    result = fit(model, guide, windows, LocalELBO(), training, control=steering, log_dir=tmp_path)
    history, signals, units = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("history", "signals", "census"))
    shares = ("inside_mass", "too_low", "too_high", "living", "dead", "kl", "energy")
    assert {f"{split}_{name}" for split in ("train", "val") for name in shares} <= set(history)
    assert (history["val_inside_mass"] + history["val_too_low"] + history["val_too_high"]).to_numpy() == pytest.approx(
        1
    )
    assert len(units) == len(signals) * UNITS
    early = signals[(signals["split"] == "train") & (signals["step"] <= 0.2 * signals["step"].max())]
    assert len(early) >= 4  # a fifth of the way through there is a curve to prune by
    last = units[(units["split"] == "val") & (units["epoch"] == 2)]
    assert (last["state"] == "living").mean() == pytest.approx(history["val_living"].iloc[-1])
    assert last["kl"].sum() == pytest.approx(history["val_kl"].iloc[-1], rel=1e-4)
    table = unit_table(model, guide, windows.validation)
    assert last["energy"].to_numpy() == pytest.approx(table["energy"].to_numpy(), rel=1e-3)
    pd.testing.assert_frame_equal(result.tables["signals"], signals, check_dtype=False)


def test_steering_leaves_the_elbo_as_it_was(windows):
    model, elbo = make_model(), LocalELBO(beta=0.5)
    steering = Steering("penalty", thermostat=True, warmup=1)
    fit(
        model,
        GUIDES["context"](model),
        windows,
        elbo,
        Training(epochs=2, batch_size=32, progress=False),
        control=steering,
    )
    assert (elbo.penalties, elbo.beta) == ({}, 0.5)
