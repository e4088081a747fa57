"""Student's t as a forecast: its scores, distribution function and quantiles against SciPy and scoringrules."""

import numpy as np
import pyro.distributions as dist
import pytest
import scoringrules as sr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eve_pyro import metrics
from eve_pyro.distributions.volatile import WindowT
from eve_pyro.infer.predictive import Predictive, cdf, moments, quantile
from eve_pyro.infer.scores import marginal_scores

B, H = 5, 4


def fields(*shape):
    """Degrees of freedom, location, scale and truth."""
    df = 2.1 + 10 * torch.rand(*shape).double()
    return df, torch.randn(*shape).double(), torch.rand(*shape).double() + 0.2, 3 * torch.randn(*shape[-2:]).double()


def forecast_of(df, loc, scale):
    components = dist.StudentT(df, loc, scale)
    paths = torch.stack([components.sample()[i % len(df)] for i in range(8)])
    return Predictive(paths, components, None, components)


@settings(max_examples=60, deadline=None)
@given(st.floats(1.05, 500), st.floats(-5, 5), st.floats(0.05, 20), st.floats(-60, 60))
def test_crps(df, loc, scale, truth):
    found = metrics.crps_student_t(*(torch.tensor(each, dtype=torch.float64) for each in (df, loc, scale, truth)))
    assert float(found) == pytest.approx(float(sr.crps_t(truth, df, loc, scale)), rel=1e-8, abs=1e-10)


def test_crps_broadcasts_keeps_the_type_and_tends_to_a_normals():
    df, loc, scale, truth = fields(B, H)
    expected = sr.crps_t(*(each.numpy() for each in (truth, df, loc, scale)))
    np.testing.assert_allclose(metrics.crps_student_t(df, loc, scale, truth), expected, rtol=1e-10)
    single = metrics.crps_student_t(*(each.float() for each in (df[:, :1], loc, scale, truth)))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, metrics.crps_student_t(df[:, :1], loc, scale, truth), rtol=1e-5)
    normal = metrics.crps_normal(loc, scale, truth)
    torch.testing.assert_close(metrics.crps_student_t(df * 1e6, loc, scale, truth), normal, rtol=1e-5, atol=1e-6)


def test_a_t_of_one_df_a_window_has_torchs_density_and_gradients():
    df, loc, scale, truth = fields(B, 1, H)
    leaves = [each.clone().requires_grad_() for each in (df[..., :1], loc, scale)]
    found, expected = WindowT(*leaves).expand((2, B, 1, H)), dist.StudentT(*leaves).expand((2, B, 1, H))
    assert isinstance(found, WindowT)
    torch.testing.assert_close(found.log_prob(truth), expected.log_prob(truth))
    gradients = [torch.autograd.grad(fn.log_prob(truth).sum(), leaves) for fn in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distribution_function_and_quantiles(dtype):
    df, z = (2 + 8 * torch.rand(50)).to(dtype), (4 * torch.randn(50)).to(dtype)
    found = metrics.student_t_cdf(df, z)
    assert found.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found, stats.t.cdf(z.numpy(), df.numpy()), rtol=tolerance)
    for level in (1e-4, 0.05, 0.5, 0.9):
        theirs = stats.t.ppf(level, df.numpy())
        np.testing.assert_allclose(metrics.student_t_icdf(df, level), theirs, rtol=tolerance, atol=1e-12)


def test_scores_of_one_component_are_exact():
    df, loc, scale, truth = fields(1, B, H)
    forecast = forecast_of(df, loc, scale)
    t = stats.t(df[0].numpy(), loc[0].numpy(), scale[0].numpy())
    for level in (0.05, 0.5, 0.99):
        np.testing.assert_allclose(quantile(forecast, level), t.ppf(level), rtol=1e-9, atol=1e-12)
    mean, deviation = moments(forecast)
    np.testing.assert_allclose(mean, t.mean())
    np.testing.assert_allclose(deviation, t.std(), rtol=1e-9)
    np.testing.assert_allclose(cdf(forecast.components, truth)[0], t.cdf(truth.numpy()), rtol=1e-9)
    expected = {
        "mse": (t.mean() - truth.numpy()) ** 2,
        "mae": np.abs(t.median() - truth.numpy()),
        "crps": sr.crps_t(truth.numpy(), df[0].numpy(), loc[0].numpy(), scale[0].numpy()),
        "log_score": -t.logpdf(truth.numpy()),
        "coverage_90": np.abs(t.cdf(truth.numpy()) - 0.5) <= 0.45,
    }
    found = marginal_scores(forecast, truth)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.mean(-1), rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("level", [0.02, 0.5, 0.95])
def test_quantiles_and_coverage_of_a_mixture_solve_its_distribution_function(level):
    df, loc, scale, truth = fields(6, B, H)
    forecast = forecast_of(df, 3 * loc, scale)
    found = quantile(forecast, level).numpy()
    each = stats.t.cdf(found, df.numpy(), 3 * loc.numpy(), scale.numpy())
    np.testing.assert_allclose(each.mean(0), level, atol=1e-5)
    pit = stats.t.cdf(truth.numpy(), df.numpy(), 3 * loc.numpy(), scale.numpy()).mean(0)
    scores = marginal_scores(forecast, truth)
    np.testing.assert_allclose(scores["coverage_90"], (np.abs(pit - 0.5) <= 0.45).mean(-1), rtol=1e-6)
    density = stats.t.pdf(truth.numpy(), df.numpy(), 3 * loc.numpy(), scale.numpy()).mean(0)
    np.testing.assert_allclose(scores["log_score"], -np.log(density).mean(-1), rtol=1e-8)


def test_degrees_of_freedom_that_broadcast_are_read_as_well():
    _, loc, scale, _ = fields(3, B, H)
    forecast = forecast_of(torch.tensor(4.0).double().expand(3, B, H), loc, scale)
    assert quantile(forecast, 0.3).shape == (B, H)
    assert (quantile(forecast, 0.3) < quantile(forecast, 0.7)).all()


def test_a_wide_level_reaches_into_the_tails():
    """The mixture's quantile lies between its components', however far apart these are."""
    df = torch.full((2, 1, 1), 2.5).double()
    forecast = forecast_of(df, torch.tensor([-100.0, 100.0]).double().view(2, 1, 1), torch.ones(2, 1, 1).double())
    found = float(quantile(forecast, 0.001))
    expected = 0.5 * (stats.t.cdf(found, 2.5, -100) + stats.t.cdf(found, 2.5, 100))
    assert expected == pytest.approx(0.001, abs=2e-5)
