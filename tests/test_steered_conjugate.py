"""Steering the exact posterior, whose rows are the readout's loadings, and leaving a volatility unit alone."""

import pytest
import torch
from conftest import make_panel
from pyro import poutine

import eve_pyro as ep
from eve_pyro.control.regimes import Control

SMALL = {"context_length": 24, "horizon": 6, "units": 4, "hidden": 8, "features": 12, "guide": "conjugate"}
SMALL |= {"batch_size": 32, "epochs": 15, "monitor": "last", "progress": False, "learning_rate": 1e-3}


def energies(pair, windows):
    table = ep.unit_table(pair.model, pair.guide, windows)
    return torch.tensor(table[table["site"] == "eve.z"]["energy"].to_numpy())


def test_a_units_energy_follows_its_loadings():
    windows = ep.make_windows(make_panel(), 24, 6)
    pair = ep.build(ep.load_recipe("factor", SMALL))
    before, rows = energies(pair, windows.test), pair.guide.unit_rows()["eve.z"]
    rows.loc[0][2] *= 2.0
    after = energies(pair, windows.test)
    assert after[2] > 1.2 * before[2]
    torch.testing.assert_close(pair.model.readout.loadings.detach()[:, 2], rows.loc[0][2])


@pytest.mark.parametrize("volatility", [False, True])
def test_homeostasis_moves_units_towards_their_band_and_leaves_volatility_alone(volatility):
    windows = ep.make_windows(make_panel(), 24, 6)
    away = {}
    for regime in ("off", "homeostasis"):
        config = ep.load_recipe("factor", SMALL | {"volatility": volatility})
        pair, control = ep.build(config), Control(ep.Steering(regime, target=0.02, warmup=10, ramp=10))
        ep.fit(pair.model, pair.guide, windows, pair.elbo, config.training, callbacks=[control])
        away[regime] = (energies(pair, windows.validation) / 0.02).log().abs().mean()
    assert away["homeostasis"] < 0.5 * away["off"]
    assert set(control.penalty.bands) == {"eve.z"}


def test_the_census_is_of_units_that_a_band_can_hold():
    windows = ep.make_windows(make_panel(), 24, 6)
    config = ep.load_recipe("factor", SMALL | {"epochs": 1, "volatility": True})
    pair = ep.build(config)
    done = ep.fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=ep.Steering("off"))
    assert list(done.tables["census"]["site"].unique()) == ["eve.z"]
    assert (done.tables["signals"]["inside_mass"] * 4 % 1 == 0).all()  # shares of four units, not of five


@pytest.mark.parametrize("options", [{}, {"latent_dim": 2}, {"units": 32, "volatility": False}])
def test_no_loadings_give_more_energy_than_the_steps_allow(options):
    windows = ep.make_windows(make_panel(), 24, 6)
    pair = ep.build(ep.load_recipe("factor", SMALL | options))
    rows = pair.guide.unit_rows()["eve.z"]
    units, latents = options.get("units", 4), options.get("latent_dim", 1)
    assert rows.reach == 6 / units / latents
    context, found = windows.train[:400][0], []
    with torch.no_grad():
        for _ in range(4):  # futures as the model draws them, of loadings larger and larger
            future = poutine.trace(pair.model.eval()).get_trace(context).nodes["y"]["value"][:, 0]
            posterior = poutine.trace(pair.guide.eval()).get_trace(context, future).nodes["eve.z"]["fn"]
            found.append(float(posterior.mean.square().mean()))
            rows.loc[0].mul_(5.0)
    assert found[0] < 0.8 * found[-1]
    assert 0.8 < found[-1] / min(1 / latents, rows.reach) < 1.1  # no unit can have more than what it explains in full


def test_a_target_out_of_reach_is_lowered_instead_of_pulled_at():
    windows = ep.make_windows(make_panel(), 24, 6)
    config = ep.load_recipe("factor", SMALL | {"units": 32, "volatility": False, "epochs": 8})
    norms = {}
    for regime in ("off", "homeostasis"):
        pair, control = ep.build(config), Control(ep.Steering(regime, target=0.4, warmup=10, ramp=10))
        ep.fit(pair.model, pair.guide, windows, pair.elbo, config.training, callbacks=[control])
        norms[regime] = pair.model.readout.loadings.detach().norm()
    band = control.layers["eve.z"].band
    torch.testing.assert_close(band.centre, torch.full((32,), 6 / 32 / 3))
    assert norms["homeostasis"] < 5 * norms["off"]
    assert (energies(pair, windows.validation) < 2 * band.high).all()
