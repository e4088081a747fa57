"""The tree in ArviZ's hands: every function takes it as it is, and warns of nothing."""

import sys
import warnings

import arviz_plots
import arviz_stats
import matplotlib
import numpy as np
import pytest
import torch
from conftest import CONTEXT, HORIZON, UNITS, make_model, make_panel, shaken

from eve_pyro import stack_observed, to_datatree, to_inferencedata
from eve_pyro.data import make_windows
from eve_pyro.guides import Conjugate

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def trees():
    """Two restarts each of a model whose units know little of a window, so that a window can be left out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        windows = make_windows(make_panel(series=1), CONTEXT, HORIZON).test.every(6)
        pairs = []
        for _ in range(4):
            model = shaken(make_model(), 0.02)
            with torch.no_grad():
                model.readout.loadings.mul_(0.1)
            pairs.append((model, Conjugate(model)))
        return [
            to_datatree(*first, windows, restarts=[second], num_draws=500)
            for first, second in zip(pairs[::2], pairs[1::2], strict=True)
        ]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The inplace keyword")  # arviz_stats.compare of pandas
        yield
    matplotlib.pyplot.close("all")


def test_summaries_and_intervals(trees):
    tree = trees[0]
    windows = tree["posterior"].sizes["window"]
    table = arviz_stats.summary(tree, round_to="none")
    assert len(table) == windows * UNITS
    assert table.index[1] == "eve.z[0, eve[1]]"
    draws = tree["posterior/eve.z"].values
    np.testing.assert_allclose(table["mean"], draws.mean((0, 1)).ravel(), atol=1e-6)
    assert (table["r_hat"] < 1.05).mean() > 0.5
    eti = arviz_stats.eti(tree, prob=0.8)["eve.z"]
    expected = np.quantile(draws.reshape(-1, windows, UNITS), [0.1, 0.9], axis=0)
    np.testing.assert_allclose(np.moveaxis(eti.values, -1, 0), expected, atol=0.02)
    hdi = arviz_stats.hdi(tree, prob=0.8)["eve.z"]
    assert (np.diff(hdi.values) <= np.diff(eti.values) + 0.1).all()


def test_leaving_windows_out(trees):
    first, second = (arviz_stats.loo(tree, pointwise=True) for tree in trees)
    assert first.pareto_k.dims == ("window",)
    elpd = 0.0
    for log_likelihood in np.moveaxis(trees[0]["log_likelihood/y"].values, -1, 0):
        elpd -= np.log(np.mean(np.exp(-log_likelihood)))  # plain importance sampling of what is left out
    assert first.elpd == pytest.approx(elpd, abs=0.2)
    ranking = arviz_stats.compare({"first": first, "second": second})
    assert set(ranking.index) == {"first", "second"}
    arviz_plots.plot_khat(first, backend="matplotlib")
    arviz_plots.plot_compare(ranking, backend="matplotlib")


PLOTS = (
    "plot_forest", "plot_dist", "plot_trace", "plot_ess", "plot_mcse", "plot_autocorr", "plot_ridge",
    "plot_prior_posterior", "plot_ppc_dist", "plot_ppc_tstat",
)  # fmt: skip


@pytest.mark.parametrize("name", PLOTS)
def test_plots(trees, name):
    chosen = trees[0].sel(window=[0, 1], unit=["eve[0]", "eve[3]"])
    assert getattr(arviz_plots, name)(chosen, backend="matplotlib").viz.children


@pytest.mark.parametrize("name", ["plot_ppc_pit", "plot_ppc_interval"])
@pytest.mark.parametrize("group", ["posterior_predictive", "predictions"])
def test_plots_by_observation(trees, name, group):
    tree = trees[0]
    stacked = stack_observed(tree)
    assert getattr(arviz_plots, name)(stacked, group=group, backend="matplotlib").viz.children
    assert stacked[group]["y"].dims == ("chain", "draw", "observation")
    one = stacked["observed_data"].isel(observation=HORIZON + 2)
    assert (int(one["window"]), int(one["horizon"])) == (1, 3)
    assert float(one["y"]) == float(tree["observed_data/y"].sel(window=1, horizon=3))
    assert stacked["log_likelihood"].equals(tree["log_likelihood"])
    assert tree[group]["y"].dims[-1] == "horizon"


def test_classic_arviz(trees, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its successor
        data = to_inferencedata(trees[0])
    assert set(data.groups()) == set(trees[0].children)
    assert data.posterior.equals(trees[0]["posterior"].to_dataset())
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ValueError, match=r"pip install 'eve_pyro\[classic\]' 'arviz<1'"):
        to_inferencedata(trees[0])
