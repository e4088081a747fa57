"""The regimes at work: on our guides, on a user's, on several layers."""

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import GUIDES, UNITS, make_model, shaken
from programs import plain_pair
from test_fit import LinearGaussian, LinearGuide, weights
from torch import nn

from eve_pyro.control.band import heterogeneous_band
from eve_pyro.control.layer import LayerControl, make_band
from eve_pyro.control.regimes import Control
from eve_pyro.control.steering import Steering
from eve_pyro.control.watch import Census
from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.protocols import UnitRows


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_scaling_a_guides_rows_scales_its_energies_by_the_square(guide, latent_dim):
    model = shaken(make_model(latent_dim=latent_dim)).eval()
    guide = shaken(GUIDES[guide](model)).eval()
    batch = torch.randn(8, 1, 24), torch.randn(8, 6)
    elbo = LocalELBO()
    elbo.differentiable_loss(model, guide, *batch)
    before = elbo.terms.units["eve.z"].energy
    factor = torch.linspace(0.5, 2.0, UNITS)
    for row in guide.unit_rows()["eve.z"].loc:
        row.mul_(factor.reshape(-1, *[1] * (row.ndim - 1)))
    elbo.differentiable_loss(model, guide, *batch)
    torch.testing.assert_close(elbo.terms.units["eve.z"].energy, before * factor.square(), rtol=1e-4, atol=1e-6)


def steered(windows, steering, epochs, guide="context", **options):
    torch.manual_seed(0)
    model = make_model(**options)
    guide = GUIDES[guide](model)
    control = Control(steering)
    training = Training(epochs=epochs, batch_size=32, learning_rate=1e-3, monitor="last", progress=False)
    result = fit(model, guide, windows, LocalELBO(beta=0.5), training, callbacks=[control])
    return control, guide, result


def inside(control, band=None):
    layer = control.layers["eve.z"]
    band = band or layer.band
    return 1 - float((band.too_low(layer.energy) | band.too_high(layer.energy)).float().mean())


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_homeostasis_brings_units_into_their_bands_and_off_does_not(windows, latent_dim):
    free, _, _ = steered(windows, Steering("off"), epochs=18, latent_dim=latent_dim)
    for bands in ("homogeneous", "heterogeneous"):
        steering = Steering("homeostasis", target=0.1, bands=bands, spread=3.0, warmup=20, ramp=20)
        control, _, _ = steered(windows, steering, epochs=18, latent_dim=latent_dim)
        assert inside(control) == 1
        assert inside(free, make_band(steering, UNITS)) <= 0.4


def test_the_thermostat_of_a_training_sets_the_betas_by_unit(windows):
    control, _, _ = steered(windows, Steering("off", thermostat=True, warmup=5), epochs=4)
    beta = control.layers["eve.z"].thermostat.beta
    assert beta.shape == (UNITS,)
    assert (beta != 0.5).any()


def test_the_guard_bounds_scales_and_kicks_the_dead(windows):
    control, guide, _ = steered(windows, Steering("penalty", warmup=5), epochs=2)
    layer, rows = control.layers["eve.z"], guide.unit_rows()["eve.z"]
    rows.log_scale.copy_(torch.tensor([-9.0, 0.0, 0.5, 9.0, 0.0]).reshape(-1, 1))
    layer.thermostat.alive = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    layer.guard(rows)
    expected = torch.tensor([math.log(0.15), 0.0, 0.52, math.log(5.0), 0.0])
    torch.testing.assert_close(rows.log_scale[:, 0], expected)
    torch.testing.assert_close(guide.heads["eve"].log_scale.detach(), expected)


@pytest.mark.parametrize("regime", ["projection", "homeostasis"])
def test_regimes_that_move_rows_refuse_a_guide_that_names_none(windows, regime):
    model, guide = plain_pair()
    quick = Training(epochs=2, batch_size=32, progress=False)
    with pytest.raises(ValueError, match=rf"regime '{regime}' moves the rows .* unit_rows"):
        fit(model, guide, windows, LocalELBO(), quick, callbacks=[Control(Steering(regime, warmup=2))])


def test_the_penalty_regime_serves_any_guide(windows):
    model, guide = plain_pair()
    control = Control(Steering("penalty", warmup=2, ramp=2))
    result = fit(
        model, guide, windows, LocalELBO(), Training(epochs=2, batch_size=32, progress=False), callbacks=[control]
    )
    assert result.history["train_band"].iloc[-1] > 0
    assert list(control.layers) == ["z"]


@pytest.mark.parametrize("regime", ["penalty", "homeostasis"])
def test_a_penalty_of_full_strength_from_the_first_step_waits_for_bands(windows, regime):
    control, _, _ = steered(windows, Steering(regime, warmup=0, ramp=0), epochs=1)
    assert control.penalty.strength == 1.0
    assert "eve.z" in control.penalty.bands


def test_a_users_guide_takes_part_by_naming_its_rows(windows):
    class Mine(LinearGuide):
        def unit_rows(self):
            return {"z": UnitRows((self.loc.weight.data, self.loc.bias.data), self.log_scale.data)}

    control = Control(Steering("homeostasis", target=0.3, warmup=5))
    model = LinearGaussian(0.1 * torch.randn(6, 3), 1.0)
    training = Training(epochs=20, batch_size=32, monitor="last", progress=False)
    fit(model, Mine(6, 3), windows, LocalELBO(), training, callbacks=[control])
    layer = control.layers["z"]
    assert not (layer.band.too_low(layer.energy) | layer.band.too_high(layer.energy)).any()


ROWS = {
    "another site": (lambda w, b, s: {"w": UnitRows((w, b), s)}, "of Mine names the site 'w': the sites are z"),
    "no site": (lambda w, b, s: {}, "of Mine leaves out the site 'z': the sites are z"),
    "no rows": (lambda w, b, s: {"z": (w, b)}, r"\['z'\] of Mine must be UnitRows\(\(tensor, ...\), log_scale\)"),
    "a tensor for a tuple": (lambda w, b, s: {"z": UnitRows(w, s)}, r"must be UnitRows\(\(tensor, ...\), log_scale\)"),
    "columns": (lambda w, b, s: {"z": UnitRows((w.mT, b), s)}, r"loc\[0\] in .* has shape \(6, 3\), not \(3, ...\)"),
    "too few": (lambda w, b, s: {"z": UnitRows((w[:2], b), s)}, r"loc\[0\] in .* has shape \(2, 6\), not \(3, ...\)"),
    "one scale": (lambda w, b, s: {"z": UnitRows((w, b), s[0])}, r"log_scale in .* has shape \(\), not \(3, ...\)"),
    "a copy": (lambda w, b, s: {"z": UnitRows((w, b.clone()), s)}, r"loc\[1\] in .*, of shape \(3,\), is no view"),
    "one for all": (lambda w, b, s: {"z": UnitRows((w, b), s[:1].expand(3))}, r"log_scale in .* is no view"),
}


@pytest.mark.parametrize("fault", ROWS)
def test_rows_that_are_not_those_of_the_units_are_refused_before_a_step(windows, fault):
    rows, message = ROWS[fault]

    class Mine(LinearGuide):
        def unit_rows(self):
            return rows(self.loc.weight.data, self.loc.bias.data, self.log_scale.data)

    model, guide = LinearGaussian(torch.ones(6, 3), 1.0), Mine(6, 3)
    before = weights(model, guide)
    control = Control(Steering("homeostasis", warmup=2))
    with pytest.raises(ValueError, match=message):
        fit(model, guide, windows, LocalELBO(), Training(2, 32, progress=False), callbacks=[control])
    assert torch.equal(weights(model, guide), before)


def test_a_warm_up_longer_than_the_training_is_refused(windows):
    with pytest.raises(ValueError, match="a warm-up of 64 steps leaves nothing of a training of"):
        steered(windows, Steering("penalty"), epochs=1)


def test_controllers_keep_their_state():
    steering = Steering("homeostasis", calibrate=True)
    layer = LayerControl(steering, torch.full((UNITS,), 0.5), 6)
    layer.observe(torch.rand(UNITS), torch.rand(UNITS), torch.rand(UNITS))
    layer.compare(torch.rand(UNITS))
    layer.thermostat.act()
    layer.calibration.act(torch.rand(UNITS))
    copy = LayerControl.restored(steering, layer.state(), torch.device("cpu"))
    for ours, theirs in zip(layer.state().values(), copy.state().values(), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    assert (copy.band.low == layer.band.low).all()


def test_a_checkpoint_steered_otherwise_is_refused():
    saved = Control(Steering("homeostasis", target=0.1)).state_dict()
    with pytest.raises(ValueError, match=r"steered with target = 0\.1, not 0\.2"):
        Control(Steering("homeostasis", target=0.2)).load_state_dict(saved)


class TwoLayers(nn.Module):
    """Two layers of units below one observation."""

    sizes: ClassVar = {"low.z": 3, "high.z": 4}

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24 + 7, 6)

    def forward(self, context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            parts = []
            for site, size in self.sizes.items():
                with pyro.plate(f"{site}.units", size, dim=-1):
                    parts.append(pyro.sample(site, dist.Normal(0.0, 1.0)))
            shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
            features = torch.cat([context[:, 0].expand(*shape, 24), *(p.expand(*shape, -1) for p in parts)], -1)
            observed = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(self.head(features).unsqueeze(-2), 0.5).to_event(1), obs=observed)


class TwoLayersGuide(nn.Module):
    """Both layers from the context, each with rows to steer."""

    def __init__(self):
        super().__init__()
        self.loc = nn.ModuleList(nn.Linear(24, size) for size in TwoLayers.sizes.values())
        self.log_scale = nn.ParameterList(torch.zeros(size) for size in TwoLayers.sizes.values())

    def forward(self, context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            for site, loc, log_scale in zip(TwoLayers.sizes, self.loc, self.log_scale, strict=True):
                with pyro.plate(f"{site}.units", len(log_scale), dim=-1):
                    pyro.sample(site, dist.Normal(loc(context[:, 0]), log_scale.exp()))

    def unit_rows(self):
        parts = zip(TwoLayers.sizes, self.loc, self.log_scale, strict=True)
        return {site: UnitRows((loc.weight.data, loc.bias.data), scale.data) for site, loc, scale in parts}


def test_every_layer_has_its_own_band_betas_and_census(windows):
    steering = Steering("homeostasis", target=0.2, bands="heterogeneous", spread=2.0, thermostat=True, warmup=5)
    control = Control(steering)
    training = Training(epochs=25, batch_size=32, monitor="last", progress=False)
    callbacks = [control, Census(control)]
    result = fit(TwoLayers(), TwoLayersGuide(), windows, LocalELBO(beta=0.5), training, callbacks=callbacks)
    for site, size in TwoLayers.sizes.items():
        layer = control.layers[site]
        assert layer.band.low.shape == layer.thermostat.beta.shape == (size,)
        torch.testing.assert_close(layer.band.low, heterogeneous_band(size, 0.2, 2.0).low)
        last = result.tables["census"].query("split == 'val' and epoch == 24 and site == @site")
        assert list(last["unit"]) == list(range(size))
        assert last["energy"].between(last["low"], last["high"]).all()
