"""Every controller held to its formula, by hand or by a loop over units; and the regimes at work."""

import math

import pytest
import torch
from conftest import GUIDES, UNITS, make_model, shaken
from test_fit import LinearGuide, plain_pair

from eve_pyro.control.band import Band, BandPenalty, heterogeneous_band, hinge, homogeneous_band, ramp
from eve_pyro.control.laws import ArShare, BandCalibration, Thermostat, ema, homeostat_factors, projection_factors
from eve_pyro.control.layer import LayerControl
from eve_pyro.control.regimes import Control
from eve_pyro.control.steering import Steering
from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.local_elbo import LocalELBO

BAND = Band(torch.tensor([0.1, 0.2, 0.4, 1.0]), torch.tensor([0.2, 0.4, 0.8, 2.0]))
ENERGY = torch.tensor([0.05, 0.3, 1.6, 1.0])  # below, inside, above, on the edge


def test_bands_by_hand():
    band = homogeneous_band(3, 0.5)
    torch.testing.assert_close(band.low, torch.full((3,), 0.4))
    torch.testing.assert_close(band.high, torch.full((3,), 0.8))
    torch.testing.assert_close(heterogeneous_band(3, 0.5, 4).low, 0.8 * torch.tensor([0.125, 0.5, 2.0]))
    assert BAND.too_low(ENERGY).tolist() == [True, False, False, False]
    assert BAND.too_high(ENERGY).tolist() == [False, False, True, False]
    inner = BAND.inner(0.5)
    torch.testing.assert_close(inner.centre, BAND.centre)
    torch.testing.assert_close(inner.high / inner.low, (BAND.high / BAND.low).sqrt())
    torch.testing.assert_close(BAND.nearest(ENERGY), torch.tensor([0.1, 0.3, 0.8, 1.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Band(torch.tensor([0.3]), torch.tensor([0.3])), "low < high"),
        (lambda: Band(torch.tensor([-0.3]), torch.tensor([0.3])), "low < high"),
        (lambda: homogeneous_band(3, -0.1), "target energy must be positive"),
        (lambda: homogeneous_band(0), "at least one unit"),
        (lambda: heterogeneous_band(3, spread=0.5), "spread"),
        (lambda: BandPenalty({}, weight=-1.0), "cannot be negative"),
        (lambda: Thermostat(torch.ones(2), c_min=0.3, c_max=0.2), "c_min <= c_max"),
        (lambda: Steering(c_min=0.3, c_max=0.2).check(100), "c_min <= c_max"),
    ],
)
def test_contradictions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_hinge_by_hand():
    relative = (((0.1 - 0.05) / 0.1) ** 2 + ((1.6 - 0.8) / 0.8) ** 2) / 4
    assert float(hinge(ENERGY, BAND)) == pytest.approx(relative)
    assert float(hinge(ENERGY, BAND, relative=False)) == pytest.approx((0.05**2 + 0.8**2) / 4)
    crowded = torch.tensor([0.05, 0.1, 1.6, 1.0])  # half too low: the high side counts 0.3
    assert float(hinge(crowded, BAND)) == pytest.approx((0.5**2 + 0.5**2 + 0.3 * 1.0) / 4)


def test_the_hinges_denominators_have_a_floor():
    tiny = Band(torch.tensor([1e-5]), torch.tensor([2e-5]))
    assert float(hinge(torch.tensor([3e-5]), tiny)) == pytest.approx((1e-5 / 1e-3) ** 2)


def test_the_ramp_waits_then_grows_linearly():
    assert [ramp(step, 64, 96) for step in (0, 64, 112, 160, 999)] == [0, 0, 0.5, 1, 1]
    assert [ramp(step, 5, 0) for step in (4, 5)] == [0, 1]


def test_projection_puts_every_unit_on_its_nearest_edge():
    moved = ENERGY * projection_factors(ENERGY, BAND).square()
    torch.testing.assert_close(moved, torch.tensor([0.1, 0.3, 0.8, 1.0]))
    assert float(projection_factors(torch.tensor([0.0]), homogeneous_band(1))) == 50
    assert float(projection_factors(torch.tensor([1e9]), homogeneous_band(1))) == pytest.approx(1 / 50)


def test_the_homeostat_by_a_loop_over_units():
    outside = 2 / 4
    eta = 0.15 * (1 + 2 * outside)
    for n, factor in enumerate(homeostat_factors(ENERGY, BAND)):
        low, high, e = float(BAND.low[n]), float(BAND.high[n]), float(ENERGY[n])
        goal = low if e < low else high if e > high else math.sqrt(low * high)
        assert float(factor) == pytest.approx(min(2, max(0.5, (goal / e) ** (eta / 2))))


def test_the_homeostat_leaves_a_unit_at_its_goal():
    torch.testing.assert_close(homeostat_factors(BAND.centre, BAND), torch.ones(4))


def test_the_homeostats_strength_is_capped():
    far = torch.full((4,), 1e-3)
    expected = (BAND.low / far).pow(0.25).clamp(max=2)  # eta 0.4 * 3 would be 1.2: capped at 0.5
    torch.testing.assert_close(homeostat_factors(far, BAND, eta=0.4), expected)


def test_moving_averages():
    first = torch.tensor([1.0])
    assert float(ema(None, first, 0.1)) == 1
    assert float(ema(first, torch.tensor([2.0]), 0.1)) == pytest.approx(1.1)


def test_the_thermostat_by_hand():
    thermostat = Thermostat(torch.full((4,), 0.1))
    thermostat.observe(torch.tensor([0.5, 0.1, 0.01, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    steps = torch.tensor([0.2 * 0.2, 0.0, -0.2 * 0.04, -0.2 * 0.05 - 0.5])
    torch.testing.assert_close(thermostat.act(), 0.1 * steps.exp())
    thermostat.observe(torch.tensor([1.5, 0.1, 0.01, 0.0]), torch.ones(4))
    assert float(thermostat.kl[0]) == pytest.approx(0.6)
    assert float(thermostat.alive[3]) == pytest.approx(0.1)


def test_betas_stay_within_their_limits_and_near_their_mean():
    thermostat = Thermostat(torch.tensor([0.001, 0.1, 0.9, 0.9]), floor=1e-3, ceiling=1.0)
    thermostat.observe(torch.tensor([0.0, 0.1, 9.0, 0.1]), torch.ones(4))
    before = torch.tensor([0.001 * math.exp(-0.01), 0.1, 0.9 * math.exp(0.2 * 8.7), 0.9]).clamp(1e-3, 1.0)
    torch.testing.assert_close(thermostat.act(), before.clamp(before.mean() / 4, before.mean() * 4))


@pytest.mark.parametrize("start", [1e-3, 0.9])
def test_the_thermostat_brings_a_linear_gaussian_units_kl_into_its_range(start):
    """For y = w z + noise and q at its optimum under beta, KL falls as beta grows: a plant with a known response."""
    thermostat = Thermostat(torch.tensor([start]), floor=1e-4, ceiling=10.0)
    w, noise, y2 = 1.0, 1.0, 2.0  # y2: the mean square of y

    def optimal_kl(beta):
        """KL at the optimum, whose precision is 1 + w^2 / (beta noise^2)."""
        precision = 1 + w**2 / (beta * noise**2)
        loc2 = (w / (beta * noise**2) / precision) ** 2 * y2
        return 0.5 * (1 / precision + loc2 - 1 + precision.log())

    first = optimal_kl(thermostat.beta)
    assert not 0.05 <= float(first) <= 0.30
    for _ in range(400):
        thermostat.observe(optimal_kl(thermostat.beta), torch.ones(1))
        thermostat.act()
    assert 0.05 - 1e-3 <= float(optimal_kl(thermostat.beta)) <= 0.30 + 1e-3


def test_band_calibration_by_hand():
    calibration = BandCalibration(homogeneous_band(5, 1.0))
    band = calibration.act(torch.full((5,), 0.8 * 1.01))
    assert calibration.low == pytest.approx(math.exp(0.3 * math.log(1.01)), rel=1e-5)
    assert calibration.high == pytest.approx(1 / 1.10)  # far below: the most it may fall
    torch.testing.assert_close(band.low, torch.full((5,), 0.8 * calibration.low))
    for _ in range(200):
        calibration.act(torch.full((5,), 1e6))
    assert (calibration.low, calibration.high) == (3.0, 3.0)
    for _ in range(200):
        calibration.act(torch.full((5,), 1e-9))
    assert calibration.low == pytest.approx(0.02)
    assert (calibration.band.low < calibration.band.high).all()


def test_the_ar_share_by_hand():
    share = ArShare(1.0)
    assert share.act(0.25) == pytest.approx(math.exp(-0.1 * 0.05))
    share = ArShare(1.0)
    assert share.act(0.5) == pytest.approx(math.exp(-0.2 * 0.2))
    assert ArShare(1.0).act(0.1) > 1


# --- the regimes -----------------------------------------------------------------------------------------------------


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


def steered(windows, steering, epochs=30, guide="context", **options):
    torch.manual_seed(0)
    model = make_model(**options)
    guide = GUIDES[guide](model)
    control = Control(steering)
    training = Training(epochs=epochs, batch_size=32, learning_rate=1e-3, monitor="last", progress=False)
    result = fit(model, guide, windows, LocalELBO(beta=0.5), training, callbacks=[control])
    return control, guide, result


def inside(control):
    layer = control.layers["eve.z"]
    return 1 - float((layer.band.too_low(layer.energy) | layer.band.too_high(layer.energy)).float().mean())


@pytest.mark.parametrize("bands", ["homogeneous", "heterogeneous"])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_homeostasis_brings_units_into_their_bands_and_off_does_not(windows, bands, latent_dim):
    steering = {"target": 0.1, "bands": bands, "spread": 3.0, "warmup": 20, "ramp": 20}
    control, _, _ = steered(windows, Steering("homeostasis", **steering), latent_dim=latent_dim)
    free, _, _ = steered(windows, Steering("off", **steering), latent_dim=latent_dim)
    assert inside(control) == 1
    assert inside(free) <= 0.4


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
    torch.testing.assert_close(guide.log_scale.detach(), expected)


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


def test_a_users_guide_takes_part_by_naming_its_rows(windows):
    class Mine(LinearGuide):
        def unit_rows(self):
            from eve_pyro.protocols import UnitRows

            return {"z": UnitRows((self.loc.weight.data, self.loc.bias.data), self.log_scale.data)}

    from test_fit import LinearGaussian

    control = Control(Steering("homeostasis", target=0.3, warmup=5))
    model = LinearGaussian(0.1 * torch.randn(6, 3), 1.0)
    training = Training(epochs=20, batch_size=32, monitor="last", progress=False)
    fit(model, Mine(6, 3), windows, LocalELBO(), training, callbacks=[control])
    layer = control.layers["z"]
    assert not (layer.band.too_low(layer.energy) | layer.band.too_high(layer.energy)).any()


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
