"""Trees of any program: stacks, paths, plain functions, points, tables; and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import CONTEXT, HORIZON, UNITS, make_model, make_panel, shaken
from programs import Plain, latent, stack
from pyro import poutine
from torch import nn

from eve_pyro import plots, to_datatree
from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.data import Panel, latest_windows, make_table, make_windows
from eve_pyro.guides import Autoregressive, Flow, FutureAware, PointGuide
from eve_pyro.likelihoods import CategoricalReadout, FactorReadout
from eve_pyro.models import Forecaster, Regression
from eve_pyro.nets import LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.posterior.sampling import prefixes
from eve_pyro.priors import AR1Prior, StandardPrior


@pytest.fixture
def windows():
    return make_windows(make_panel(), CONTEXT, HORIZON).test.every(25)


def test_layers_of_a_stack_have_axes_of_their_own(windows):
    model = shaken(stack("factor"), 0.1)
    guide = FutureAware(model)
    tree = to_datatree(model, guide, windows, num_draws=10)
    dims = ("chain", "draw", "window")
    assert {name: each.dims for name, each in tree["posterior"].data_vars.items()} == {
        "low.z": (*dims, "low_unit"),
        "top.z": (*dims, "top_unit"),
    }
    assert {"low_kl", "top_kl", "low_energy", "top_energy", "log_weight"} == set(tree["sample_stats"].data_vars)
    assert tree["posterior/top_unit"].values[-1] == f"top[{UNITS - 1}]"
    part = to_datatree(model, guide, windows, num_draws=10, sites=["top.z"], units=[2])
    expected = tree["posterior"].to_dataset()[["top.z"]].isel(top_unit=[2])
    xr.testing.assert_equal(part["posterior"].to_dataset(), expected)
    assert {"top_kl", "top_energy", "log_weight"} == set(part["sample_stats"].data_vars)


def test_beside_a_single_unit_the_layer_of_several_keeps_its_plain_axes(windows):
    config = load_recipe("factor", {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS})
    pair = build(config)
    tree = to_datatree(pair.model, pair.guide, windows, num_draws=10, beta=0.5)
    dims = ("chain", "draw", "window")
    for group in ("posterior", "prior"):
        assert {name: each.dims for name, each in tree[group].data_vars.items()} == {
            "volatility.z": (*dims, "volatility_unit"),
            "eve.z": (*dims, "unit"),
        }
    assert tree["posterior/unit"].values.tolist() == [f"eve[{i}]" for i in range(UNITS)]
    assert tree["posterior/volatility_unit"].values.tolist() == ["volatility[0]"]
    own = {"kl", "energy", "beta"}
    assert set(tree["sample_stats"].data_vars) == own | {f"volatility_{name}" for name in own} | {"log_weight"}
    assert tree["sample_stats/kl"].dims == ("chain", "window", "unit")
    assert tree["sample_stats/volatility_kl"].dims == ("chain", "window", "volatility_unit")
    part = to_datatree(pair.model, pair.guide, windows, num_draws=10, sites=["eve.z"], units=[0, 2])
    chosen = tree.sel(unit=["eve[0]", "eve[2]"])
    xr.testing.assert_equal(part["posterior/eve.z"], chosen["posterior/eve.z"])
    assert "volatility.z" not in part["posterior"].data_vars
    means = plots.unit_trace(tree).axes[0].collections[0].get_array()
    np.testing.assert_allclose(means, tree["posterior/eve.z"].mean(("chain", "draw")).T)


def test_axes_are_plain_for_the_one_site_of_several_units_or_the_only_site():
    assert prefixes({"eve.z": 5}) == prefixes({"eve.z": 1}) == {"eve.z": ""}
    assert prefixes({"volatility.z": 1, "eve.z": 5}) == {"volatility.z": "volatility_", "eve.z": ""}
    several = {"volatility.z": "volatility_", "eve1.z": "eve1_", "eve2.z": "eve2_"}
    assert prefixes({"volatility.z": 1, "eve1.z": 5, "eve2.z": 2}) == several
    assert prefixes(dict.fromkeys(several, 1)) == several


def test_paths_and_latent_dimensions_have_axes():
    encoder, layer = LinearEncoder(CONTEXT, 8, 12), EveLayer(AR1Prior(StandardPrior(UNITS, 2), UNITS), UNITS, 2)
    model = Forecaster(encoder, layer, FactorReadout(layer, encoder.out_features, HORIZON), HORIZON, path=3)
    windows = make_windows(make_panel(), CONTEXT, HORIZON, path=3).test.every(25)
    tree = to_datatree(model, Autoregressive(model), windows, num_draws=7)
    z = tree["posterior/eve.z"]
    assert z.dims == ("chain", "draw", "window", "unit", "step", "latent")
    assert z.shape == (1, 7, len(windows), UNITS, 3, 2)
    assert tree["constant_data/context"].dims == ("window", "path", "past")


def test_any_program_will_do(windows):
    """Plain functions; a site without a units plate; tables; a KL without a closed form; windows yet to come."""
    plain = Plain()
    assert to_datatree(plain.model, plain.guide, windows, num_draws=3)["posterior/unit"].values[1] == "z[1]"

    loose = Plain(plates=(("windows", None, -2), ("units", 1, -1)))
    loose.loadings, loose.net = nn.Linear(1, HORIZON, bias=False), nn.Linear(CONTEXT + HORIZON, 2)
    pyro.clear_param_store()
    assert to_datatree(loose.model, loose.guide, windows, num_draws=3)["posterior/z"].shape == (1, 3, len(windows), 1)

    model = make_model()
    assert np.isfinite(to_datatree(model, Flow(model), windows, num_draws=3)["sample_stats/kl"]).all()
    latest = latest_windows(windows.panel, CONTEXT, HORIZON, windows.scaler)
    forecast = to_datatree(model, FutureAware(model), latest, groups=("predictions", "constant_data"), num_draws=3)
    assert forecast["predictions/y"].shape == (1, 3, 2, HORIZON)


def test_a_point_has_no_weight_and_tables_have_no_time():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    table = make_table(frame.assign(d=frame["a"] > 0), "d", classify=True)
    layer = EveLayer(StandardPrior(UNITS), UNITS)
    model = Regression(LinearEncoder(3, 8, 12, 0.0), layer, CategoricalReadout(MLPDecoder(UNITS, 8), 2), 1)
    tree = to_datatree(model, PointGuide(model), table.test, num_draws=3)
    assert set(tree["sample_stats"].data_vars) == {"kl", "energy"}
    assert set(np.unique(tree["predictions/y"])) <= {0.0, 1.0}
    assert tree["constant_data/context"].dims == ("window", "feature")
    assert "origin" not in tree["predictions"].coords


def test_times_with_a_zone_are_told_in_utc(tmp_path):
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=200, freq="h", tz="Europe/Berlin")})
    panel = Panel.from_wide(frame.assign(y=np.sin(np.arange(200.0)) + np.random.default_rng(0).normal(size=200)))
    windows, model = make_windows(panel, CONTEXT, HORIZON).test.every(20), make_model()
    with to_datatree(model, FutureAware(model), windows, num_draws=2, out=tmp_path / "draws.nc") as tree:
        last = pd.Timestamp(tree["predictions/origin"].values[0], tz="UTC")
    assert last == windows.timestamps(0)[0] - pd.Timedelta(hours=1)


def test_weights_know_auxiliary_sites(windows):
    """A draw handed on by a Delta has the density of the auxiliary draw and of the way it took."""
    plain = Plain()

    def guide(context, future=None):
        if future is not None:
            loc, raw = plain.net(torch.cat([context[:, 0], future], -1)).chunk(2, -1)
            rows, units = plain.plates(context)
            with rows, units:
                half = pyro.sample("z_half", dist.Normal(loc, raw.exp()), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(2 * half, log_density=-math.log(2) + 0 * half))

    tree = to_datatree(plain.model, guide, windows, num_draws=4)
    z = torch.from_numpy(tree["posterior/z"].values[0])
    context, future = windows[:]
    with torch.no_grad():
        loc, raw = plain.net(torch.cat([context[:, 0], future], -1)).chunk(2, -1)
        ratio = (dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(2 * loc, 2 * raw.exp()).log_prob(z)).sum(-1)
    found = tree["sample_stats/log_weight"][0] - tree["log_likelihood/y"][0]
    np.testing.assert_allclose(found, ratio, atol=1e-4)


def test_densities_are_masked_but_never_scaled(windows):
    plain, groups = Plain(), ("log_likelihood", "sample_stats")
    programs = (plain.model, poutine.scale(plain.model, 3.0), poutine.mask(plain.model, torch.tensor(False)))
    usual, scaled, masked = (to_datatree(each, plain.guide, windows, groups=groups, num_draws=4) for each in programs)
    assert scaled["log_likelihood"].equals(usual["log_likelihood"])
    assert scaled["sample_stats/log_weight"].equals(usual["sample_stats/log_weight"])
    assert not masked["log_likelihood/y"].any()


def test_data_alone_are_not_drawn(windows):
    model = make_model()
    tree = to_datatree(model, FutureAware(model), windows, groups=("observed_data", "constant_data"))
    assert list(tree.children) == ["observed_data", "constant_data"]


def test_windows_and_programs_that_will_not_do_are_refused(windows):
    model = make_model()
    guide = FutureAware(model)
    with pytest.raises(ValueError, match="there are no windows"):
        to_datatree(model, guide, windows.select([]))
    with pytest.raises(ValueError, match=r"no future, which the group 'posterior' needs: choose among .*'predictions'"):
        to_datatree(model, guide, replace(windows, known=False))
    plain = Plain()
    with pytest.raises(ValueError, match="the guide, given the future, does not sample the model's site 'z'"):
        to_datatree(plain.model, lambda context, future=None: None, windows)
    blind = Plain(observe=lambda future: None)
    with pytest.raises(ValueError, match="does not observe the future"):
        to_datatree(blind.model, blind.guide, windows)
    with pytest.raises(ValueError, match="the model's site 'w' stands outside the windows plate at dim -2"):
        to_datatree(latent(dist.Normal(0.0, 1.0)), plain.guide, windows)
