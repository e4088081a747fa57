"""Every score against brute force or scoringrules."""

import math

import numpy as np
import pytest
import scoringrules as sr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eve_pyro import metrics

S, B, H = 13, 5, 4


@pytest.fixture
def sample():
    return torch.randn(S, B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)


def test_mse_is_of_the_mean_and_mae_of_the_median(sample):
    draws, truth = sample
    np.testing.assert_allclose(metrics.mse(draws, truth), (draws.numpy().mean(0) - truth.numpy()) ** 2)
    np.testing.assert_allclose(metrics.mae(draws, truth), np.abs(np.median(draws.numpy(), 0) - truth.numpy()))


def test_crps_of_draws_is_the_unbiased_estimator(sample):
    draws, truth = sample
    expected = sr.crps_ensemble(truth.numpy(), draws.numpy(), m_axis=0, estimator="fair")
    np.testing.assert_allclose(metrics.crps(draws, truth), expected)


def test_crps_of_a_point_is_its_absolute_error(sample):
    draws, truth = sample
    torch.testing.assert_close(metrics.crps(draws[:1], truth), (draws[0] - truth).abs())


def test_crps_normal(sample):
    draws, truth = sample
    loc, scale = draws[0], draws[1].exp()
    expected = sr.crps_normal(truth.numpy(), loc.numpy(), scale.numpy())
    np.testing.assert_allclose(metrics.crps_normal(loc, scale, truth), expected)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.05, 5)), min_size=1, max_size=6),
    st.floats(-8, 8),
)
def test_crps_of_a_mixture_is_the_integral_of_its_definition(components, y):
    loc, scale = (torch.tensor(column, dtype=torch.float64) for column in zip(*components, strict=True))
    grid = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    cdf = torch.stack([torch.special.ndtr((grid - m) / s) for m, s in components]).mean(0)
    integral = torch.trapezoid((cdf - (grid >= y).double()).square(), grid)
    exact = metrics.crps_normal_mixture(loc, scale, torch.tensor(y, dtype=torch.float64))
    assert float(exact) == pytest.approx(float(integral), abs=1e-3)


def test_energy_score_is_unbiased_and_divided_by_the_root_of_the_horizon(sample):
    draws, truth = sample
    expected = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        error = sum((draws[i, b] - truth[b]).norm() for i in range(S)) / S
        spread = sum((draws[i, b] - draws[j, b]).norm() for i in range(S) for j in range(S)) / (S * (S - 1))
        expected[b] = (error - spread / 2) / math.sqrt(H)
    torch.testing.assert_close(metrics.energy_score(draws, truth), expected)
    torch.testing.assert_close(metrics.energy_score(draws[:, 0], truth[0]), expected[0])


def test_scores_keep_their_digits_far_from_zero(sample):
    draws, truth = (0.05 * each for each in sample)
    for score in (metrics.energy_score, metrics.crps, metrics.crps_mean):
        far = score((draws + 1000).float(), (truth + 1000).float())
        torch.testing.assert_close(far.double(), score(draws, truth), atol=2e-4, rtol=0)


def test_energy_score_of_one_step_is_the_crps(sample):
    draws, truth = sample
    torch.testing.assert_close(metrics.energy_score(draws[..., :1], truth[..., :1]), metrics.crps(draws, truth)[..., 0])


def test_crps_mean_scores_the_mean_over_the_horizon(sample):
    draws, truth = sample
    expected = sr.crps_ensemble(truth.numpy().mean(-1), draws.numpy().mean(-1), m_axis=0, estimator="fair")
    np.testing.assert_allclose(metrics.crps_mean(draws, truth), expected)


def test_pinball(sample):
    draws, truth = sample
    levels = (0.1, 0.5, 0.9)
    quantiles = draws.quantile(torch.tensor(levels, dtype=torch.float64), dim=0)
    for i, level in enumerate(levels):
        expected = sr.quantile_score(truth.numpy(), quantiles[i].numpy(), level)
        np.testing.assert_allclose(metrics.pinball(quantiles, truth, levels)[i], expected)
    with pytest.raises(ValueError, match="as many levels"):
        metrics.pinball(quantiles, truth, (0.1,))


def test_coverage_counts_the_central_interval():
    pit = torch.tensor([0.04, 0.06, 0.5, 0.94, 0.96])
    assert metrics.coverage(pit).tolist() == [0, 1, 1, 1, 0]
    assert metrics.coverage(pit, 0.5).tolist() == [0, 0, 1, 0, 0]


def test_log_score_of_a_mixture(sample):
    draws, truth = sample
    log_prob = torch.distributions.Normal(draws, 1.0).log_prob(truth)
    torch.testing.assert_close(metrics.log_score(log_prob), -log_prob.exp().mean(0).log())
