"""Importance weights against the closed forms of a linear-Gaussian model, with a right guide and with wrong ones."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_model, make_pair, make_panel
from linear_gaussian import collinear, exact, independent, model_of, rows, truth
from pyro.infer.autoguide import AutoNormal

from eve_pyro.data import latest_windows
from eve_pyro.diagnostics.importance import compare_guides, importance_table, smoothed
from eve_pyro.guides import Conjugate, PointGuide
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict

TRUTH = truth()
MODEL, DATA = model_of(TRUTH), rows(TRUTH, 30)
EVIDENCE = TRUTH.evidence(DATA.context, DATA.future).numpy()
WRONG = {
    "half": {"stretch": 0.5},
    "wide": {"kind": "marginal", "stretch": 2.0},
    "shifted": {"shift": 2.0},
    "best independent": {},
    "right margins": {"kind": "marginal"},
}


def agree(found, errors, expected, times=5.0):
    """Whether a mean over windows is within ``times`` Monte-Carlo standard errors."""
    error = math.sqrt(np.square(errors).sum()) / len(errors)
    assert abs((found - expected).mean()) < times * error, ((found - expected).mean(), error)


def test_the_exact_posterior_has_constant_weights():
    table = importance_table(MODEL, exact(TRUTH), DATA, 200)
    assert list(table) == ["window", "khat", "ess", "elbo", "elbo_se", "bound", "bound_se", "gap", "gap_se"]
    assert (table["khat"] == -math.inf).all()
    np.testing.assert_allclose(table["ess"], 200)
    for column in ("elbo", "bound"):
        np.testing.assert_allclose(table[column], EVIDENCE, rtol=1e-9)
    np.testing.assert_allclose(table[["gap", "elbo_se", "bound_se", "gap_se"]], 0, atol=1e-9)


@pytest.mark.parametrize("name", WRONG)
def test_bounds_of_a_wrong_guide_lie_where_theory_puts_them(name):
    table = importance_table(MODEL, independent(TRUTH, **WRONG[name]), DATA, 2000)
    divergence = TRUTH.divergence(**WRONG[name])
    agree(table["elbo"], table["elbo_se"], EVIDENCE - divergence)
    assert (table["gap"] > 0).all()
    assert table["gap"].mean() > 10 * np.sqrt(np.square(table["gap_se"]).sum()) / len(table)  # caught
    if name in ("wide", "best independent", "right margins"):  # the others' weights are too heavy to average
        agree(table["bound"], table["bound_se"], EVIDENCE)
        agree(table["gap"], table["gap_se"], divergence)
    else:
        assert table["bound"].mean() < EVIDENCE.mean() + 0.05


@pytest.mark.parametrize("stretch", [0.5, 0.7, 2.0])
def test_k_hat_and_effective_draws_of_one_unit(stretch):
    single = truth(units=1)
    table = importance_table(model_of(single), independent(single, stretch=stretch), rows(single, 40), 2000)
    if stretch < 1:  # heavier than any shape of the wrong sign
        assert table["khat"].mean() == pytest.approx(1 - stretch**2, abs=0.1)
    else:
        assert (table["khat"] < 0).all()  # bounded weights
    if stretch > 0.5**0.5:  # else w has no variance: E w^2 = c^2 / sqrt(2 c^2 - 1)
        second = stretch**2 / math.sqrt(2 * stretch**2 - 1)
        assert table["ess"].mean() == pytest.approx(2000 / second, rel=0.03)


def test_k_hat_catches_narrow_shifted_and_uncorrelated_guides():
    for options in (WRONG["half"], WRONG["shifted"]):
        assert importance_table(MODEL, independent(TRUTH, **options), DATA)["khat"].mean() > 0.75
    pair = collinear()
    model, data, rho = model_of(pair), rows(pair, 25), abs(pair.correlation())
    best = importance_table(model, independent(pair), data)
    margins = importance_table(model, independent(pair, "marginal"), data)
    assert 0.75 < best["khat"].mean() < rho  # 0.94 in the limit, from below
    assert margins["khat"].mean() == pytest.approx(rho / (1 + rho), abs=0.12)  # not seen by k-hat, but by the gap
    agree(margins["gap"], margins["gap_se"], pair.divergence("marginal"))
    assert (margins["ess"] < 0.6 * 1000).all()


def test_the_target_holds_the_models_prior_whatever_forecasts_draw_from(windows):
    model, guide = make_pair("context")
    shown = windows.test.at_most(6)
    table = importance_table(model, guide, shown, 4000)
    elbo = LocalELBO(num_particles=500)
    with torch.no_grad():
        elbo.loss(model.eval(), guide, *shown[:])
    expected = elbo.terms.log_likelihood - elbo.terms.units["eve.z"].kl.sum(-1)
    agree(table["elbo"], 3 * table["elbo_se"], expected.double().numpy())


def test_windows_of_series_are_named_and_single_precision_is_exact_enough(windows):
    model, shown = make_model(), windows.test.at_most(8)
    table = importance_table(model, Conjugate(model), shown, 50, batch_size=3)
    exact_joint = predict(model.eval(), Conjugate(model), shown[:].context).joint
    np.testing.assert_allclose(table["bound"], exact_joint.log_prob(shown[:].future[:, None])[:, 0].detach(), rtol=1e-4)
    assert (table["khat"] == -math.inf).all()
    day = shown.panel.index[0][1] - shown.panel.index[0][0]
    assert [t + day for t in table["origin"]] == [shown.timestamps(i)[0] for i in range(len(shown))]
    assert list(table["series"]) == [shown.panel.names[i] for i in shown.series]


def test_auxiliary_draws_and_constrained_sites_are_weighed_with_their_jacobian():
    """Under AutoNormal at loc 0 and scale 1, q is the prior LogNormal(0, 1): the bound averages p(y | z) over it."""

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 2, dim=-1):
                z = pyro.sample("z", dist.LogNormal(torch.zeros(1).double(), 1.0).to_event(1))
            loc = z.sum((-1, -2))[..., None, None].expand(*z.shape[:-2], 1, 4)
            pyro.sample("y", dist.Normal(loc, 3.0).to_event(1), obs=None if future is None else future[:, None])

    guide = AutoNormal(model, init_loc_fn=lambda site: torch.ones_like(site["fn"].sample()), init_scale=1.0)
    guide(DATA.context[:5], DATA.future[:5])
    table = importance_table(model, guide, DATA.every(6), 1000)
    z = dist.LogNormal(torch.zeros(200_000, 2).double(), 1.0).sample().sum(-1)
    log_prob = dist.Normal(z[:, None, None], 3.0).log_prob(DATA.every(6).future).sum(-1)
    assert len(table) == 5
    agree(table["bound"], 1.2 * table["bound_se"], (log_prob.logsumexp(0) - math.log(200_000)).numpy())


def test_weights_too_far_apart_for_a_fit_have_an_infinite_k_hat():
    """Where all weights but one underflow, arviz alone would fit an excellent 0.05."""
    normal = np.random.default_rng(0).normal(size=100)
    log_weights = np.stack([5000 * normal, np.zeros(100), normal, 200 * normal])
    smooth, khat = smoothed(log_weights)
    assert khat[0] == math.inf
    assert khat[1] == -math.inf
    assert khat[2] < 0.5
    assert 1 < khat[3] < math.inf
    np.testing.assert_allclose(np.exp(smooth).sum(1), 1)


def test_seeds_reproduce_and_the_random_state_stays():
    before, guide = torch.get_rng_state(), independent(TRUTH)
    tables = [importance_table(MODEL, guide, DATA, 50, seed=seed) for seed in (1, 1, 2)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert torch.equal(before, torch.get_rng_state())


def outside(context, future=None):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("windows", len(context), dim=-2):
        pyro.sample("y", dist.Normal(torch.zeros(len(context), 1, 4), 1.0).to_event(1), obs=future[:, None])


def renamed(context, future=None):
    exact(TRUTH)(context, future)
    pyro.sample("w", dist.Normal(0.0, 1.0))


def test_what_cannot_be_weighed_is_refused_by_name(windows):
    cases = [
        (MODEL, lambda context, future=None: None, DATA, "does not sample the model's site 'z'"),
        (MODEL, renamed, DATA, "samples 'w', which is no latent"),
        (outside, lambda *_: pyro.sample("z", dist.Normal(0.0, 1.0)), DATA, "'z' stands outside the windows plate"),
    ]
    for model, guide, data, match in cases:
        with pytest.raises(ValueError, match=match):
            importance_table(model, guide, data, 30)
    model = make_model()
    with pytest.raises(ValueError, match=r"gives a point for site 'eve\.z'"):
        importance_table(model, PointGuide(model), windows.test, 30)
    with pytest.raises(ValueError, match="at least 25 draws"):
        importance_table(MODEL, exact(TRUTH), DATA, 24)
    latest = latest_windows(make_panel(), CONTEXT, HORIZON, windows.test.scaler)
    with pytest.raises(ValueError, match="no future yet"):
        importance_table(model, Conjugate(model), latest)
    with pytest.raises(ValueError, match="no windows"):
        importance_table(model, Conjugate(model), windows.test.select([]))


def test_leaving_a_window_out_agrees_with_its_marginal_likelihood_where_data_are_weak():
    weak = truth(noise=3.0, units=2)
    model, data = model_of(weak), rows(weak, 30)
    evidence = weak.evidence(data.context, data.future).numpy()
    narrow = independent(weak, stretch=0.9)
    found = compare_guides({"exact": (model, exact(weak)), "narrow": (model, narrow)}, data, 2000, num_windows=15)
    table = found.table.set_index(["estimator", "pair"])
    assert (table["windows"] == 15).all()
    assert (table["total"] == 30).all()
    assert table.loc[("loo", "exact"), "khat_bad"] == 0
    for name, part in found.windows.groupby("pair"):
        assert (abs(part["loo"] - evidence[::2]) < 5 * part["loo_se"]).all()
        assert (abs(part["evidence"] - evidence[::2]) < 5 * part["evidence_se"] + 1e-9).all()
        for estimator in ("loo", "evidence"):
            assert table.loc[(estimator, name), "elpd"] == pytest.approx(part[estimator].sum())
            assert table.loc[(estimator, name), "khat_max"] == part[f"{estimator}_khat"].max()
            assert abs(table.loc[(estimator, name), "elpd_diff"]) < 5 * table.loc[(estimator, name), "mc_se"] + 0.5


def test_errors_of_leaving_out_are_how_much_seeds_differ():
    weak = truth(noise=2.0, units=2)
    pair, data = (model_of(weak), independent(weak)), rows(weak, 10)
    runs = [compare_guides({"a": pair, "b": pair}, data, 500, seed=seed).windows[:10] for seed in range(40)]
    for estimator in ("loo", "evidence"):
        spread = np.std([run[estimator] for run in runs], axis=0)
        stated = np.mean([run[f"{estimator}_se"] for run in runs], axis=0)
        assert np.mean(stated / spread) == pytest.approx(1, abs=0.2)


def test_a_comparison_ranks_models_and_shows_where_leaving_out_fails():
    other = truth(seed=2)
    pairs = {"wrong model": (model_of(other), exact(other)), "right model": (MODEL, exact(TRUTH))}
    found = compare_guides(pairs, DATA, 500).table
    evidence = found[found["estimator"] == "evidence"].set_index("pair")
    assert list(evidence.index) == ["right model", "wrong model"]
    assert evidence.loc["right model", "elpd"] == pytest.approx(EVIDENCE.sum(), rel=1e-6)
    gain = EVIDENCE - other.evidence(DATA.context, DATA.future).numpy()
    assert evidence.loc["wrong model", "elpd_diff"] == pytest.approx(gain.sum(), rel=1e-6)
    assert evidence.loc["wrong model", "dse"] == pytest.approx(math.sqrt(len(gain) * gain.var()), rel=1e-6)
    loo = found[found["estimator"] == "loo"].set_index("pair")
    assert loo.loc["right model", "khat_bad"] > 0.5  # strong data: the posterior does not reach back to the prior
    with pytest.raises(ValueError, match="at least two pairs"):
        compare_guides({"one": pairs["right model"]}, DATA)
