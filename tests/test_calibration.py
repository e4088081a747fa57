"""Simulation-based calibration, PIT values and coverage: right guides and forecasts pass, wrong ones do not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_model, make_pair, make_panel
from linear_gaussian import collinear, exact, guide_of, independent, model_of, rows, truth
from scipy import stats

from eve_pyro.data import latest_windows
from eve_pyro.diagnostics.calibration import calibration_table, pit_values
from eve_pyro.diagnostics.simulation import sbc
from eve_pyro.guides import Conjugate
from eve_pyro.infer.predictive import predict

TRUTH = truth()
MODEL, DATA = model_of(TRUTH), rows(TRUTH, 600)


def rank(guide, **options):
    return sbc(MODEL, guide, DATA, batch_size=600, **options)


def test_ranks_under_the_exact_posterior_are_uniform():
    found = rank(exact(TRUTH))
    assert found.passed
    assert found.p_value > 0.05
    table = found.table
    assert list(table) == ["quantity", "site", "unit", "latent", "mean", "spread", "p_value", "p_holm"]
    assert table["quantity"].tolist() == ["latent"] * 3 + ["projection"] * 4 + ["log_likelihood"]
    assert table["unit"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert (abs(table["mean"] - 0.5) < 4 / np.sqrt(12 * 600)).all()
    assert (abs(table["spread"] - 1) < 0.08).all()
    assert found.counts.shape == (8, 10)
    assert (found.counts.sum(axis=1) == 600).all()
    chi_square = (found.counts - 60).pow(2).sum(axis=1) / 60
    np.testing.assert_allclose(table["p_value"], stats.chi2.sf(chi_square, 9))


def test_false_alarms_are_as_rare_as_promised():
    alarms = sum(
        not sbc(MODEL, exact(TRUTH), DATA.at_most(200), batch_size=200, seed=seed).passed for seed in range(40)
    )
    assert alarms <= 6  # of 40 at 5 %: seven or more have a chance of 0.3 %


@pytest.mark.parametrize(
    ("options", "spread"), [({"stretch": 0.5}, 1.3), ({"kind": "marginal", "stretch": 2.0}, 0.65)], ids=["half", "wide"]
)
def test_wrong_scales_show_unit_by_unit(options, spread):
    found = rank(independent(TRUTH, **options))
    latents = found.table.query("quantity == 'latent'")
    assert (latents["p_holm"] < 1e-6).all()
    np.testing.assert_allclose(latents["spread"], spread, atol=0.12)
    np.testing.assert_allclose(latents["mean"], 0.5, atol=0.05)


def test_wrong_locations_show_unit_by_unit_and_which_way():
    latents = rank(independent(TRUTH, "marginal", shift=1.0)).table.query("quantity == 'latent'")
    assert (latents["p_holm"] < 1e-6).all()
    # P(z < q's draw) where q lies one deviation higher: Phi(-1 / sqrt 2)
    np.testing.assert_allclose(latents["mean"], stats.norm.cdf(-(0.5**0.5)), atol=0.04)


def test_correlation_left_out_shows_in_joint_quantities():
    pair = collinear()
    model, data = model_of(pair), rows(pair, 600)
    margins = sbc(model, independent(pair, "marginal"), data, batch_size=600).table.set_index("quantity")
    assert (margins.loc["latent", "p_holm"] > 0.05).all()  # unit by unit there is nothing to see
    assert margins.loc["projection", "p_holm"].min() < 1e-6
    assert margins.loc["log_likelihood", "p_holm"] < 1e-6
    best = sbc(model, independent(pair), data, batch_size=600).table.set_index("quantity")
    assert (best.loc["latent", "p_holm"] < 1e-6).all()  # margins pay for it
    assert sbc(model, exact(pair), data, batch_size=600).passed


def test_guides_that_ignore_the_data_or_give_points_show():
    prior = guide_of(3, lambda c, _: dist.Normal(torch.zeros(len(c), 3, 1, 1).double(), 1.0).to_event(2))
    blind = rank(prior).table.set_index("quantity")
    assert (blind.loc["latent", "p_holm"] > 0.05).all()
    assert blind.loc["log_likelihood", "p_holm"] < 1e-6
    point = guide_of(3, lambda c, y: dist.Delta(TRUTH.mean(c, y)[..., None, None]).to_event(2))
    assert rank(point).p_value < 1e-6


def test_ranks_of_discrete_latents_are_uniform_too():
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))  # (..., B, 1)
            loc = z[..., None].expand(*z.shape, 4)
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=None if future is None else future[:, None])

    def guide(context, future=None):
        logits = (future - 0.5).sum(-1, keepdim=True) + np.log(0.3 / 0.7)
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    assert sbc(model, guide, DATA, batch_size=600).passed


def test_simulations_run_on_real_models_repeat_contexts_and_reproduce(windows):
    model, shown = make_model(), windows.test.at_most(20)
    model.requires_grad_(False)
    found = sbc(model, Conjugate(model), shown, repeats=10, seed=3)
    assert found.passed
    assert (found.counts.sum(axis=1) == 10 * len(shown)).all()
    assert sbc(model, Conjugate(model), shown, repeats=10, seed=3).table.equals(found.table)
    with pytest.raises(ValueError, match="simulations are too few for 10 bins"):
        sbc(model, Conjugate(model), shown)
    latest = latest_windows(make_panel(), CONTEXT, HORIZON, windows.test.scaler)
    assert sbc(model, Conjugate(model), latest, repeats=50).passed  # contexts are all it takes


def family(fn):
    """A model without units whose future is ``fn``, batch (B, 1) and event (H,)."""

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            pyro.sample("y", fn(len(context)), obs=None if future is None else future[:, None])

    return model


def nothing(context, future=None):
    return None


def test_pit_values_are_the_distribution_functions(windows):
    model, guide = make_pair("future_aware")
    shown = windows.test.at_most(7)
    table = pit_values(model, guide, shown, batch_size=3)
    assert list(table) == ["window", "series", "origin", "step", "pit"]
    assert len(table) == len(shown) * HORIZON
    marginal = predict(model.eval(), guide, shown[:].context).components
    expected = marginal.cdf(shown[:].future)[0].flatten().detach()
    np.testing.assert_allclose(table["pit"], expected, atol=1e-6)
    assert table["step"].tolist()[: HORIZON + 1] == [*range(1, HORIZON + 1), 1]

    heavy = pit_values(
        family(lambda count: dist.StudentT(3.0, torch.ones(count, 1, 4), 2.0).to_event(1)), nothing, DATA
    )
    expected = stats.t.cdf((DATA.future.flatten() - 1) / 2, 3)
    np.testing.assert_allclose(heavy["pit"], expected, atol=1e-6)

    mixture = pit_values(MODEL, exact(TRUTH), DATA.at_most(50), num_draws=4000)["pit"]
    deviation = (TRUTH.loadings.square().sum(1) + TRUTH.noise**2).sqrt()
    context, future = DATA.at_most(50)[:]
    expected = stats.norm.cdf((future - context[:, 0, :1]) / deviation).flatten()
    np.testing.assert_allclose(mixture, expected, atol=5 * 0.5 / 4000**0.5)


def test_pit_values_from_draws_are_uniform_for_few_draws_and_for_counts():
    skewed = family(lambda count: dist.Gumbel(torch.zeros(count, 1, 4), 1.0).to_event(1))
    counts = family(lambda count: dist.Poisson(torch.full((count, 1, 4), 2.0)).to_event(1))
    for model in (skewed, counts):
        data = DATA.every(1)
        object.__setattr__(data, "future", pyro.poutine.trace(model).get_trace(data.context).nodes["y"]["value"][:, 0])
        pit = pit_values(model, nothing, data, num_draws=9)["pit"]
        assert stats.kstest(pit, "uniform").pvalue > 0.01


def test_coverage_is_right_for_the_models_own_data_and_wrong_for_another_noise():
    table = calibration_table(MODEL, exact(TRUTH), DATA, levels=(0.5, 0.9), num_draws=400)
    assert list(table) == ["step", "level", "coverage", "expected", "excess", "windows"]
    assert table["step"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    level = table["expected"]
    assert (abs(table["excess"]) < 4.5 * (level * (1 - level) / 600) ** 0.5).all()
    overconfident = TRUTH._replace(noise=0.1, loadings=0.5 * TRUTH.loadings)
    table = calibration_table(model_of(overconfident), exact(overconfident), DATA)
    assert (table["excess"] < -0.05).all()
    with pytest.raises(ValueError, match="lies between 0 and 1, not 90"):
        calibration_table(MODEL, exact(TRUTH), DATA, levels=[90])
