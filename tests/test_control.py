"""Every controller held to its formula, by hand or by a loop over units."""

import math

import pytest
import torch

from eve_pyro.control.band import Band, BandPenalty, heterogeneous_band, hinge, homogeneous_band, ramp
from eve_pyro.control.laws import ArShare, BandCalibration, Thermostat, ema, homeostat_factors, projection_factors
from eve_pyro.control.steering import Steering

BAND = Band(torch.tensor([0.1, 0.2, 0.4, 1.0]), torch.tensor([0.2, 0.4, 0.8, 2.0]))
ENERGY = torch.tensor([0.05, 0.3, 1.6, 1.0])  # below, inside, above, on the edge


def test_bands_by_hand():
    band = homogeneous_band(3, 0.5)
    torch.testing.assert_close(band.low, torch.full((3,), 0.4))
    torch.testing.assert_close(band.high, torch.full((3,), 0.8))
    torch.testing.assert_close(heterogeneous_band(3, 0.5, 4).low, 0.8 * torch.tensor([0.125, 0.5, 2.0]))
    wide = homogeneous_band(3, 0.5, width=8)
    torch.testing.assert_close(wide.high / wide.low, torch.full((3,), 8.0))
    torch.testing.assert_close(wide.centre, band.centre)
    torch.testing.assert_close(heterogeneous_band(3, 0.5, 4, 8).centre, heterogeneous_band(3, 0.5, 4).centre)
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
        (lambda: homogeneous_band(3, width=1.0), "width of a band is a factor above 1"),
        (lambda: BandPenalty({}, weight=-1.0), "cannot be negative"),
        (lambda: Thermostat(torch.ones(2), c_min=0.3, c_max=0.2), "c_min <= c_max"),
        (lambda: Steering(c_min=0.3, c_max=0.2).check(100), "c_min <= c_max"),
        (lambda: Steering(c_min=-1.0).check(100), r"option c_min = -1\.0: input should be greater than or equal to 0"),
        (
            lambda: Steering("homeo").check(100),
            "option regime = 'homeo': input should be 'off', 'penalty'",
        ),
        (lambda: Steering(bands="hetero").check(100), "option bands = 'hetero': input should be 'homogeneous' or"),
        (lambda: Steering(target=math.inf).check(100), "option target = inf: input should be less than inf"),
        (lambda: Steering(target=math.nan).check(100), "option target = nan"),
        (lambda: Steering(spread=0.5).check(100), r"option spread = 0\.5: input should be greater than or equal to 1"),
        (lambda: Steering("homeostasis", eta=-1.0).check(100), r"option eta = -1\.0: input should be greater than 0"),
        (lambda: Steering("homeostasis", warmup=2.5).check(100), r"option warmup = 2\.5"),
        (lambda: Steering(thermostat=True, warmup=100).check(100), "a warm-up of 100 steps"),
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
