"""Forecasts and scores against exact answers."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, make_model, shaken
from pyro.infer.autoguide import AutoNormal, init_to_value
from scipy import stats
from test_fit import LinearGaussian, LinearGuide

from eve_pyro.data import latest_windows
from eve_pyro.guides import FutureAware
from eve_pyro.infer.forecast import forecast, truth
from eve_pyro.infer.predictive import cdf, predict, quantile
from eve_pyro.infer.scores import KEYS, evaluate, importance_log_weights, window_scores


def pair(guide="future_aware", **options):
    model = shaken(make_model(**options), 0.1).eval()
    return model, shaken(GUIDES[guide](model), 0.1).eval()


@pytest.mark.parametrize("guide", ["future_aware", "context"])
def test_paths_follow_the_exact_joint_distribution(guide):
    model, guide = pair(guide)
    prediction = predict(model, guide, torch.randn(2, 1, CONTEXT), 100_000)
    paths, joint = prediction.paths.double(), prediction.joint
    covariance = torch.stack([torch.cov(paths[:, b].T) for b in range(2)])
    scale = joint.covariance_matrix.abs().max()
    torch.testing.assert_close(paths.mean(0), joint.mean[:, 0].double(), atol=0.02 * float(scale.sqrt()), rtol=0)
    torch.testing.assert_close(covariance, joint.covariance_matrix[:, 0].double(), atol=0.03 * float(scale), rtol=0)
    torch.testing.assert_close(prediction.components.loc[0], joint.mean[:, 0])
    torch.testing.assert_close(prediction.components.scale[0], joint.stddev[:, 0])


def test_the_context_guides_closed_form_agrees_with_draws_of_its_units():
    """Drawing z ~ q and then y | z must give the marginals that integrating q out gives."""
    from eve_pyro.infer.predictive import forecast_trace

    model, guide = pair("context", latent_dim=3, pooling="sum")
    context = torch.randn(2, 1, CONTEXT)
    with torch.no_grad():
        drawn = forecast_trace(model, guide, context, 100_000)[0].nodes["y"]["value"][:, :, 0]
    exact = predict(model, guide, context, 2).components
    scale = float(exact.scale.max())
    torch.testing.assert_close(drawn.mean(0), exact.loc[0], atol=0.02 * scale, rtol=0)
    torch.testing.assert_close(drawn.std(0), exact.scale[0], atol=0.02 * scale, rtol=0)


def test_quantiles_of_a_normal_are_exact():
    prediction = predict(*pair(), torch.randn(3, 1, CONTEXT))
    components = prediction.components
    expected = stats.norm.ppf(0.9, components.loc[0], components.scale[0])
    np.testing.assert_allclose(quantile(prediction, 0.9), expected, rtol=1e-5)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.99])
def test_quantiles_of_a_mixture_solve_its_distribution_function(level):
    prediction = predict(*pair(readout="normal"), torch.randn(3, 1, CONTEXT), 50)
    assert not prediction.exact
    solved = prediction.components.cdf(quantile(prediction, level)).mean(0)
    torch.testing.assert_close(solved, torch.full_like(solved, level), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(prediction, 1.0)


def test_student_t_forecasts_solve_their_distribution_function():
    prediction = predict(*pair(readout="student_t"), torch.randn(3, 1, CONTEXT), 50)
    solved = cdf(prediction.components, quantile(prediction, 0.25)).mean(0)
    torch.testing.assert_close(solved, torch.full_like(solved, 0.25), atol=1e-5, rtol=0)
    assert (prediction.components.df > 2).all()


def test_a_delta_forecast_is_exact_and_has_no_dependence():
    model, guide = pair("delta", readout="normal")
    context, future = torch.randn(3, 1, CONTEXT), torch.randn(3, HORIZON)
    prediction = predict(model, guide, context, 10)
    assert prediction.exact
    joint = prediction.joint.log_prob(future[:, None])[:, 0]
    torch.testing.assert_close(joint, prediction.components.log_prob(future)[0].sum(-1))


def test_joint_log_score_by_importance_sampling_meets_the_exact_one(windows):
    """For y = W z + noise the joint is a known normal; half-right guides cost draws, not correctness."""
    noise, loadings = 0.8, 0.4 * torch.randn(HORIZON, 2)
    model, guide = LinearGaussian(loadings, noise), LinearGuide(HORIZON, 2)
    covariance = torch.linalg.inv(torch.eye(2) + loadings.mT @ loadings / noise**2)
    with torch.no_grad():
        guide.loc.weight.copy_(covariance @ loadings.mT / noise**2)
        guide.loc.bias.zero_()
        guide.log_scale.copy_(covariance.diagonal().sqrt().log())
    scores = evaluate(model, guide, windows.test, num_draws=400)
    future = windows.test[:].future
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(HORIZON), loadings @ loadings.mT + noise**2 * torch.eye(HORIZON)
    ).log_prob(future)
    error = scores["joint_log_score_se"]
    assert 0 < error < 0.01
    assert scores["joint_log_score"] == pytest.approx(float(-exact.mean() / HORIZON), abs=5 * error)


def hierarchy(observed=True, scale=1.0, at_forecast=True):
    """b ~ N(a, 0.1^2), a ~ N(0, 1), y = b + noise: y is normal with variance 1 + 1.01 where it is shared."""

    def program(context, future=None):
        if future is None and not at_forecast:
            return
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                b = pyro.sample("b", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 0.1))
            if observed:
                y = None if future is None else future.unsqueeze(-2)
                with pyro.poutine.scale(scale=scale):
                    pyro.sample("y", dist.Normal(b[..., None].expand(*b.shape, HORIZON), 1.0).to_event(1), obs=y)

    return program


@pytest.mark.parametrize("at_forecast", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_joint_score_of_a_hierarchy_of_units(windows, at_forecast, scale):
    """Sites that depend on each other keep their parents' draws, and a scaled likelihood is scored unscaled."""
    context, future = windows.test[:30]
    model, guide = hierarchy(scale=scale), hierarchy(observed=False, at_forecast=at_forecast)
    with torch.no_grad():
        weights = importance_log_weights(model, guide, context, future, 50_000)
    covariance = torch.eye(HORIZON) + 1.01 * torch.ones(HORIZON, HORIZON)
    exact = torch.distributions.MultivariateNormal(torch.zeros(HORIZON), covariance).log_prob(future)
    torch.testing.assert_close(weights.logsumexp(0) - math.log(50_000), exact, atol=0.1, rtol=0)


def test_a_point_proposed_for_a_random_unit_is_refused(windows):
    def guide(context, future=None):
        if future is not None:
            with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
                pyro.sample("a", dist.Delta(torch.zeros(len(context), 1)))
                pyro.sample("b", dist.Delta(torch.zeros(len(context), 1)))

    with pytest.raises(ValueError, match="a point for site 'a'"):
        importance_log_weights(hierarchy(), guide, *windows.test[:3], 5)


def test_an_observation_of_another_shape_is_refused():
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("time", HORIZON, dim=-1):
            pyro.sample("y", dist.Normal(torch.zeros(len(context), HORIZON), 1.0), obs=future)

    with pytest.raises(ValueError, match=r"site 'y' needs batch \(windows, 1\) and event \(horizon,\)"):
        predict(model, lambda context, future=None: None, torch.randn(3, 1, CONTEXT))
    with pytest.raises(ValueError, match="no site 'y'"):
        predict(lambda *a: None, lambda *a: None, torch.randn(3, 1, CONTEXT))


def test_an_autoguides_draws_are_no_points(windows):
    """AutoNormal passes its draws on through Deltas; its forecast is a mixture all the same."""

    def model(context, future=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("windows", len(context), dim=-2):
            y = None if future is None else future.unsqueeze(-2)
            loc = b[..., None].expand(*b.shape, HORIZON) if b.ndim else b.expand(HORIZON)
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    guide = AutoNormal(
        pyro.poutine.block(model, hide=["y"]), init_scale=1.0, init_loc_fn=init_to_value(values={"b": torch.zeros(())})
    )
    guide(*windows.test[:2])
    prediction = predict(model, guide, windows.test[:2].context, 20_000)
    assert not prediction.exact
    torch.testing.assert_close(prediction.paths.std(0), torch.full((2, HORIZON), math.sqrt(2.0)), atol=0.05, rtol=0)


def test_a_multivariate_likelihood_has_its_marginals_exactly():
    covariance = torch.eye(HORIZON) + 0.5

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(HORIZON), covariance))

    prediction = predict(model, lambda context, future=None: None, torch.randn(3, 1, CONTEXT), 5)
    assert prediction.exact
    torch.testing.assert_close(quantile(prediction, 0.5), torch.zeros(3, HORIZON))
    torch.testing.assert_close(prediction.components.scale[0], torch.full((3, HORIZON), 1.5).sqrt())


def test_importance_sampling_agrees_with_the_factor_readouts_closed_form(windows):
    model = pair()[0]
    with torch.no_grad():
        model.readout.loadings.mul_(0.3)
    guide = FutureAware(model)  # untrained: it proposes from the prior
    context = windows.test[:20].context
    future = predict(model, guide, context, 1).paths[0]
    with torch.no_grad():
        weights = importance_log_weights(model, guide, context, future, 20_000)
        exact = predict(model, guide, context).joint.log_prob(future[:, None])[:, 0]
    torch.testing.assert_close(weights.logsumexp(0) - math.log(20_000), exact, atol=0.2, rtol=0)


@pytest.mark.parametrize("options", [{}, {"readout": "normal", "prior": "contextual"}, {"readout": "student_t"}])
def test_evaluate_has_every_key_and_does_not_depend_on_the_batch_size(windows, options):
    model, guide = pair(**options)
    scores = [evaluate(model, guide, windows.test, 200, batch_size) for batch_size in (7, 64)]
    assert set(KEYS) <= set(scores[0])
    for key in KEYS:
        exact = not options and key not in ("energy_score", "crps_mean")
        assert scores[0][key] == pytest.approx(scores[1][key], rel=1e-4 if exact else 0.05, abs=0.01), key
    by_window = window_scores(model, guide, windows.test, 200, 64)
    assert by_window["crps"].shape == (len(windows.test),)
    assert float(by_window["crps"].double().mean()) == pytest.approx(scores[1]["crps"], rel=1e-6)


def test_forecasts_come_in_the_units_of_the_data(windows):
    model, guide = pair()
    test = windows.test.every(9)
    result = forecast(model, guide, test, num_draws=300, levels=(0.1, 0.5, 0.9), batch_size=4)
    assert result.exact
    assert result.paths.shape == (300, len(test), HORIZON)
    mean, deviation = test.scale()
    scaled = predict(model, guide, test[:].context).components
    torch.testing.assert_close(result.mean, mean + deviation * scaled.loc[0])
    torch.testing.assert_close(result.quantiles[1], result.mean)
    torch.testing.assert_close(result.quantiles[2] - result.quantiles[0], deviation * 2 * 1.281552 * scaled.scale[0])


def test_frames_are_long_and_carry_the_truth_where_it_is_known(windows):
    model, guide = pair()
    test = windows.test.every(20)
    frame = forecast(model, guide, test, 3, levels=(0.5,)).frame()
    assert list(frame) == ["unique_id", "window", "ds", "mean", "q0.5", "y"]
    assert len(frame) == len(test) * HORIZON
    values = dict(zip(test.panel.index[1], test.panel.values[1], strict=True))
    rows = frame[frame.unique_id == "s1"]
    np.testing.assert_allclose(rows.y, [values[ds] for ds in rows.ds], rtol=1e-5)
    torch.testing.assert_close(truth(test).flatten().double(), torch.tensor(frame.y.to_numpy()).double())
    latest = forecast(model, guide, latest_windows(test.panel, CONTEXT, HORIZON, test.scaler), 3)
    assert "y" not in latest.frame()
    assert latest.frame().ds.min() > test.panel.index[0][-1]
    paths = latest.paths_frame()
    assert list(paths) == ["draw", "unique_id", "window", "ds", "y"]
    np.testing.assert_allclose(paths[paths.draw == 2].y, latest.paths[2].flatten(), rtol=1e-6)


def test_forecasts_repeat_with_their_seed(windows):
    model, guide = pair()
    first, second, other = (forecast(model, guide, windows.test, 5, seed=seed).paths for seed in (0, 0, 1))
    assert (first == second).all()
    assert not (first == other).all()


def test_nothing_to_forecast_is_an_error(windows):
    with pytest.raises(ValueError, match="no windows"):
        forecast(*pair(), windows.test.select([]))
    with pytest.raises(ValueError, match="num_draws"):
        forecast(*pair(), windows.test, 0)
