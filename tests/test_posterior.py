"""Draws as a DataTree: against a linear-Gaussian model whose posterior is known, and against ArviZ."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import CONTEXT, HORIZON, UNITS, make_model, make_panel, shaken
from pyro import poutine
from torch.distributions import MultivariateNormal, Normal

from eve_pyro import datatree_size, to_datatree
from eve_pyro.data import make_windows
from eve_pyro.guides import Conjugate, PointGuide
from eve_pyro.infer.units import unit_table
from eve_pyro.posterior.layout import plan
from eve_pyro.posterior.request import Request
from eve_pyro.posterior.sampling import GROUPS, Pair

DRAWS = 2000


def make_test_windows(stride=25, **options):
    windows = make_windows(make_panel(), CONTEXT, HORIZON, **options).test.every(stride)
    return replace(windows, flat=windows.flat.double())


def conjugate(size=0.1, **options):
    model = shaken(make_model(**options), size).double()
    return model, Conjugate(model)


class Exact:
    """The posterior of a pair whose y is linear in z, from the model's own program: one run a unit."""

    def __init__(self, model, windows):
        context, self.future = windows[:]

        def run(z):
            value = z.expand(len(context), UNITS)[..., None, None]
            fn = poutine.trace(poutine.condition(model.eval(), {"eve.z": value})).get_trace(context).nodes["y"]["fn"]
            return fn.mean[:, 0], fn.variance[:, 0]

        with torch.no_grad():
            self.start, self.noise = run(torch.zeros(UNITS).double())  # (B, H)
            reads = [run(unit)[0] - self.start for unit in torch.eye(UNITS).double()]
        self.loadings = torch.stack(reads, -1)  # (B, H, N)
        weighted = self.loadings.mT / self.noise[:, None]
        self.covariance = torch.linalg.inv(torch.eye(UNITS).double() + weighted @ self.loadings)
        self.mean = (self.covariance @ weighted @ (self.future - self.start)[..., None])[..., 0]
        self.spread = self.loadings @ self.loadings.mT + torch.diag_embed(self.noise)
        self.evidence = MultivariateNormal(self.start, self.spread).log_prob(self.future)
        prior = MultivariateNormal(torch.zeros(UNITS).double(), torch.eye(UNITS).double())
        self.kl = torch.distributions.kl_divergence(MultivariateNormal(self.mean, self.covariance), prior)

    def log_likelihood(self, z):
        loc = self.start + (self.loadings @ z[..., None])[..., 0]
        return Normal(loc, self.noise.sqrt()).log_prob(self.future).sum(-1)


@pytest.fixture(scope="module")
def known():
    """A pair, its windows, what is known of it, and its tree."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (model, guide), windows = conjugate(), make_test_windows()
    return model, guide, windows, Exact(model, windows), to_datatree(model, guide, windows, num_draws=DRAWS, beta=0.5)


def within(draws, mean, variance, errors=5.0):
    """Mean and variance of draws (S, ...) are within so many standard errors of what they should be."""
    draws = torch.from_numpy(draws.astype(np.float64))
    assert ((draws.mean(0) - mean).abs() < errors * (variance / len(draws)).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < errors * (2 / len(draws)) ** 0.5).all()


def test_draws_have_the_exact_moments(known):
    *_, exact, tree = known
    shape = exact.mean.shape
    within(tree["posterior/eve.z"].values[0], exact.mean, exact.covariance.diagonal(dim1=-2, dim2=-1))
    within(tree["prior/eve.z"].values[0], torch.zeros(shape), torch.ones(shape))
    marginal = exact.spread.diagonal(dim1=-2, dim2=-1)
    within(tree["predictions/y"].values[0], exact.start, marginal)
    within(tree["prior_predictive/y"].values[0], exact.start, marginal)
    rebuilt = exact.start + (exact.loadings @ exact.mean[..., None])[..., 0]
    noise = exact.noise + (exact.loadings @ exact.covariance @ exact.loadings.mT).diagonal(dim1=-2, dim2=-1)
    within(tree["posterior_predictive/y"].values[0], rebuilt, noise)


def test_densities_and_kl_are_exact(known):
    model, guide, windows, exact, tree = known
    stats = tree["sample_stats"]
    weights = torch.from_numpy(stats["log_weight"].values[0])
    torch.testing.assert_close(weights, exact.evidence.expand_as(weights))  # the exact posterior weighs all alike
    torch.testing.assert_close(torch.from_numpy(stats["kl"].values[0].sum(-1)), exact.kl)
    torch.testing.assert_close(torch.from_numpy(stats["energy"].values[0]), exact.mean.square().mean(0))
    np.testing.assert_allclose(stats["kl"].mean("window")[0], unit_table(model, guide, windows)["kl"])
    np.testing.assert_array_equal(stats["beta"], np.full(UNITS, 0.5))
    z = torch.from_numpy(tree["posterior/eve.z"].values[0]).double()
    found = torch.from_numpy(tree["log_likelihood/y"].values[0])
    torch.testing.assert_close(found, exact.log_likelihood(z), rtol=1e-4, atol=1e-4)  # z was stored as float32


def test_axes_and_coordinates(known):
    _, _, windows, _, tree = known
    dims = ("chain", "draw", "window")
    assert set(tree.children) == set(GROUPS)
    assert tree["posterior/eve.z"].dims == tree["prior/eve.z"].dims == (*dims, "unit")
    for group in ("posterior_predictive", "prior_predictive", "predictions"):
        assert tree[group]["y"].dims == (*dims, "horizon")
        assert tree[group]["y"].dtype == np.float32
    stats = tree["sample_stats"]
    assert [stats[name].dims for name in ("log_weight", "kl", "energy", "beta")] == [
        dims,
        ("chain", "window", "unit"),
        ("chain", "unit"),
        ("unit",),
    ]
    posterior = tree["posterior"]
    assert posterior["unit"].values.tolist() == [f"eve[{i}]" for i in range(UNITS)]
    assert posterior["series"].values.tolist() == [windows.panel.names[i] for i in windows.series]
    np.testing.assert_array_equal(posterior["origin"], windows.origins().to_numpy())
    assert tree["predictions/horizon"].values.tolist() == list(range(1, HORIZON + 1))
    assert tree["constant_data/past"].values.tolist() == list(range(1 - CONTEXT, 1))
    constant, y = tree["constant_data"], tree["observed_data/y"]
    mean, deviation = windows.scale()
    np.testing.assert_allclose(y, windows[:].future, rtol=1e-6)
    np.testing.assert_allclose(constant["mean"] + constant["deviation"] * y, mean + deviation * windows[:].future, 1e-5)
    np.testing.assert_allclose(constant["context"], windows[:].context[:, 0], rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_file_holds_what_memory_would(known, tmp_path, suffix):
    model, guide, windows, *_ = known
    options = {"num_draws": 70, "batch_size": 2, "memory": 2**19, "beta": torch.arange(UNITS) / 2, "seed": 3}
    pairs = [Pair(model, guide)]
    small = Request(pairs, windows, GROUPS, num_draws=70, batch_size=2, workspace=2**18)
    assert plan(small).chunk[0] < len(windows)
    assert plan(small).chunk[1] < 70
    inside = to_datatree(model, guide, windows, **options)
    with to_datatree(model, guide, windows, out=tmp_path / f"draws{suffix}", **options) as outside:
        xr.testing.assert_equal(inside, outside)  # names of coordinates and axes included
        assert all(outside[group].attrs["seed"] == 3 for group in GROUPS)
    assert [path.name for path in tmp_path.iterdir()] == [f"draws{suffix}"]
    whole = to_datatree(model, guide, windows, num_draws=70, seed=3)["sample_stats"]
    for name in ("kl", "energy"):
        np.testing.assert_allclose(inside["sample_stats"][name], whole[name], rtol=1e-6)  # averaged over all batches


def test_restarts_are_chains_with_noise_of_their_own(known):
    model, guide, windows, *_ = known
    other = conjugate()
    tree = to_datatree(model, guide, windows, restarts=[(model, guide), other], num_draws=20)
    xr.testing.assert_equal(
        tree["posterior"].sel(chain=[0]), to_datatree(model, guide, windows, num_draws=20)["posterior"]
    )
    z = tree["posterior/eve.z"]
    assert z.sizes["chain"] == 3
    assert not np.isclose(z[0], z[1]).any()
    alone = to_datatree(*other, windows, num_draws=20)
    np.testing.assert_allclose(tree["sample_stats/kl"][2], alone["sample_stats/kl"][0])
    with pytest.raises(ValueError, match=r"restarts\[0\] has other sites, units or kinds of posteriors"):
        to_datatree(model, guide, windows, restarts=[(model, PointGuide(model).double())])


@pytest.mark.parametrize("units", [["eve[3]", "eve[0]"], [3, 0]])
def test_chosen_units_are_a_slice(known, units):
    model, guide, windows, *_ = known
    groups = ("posterior", "prior", "sample_stats")
    whole = to_datatree(model, guide, windows, groups=groups, num_draws=10, beta=torch.arange(UNITS))
    part = to_datatree(model, guide, windows, groups=groups, num_draws=10, beta=torch.arange(UNITS), units=units)
    xr.testing.assert_equal(part, whole.isel(unit=[3, 0]))


def test_the_size_is_told_before_anything_is_drawn(known, capsys):
    model, guide, windows, _, tree = known
    size = datatree_size(model, guide, windows, num_draws=DRAWS)
    stored = sum(each.nbytes for group in tree.children.values() for each in group.data_vars.values())
    assert size == stored - tree["sample_stats/beta"].nbytes
    with pytest.raises(
        ValueError, match=r"the tree takes 5.*e\+08 GiB, more than the 0.5 GiB of memory: ask for fewer draws"
    ):
        to_datatree(model, guide, windows, num_draws=10**15, memory=2**29)
    to_datatree(model, guide, windows, num_draws=2, progress=True)
    assert re.match(r"\S+ GiB of draws, to memory", capsys.readouterr().out)


REFUSED = {
    "no group": ({"groups": ()}, "no group is asked for: choose among posterior, "),
    "group": ({"groups": ("posterior", "priors")}, "there is no group 'priors': choose among posterior, "),
    "draws": ({"num_draws": 0}, "must be at least 1, not 0"),
    "site": ({"sites": ["z"]}, "there is no site 'z': choose among 'eve.z'"),
    "no units": ({"units": []}, "no unit is asked for: choose among 'eve\\[0\\]'"),
    "unit": ({"units": ["eve[9]"]}, r"there is no unit 'eve\[9\]': choose among 'eve\[0\]', .*, \.\.\."),
    "number": ({"units": [UNITS]}, "there is no unit 5"),
    "twice": ({"units": [1, "eve[1]"]}, "named twice"),
    "beta": ({"beta": torch.ones(3)}, "beta for site 'eve.z' is a number or 5 values"),
    "suffix": ({"out": "draws.csv"}, "neither .nc .NetCDF. nor .zarr"),
    "folder": ({"out": "nowhere/draws.nc"}, "there is no folder nowhere"),
    "exists": ({"out": "here.nc"}, "here.nc exists"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused(known, case, tmp_path, monkeypatch):
    model, guide, windows, *_ = known
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.nc").touch()
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        to_datatree(model, guide, windows, **options)


def test_an_interrupted_write_leaves_nothing(known, tmp_path):
    model, guide, windows, *_ = known
    calls = []

    def stopping(*args):
        calls.append(args)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return guide(*args)

    for name in ("draws.nc", "draws.zarr"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            to_datatree(model, stopping, windows, batch_size=1, out=tmp_path / name)
        assert len(calls) > 6
    assert not list(tmp_path.iterdir())


def test_modes_and_random_state_stay(known):
    _, _, windows, *_ = known
    model = make_model().double().train()
    before = torch.get_rng_state()
    to_datatree(model, Conjugate(model), windows, num_draws=2)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
