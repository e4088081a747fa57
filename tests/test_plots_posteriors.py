"""Pictures of posteriors show the draws of the tree they are given."""

import numpy as np
import pytest
import xarray as xr

from eve_pyro import plots

DRAWS, WINDOWS, UNITS = 400, 6, 4
NAMES = [f"eve[{unit}]" for unit in range(UNITS)]


def make_tree(groups=("posterior", "prior"), site="eve.z", event=()):
    """Units whose posteriors are narrower the higher their number, and move with the window; two series."""
    rng = np.random.default_rng(0)
    shape = 2, DRAWS // 2, WINDOWS, UNITS, *event
    dims = ["chain", "draw", "window", "unit", *[f"event_{axis}" for axis in range(len(event))]]
    scale = np.array([1.0, 0.8, 0.5, 0.2]).reshape(-1, *[1] * len(event))
    shift = np.linspace(-1, 1, WINDOWS).reshape(-1, 1, *[1] * len(event)) * (1 - scale)
    coords = {"window": range(WINDOWS), "unit": NAMES, "series": ("window", ["a$"] * 4 + ["b$"] * 2)}
    values = {"posterior": shift + scale * rng.standard_normal(shape), "prior": rng.standard_normal(shape)}
    return xr.DataTree.from_dict({g: xr.Dataset({site: (dims, values[g])}, coords) for g in groups})


def draws(tree, group="posterior"):
    return tree[group]["eve.z"].values.reshape(DRAWS, WINDOWS, UNITS)


def segments(collection):
    return np.array([segment[:, 0] for segment in collection.get_segments()])


def test_a_forest_of_one_window():
    tree = make_tree()
    ax = plots.unit_forest(tree, window=5).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert sorted(names) == NAMES
    assert names[0] == "eve[3]"  # what differs most from its prior stands on top
    order = [NAMES.index(name) for name in names]
    prior, posterior = ax.collections
    expected = np.quantile(draws(tree)[:, 5], (0.05, 0.95), axis=0).T[order]
    np.testing.assert_allclose(segments(posterior), expected)
    np.testing.assert_allclose(segments(prior), np.quantile(draws(tree, "prior")[:, 5], (0.05, 0.95), axis=0).T[order])
    dots = next(line for line in ax.get_lines() if line.get_label() == "posterior mean")
    np.testing.assert_allclose(dots.get_xdata(), draws(tree)[:, 5].mean(0)[order])
    np.testing.assert_allclose(dots.get_ydata(), [3, 2, 1, 0])
    assert ax.get_xlabel() == "z, window 5"


def test_a_forest_of_all_windows_shows_how_far_their_means_lie_apart():
    tree = make_tree()
    ax = plots.unit_forest(tree, most=2).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["eve[3]", "eve[2]"]
    assert ax.get_title() == "2 of 4 units, farthest from the prior first"
    means = draws(tree).mean(0)
    ticks = [line.get_xdata() for line in ax.get_lines() if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks, np.quantile(means[:, [3, 2]], (0.05, 0.95), axis=0))
    low, high = segments(ax.collections[1])[0]
    np.testing.assert_allclose([low, high], np.quantile(draws(tree)[..., 3], (0.05, 0.95), axis=0).mean(1))
    alone = plots.unit_forest(make_tree(["posterior"])).axes[0]
    assert len(alone.collections) == 1


def test_steps_and_latents_of_a_unit_are_averaged():
    tree = make_tree(event=(3, 2))
    ax = plots.unit_forest(tree, window=0).axes[0]
    order = [NAMES.index(text.get_text()) for text in ax.get_yticklabels()]
    means = tree["posterior"]["eve.z"].values.mean((0, 1, 4, 5))[0]
    dots = next(line for line in ax.get_lines() if line.get_label() == "posterior mean")
    np.testing.assert_allclose(dots.get_xdata(), means[order])


def test_a_trace_draws_named_units_along_the_windows():
    tree = make_tree()
    figure = plots.unit_trace(tree, ["eve[3]", "eve[0]"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["eve[3]", "eve[0]"]
    first = figure.axes[0]
    mean = next(line for line in first.get_lines() if len(line.get_xdata()) == WINDOWS)
    np.testing.assert_allclose(mean.get_ydata(), draws(tree)[..., 3].mean(0))
    parting = [line.get_xdata() for line in first.get_lines() if line.get_linestyle() == ":"]
    assert parting == [[3.5, 3.5]]
    assert [(text.get_text(), text.get_position()[0]) for text in first.texts] == [(r"a\$", 1.5), (r"b\$", 4.5)]


def test_a_trace_of_all_units_is_a_heat_map():
    tree = make_tree()
    ax = plots.unit_trace(tree).axes[0]
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), draws(tree).mean(0).T)
    assert mesh.get_clim()[0] == -mesh.get_clim()[1]
    assert [text.get_text() for text in ax.get_yticklabels()] == NAMES
    some = plots.unit_trace(tree.sel(unit=["eve[3]", "eve[1]"])).axes[0]
    assert [text.get_text() for text in some.get_yticklabels()] == ["eve[3]", "eve[1]"]


def test_prior_and_posterior_are_densities_and_the_narrowest_come_first():
    tree = make_tree()
    figure = plots.prior_posterior(tree, window=2)
    assert [ax.get_title() for ax in figure.axes] == ["eve[3]", "eve[2]", "eve[1]", "eve[0]"]
    for ax, unit in zip(figure.axes, (3, 2, 1, 0), strict=True):
        for line in ax.get_lines():
            places, density = line.get_data()
            total = np.trapezoid(density, places)
            assert total == pytest.approx(1, abs=0.03)
            values = draws(tree, line.get_label())[:, 2, unit]
            assert np.trapezoid(places * density, places) / total == pytest.approx(values.mean(), abs=0.03)
    pooled = plots.prior_posterior(tree, ["eve[3]"]).axes[0]
    places, density = pooled.get_lines()[1].get_data()
    spread = np.sqrt(np.trapezoid(places**2 * density, places))
    assert spread == pytest.approx(draws(tree)[..., 3].std(), rel=0.15)


def test_a_point_is_a_spike():
    tree = make_tree()
    tree["posterior"]["eve.z"].values[..., 1] = 0.5
    places, density = plots.prior_posterior(tree, ["eve[1]"], window=0).axes[0].get_lines()[1].get_data()
    assert (list(places), density.max()) == ([0.5, 0.5], 1)


BAD = [
    (lambda: plots.unit_forest(make_tree(), site="eve2.z"), "no site 'eve2.z'; its sites are eve.z"),
    (lambda: plots.unit_forest(make_tree(), window=9), "no window 9; it has 6"),
    (lambda: plots.unit_trace(make_tree(), ["eve[9]"]), r"no unit 'eve\[9\]'; it has eve\[0\] to eve\[3\]"),
    (lambda: plots.prior_posterior(make_tree(["posterior"])), "no prior to draw"),
    (lambda: plots.unit_forest(make_tree(["prior"])), "no group 'posterior'"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_what_a_tree_does_not_hold_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_of_several_sites_one_is_named():
    tree = make_tree()
    tree["posterior"] = tree["posterior"].to_dataset().assign(other=tree["posterior"]["eve.z"] + 1)
    with pytest.raises(ValueError, match=r"several sites: name one with site=, of eve\.z, other"):
        plots.unit_trace(tree)
    assert plots.unit_trace(tree, ["eve[0]"], site="other").axes[0].get_lines()[1].get_ydata()[0] > 0
