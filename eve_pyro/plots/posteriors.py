"""Posteriors of units, from the trees that ``to_datatree`` makes.

Of several sites the one whose axis is ``unit`` is drawn, unless another ``site`` is named, "eve2.z"; where each has an
axis of its own, one has to be. Of a unit with several steps or latent dimensions their mean is drawn. Units are
measured on the axis of their prior.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eve_pyro.plots.style import BLUE, GREY, INK, ORANGE, grid, heat, legend_below, plain

if TYPE_CHECKING:
    from xarray import DataTree

ENDS = (0.05, 0.95)
GRID = 200  # places at which a density is drawn
FAR = 3.0  # where the colours of a heat map end
FEW = 8  # panels in which units are told apart
NAMED = 24  # rows of a heat map that have room for names


def unit_forest(tree: "DataTree", site: str | None = None, window: int | None = None, most: int = 24) -> Figure:
    """Draw a row a unit: posterior mean and 90 % interval for one ``window``, or their averages over all windows, and
    then also how far the means of the windows lie apart.

    Behind each stands the interval of its prior, if the tree has the group. Of more than ``most`` units those are
    shown whose intervals differ most from the prior's or, without one, lie farthest from 0.
    """
    posterior = _draws(tree, "posterior", site, window)
    prior = _draws(tree, "prior", site, window) if "prior" in tree.children else None
    ends, around = posterior.ends, prior.ends if prior else np.zeros((2, 1, 1))
    apart = np.abs(ends - around).mean((0, 1))
    chosen = np.argsort(-apart)[:most]
    figure, (ax,) = grid(1, 1, height=0.6 + 0.2 * len(chosen))
    places = np.arange(len(chosen))[::-1]
    if prior:
        ax.hlines(places, *around[:, :, chosen].mean(1), color=GREY, alpha=0.35, lw=7, label="prior, 90 %")
    ax.hlines(places, *ends[:, :, chosen].mean(1), color=BLUE, lw=1.6, label="posterior, 90 %")
    ax.plot(posterior.mean.mean(0)[chosen], places, "o", color=BLUE, ms=4.5, label="posterior mean")
    if window is None:
        means = np.quantile(posterior.mean[:, chosen], ENDS, axis=0)
        ax.plot(means.T, places, "|", color=ORANGE, ms=8, mew=1.4, label=["means of 90 % of the windows", None])
    ax.axvline(0, color=GREY, lw=0.6)
    ax.set_yticks(places, [posterior.units[unit] for unit in chosen])
    ax.set(xlabel=f"z, {posterior.where(window)}", ylim=(-0.8, len(chosen) - 0.2))
    if len(chosen) < len(posterior.units):
        ax.set_title(f"{len(chosen)} of {len(posterior.units)} units, farthest from the prior first", fontsize=9)
    legend_below(figure, *ax.get_legend_handles_labels())
    return figure


def unit_trace(tree: "DataTree", units: Sequence[str] | None = None, site: str | None = None) -> Figure:
    """Draw how units move along the windows: the posterior mean with its 90 % interval, a panel each, for the ``units``
    named; a heat map of the means without. Upright lines part the series.
    """
    posterior = _draws(tree, "posterior", site, None)
    places = pd.Index(posterior.windows)
    if units is None:
        figure, (ax,) = grid(1, 1, height=3.4)
        means = pd.DataFrame(posterior.mean.T, columns=places)
        reach = min(max(float(np.abs(posterior.mean).max()), 1e-6), FAR)
        heat(figure, ax, means, "posterior mean of z", "RdBu_r", (-reach, reach))
        if len(posterior.units) > NAMED:
            ax.set_ylabel("unit, in the tree's order")
        else:
            ax.set_yticks(range(len(posterior.units)), posterior.units)
    else:
        chosen = posterior.positions(units)
        figure, axes = grid(len(chosen), 1, height=1.25)
        low, high = posterior.ends
        for ax, unit in zip(axes, chosen, strict=True):
            ax.axhline(0, color=GREY, lw=0.6)
            ax.fill_between(places, low[:, unit], high[:, unit], color=BLUE, alpha=0.2, lw=0, step="mid")
            ax.plot(places, posterior.mean[:, unit], color=BLUE, lw=1.1, drawstyle="steps-mid")
            ax.set_ylabel(posterior.units[unit])
            ax.tick_params(labelbottom=unit == chosen[-1])
    _part_series(figure, tree)
    figure.axes[len(units or [0]) - 1].set_xlabel("window, each series in order of time")
    return figure


def prior_posterior(
    tree: "DataTree", units: Sequence[str] | None = None, site: str | None = None, window: int | None = None
) -> Figure:
    """Draw densities of the posterior's draws over the prior's, a panel a unit: of one ``window``, or of all together.

    Together, the posteriors of a model that fits its data mix to the prior. Without ``units`` those whose posteriors
    are narrowest beside their prior are shown. Raises ValueError for a tree without the group ``prior``.
    """
    if "prior" not in tree.children:
        raise ValueError("the tree has no prior to draw: ask to_datatree for the groups 'prior' and 'posterior'")
    posterior, prior = (_draws(tree, group, site, window) for group in ("posterior", "prior"))
    if units is None:
        narrow = posterior.values.std(0).mean(0) / prior.values.std(0).mean(0)
        chosen = np.argsort(narrow)[:FEW].tolist()
    else:
        chosen = posterior.positions(units)
    figure, axes = grid(len(chosen), min(len(chosen), 4), height=1.7)
    for ax, unit in zip(axes, chosen, strict=True):
        for each, colour, label in ((prior, GREY, "prior"), (posterior, BLUE, "posterior")):
            places, density = _density(each.values[:, :, unit].ravel())
            ax.plot(places, density, color=colour, lw=1.4, label=label)
            ax.fill_between(places, density, color=colour, alpha=0.2, lw=0)
        ax.set_title(posterior.units[unit], fontsize=9)
        ax.set(ylim=(0, None), yticks=[])
        ax.spines["left"].set_visible(False)
    for ax in axes[-min(len(chosen), 4) :]:
        ax.set_xlabel(f"z, {'all windows' if window is None else posterior.where(window)}")
    legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure


class _Draws(NamedTuple):
    """Draws of one site, ``values`` (S, B, N), with the labels of windows and units."""

    values: np.ndarray
    windows: np.ndarray
    units: list[str]

    @property
    def mean(self) -> np.ndarray:
        """The mean over draws, (B, N)."""
        mean: np.ndarray = self.values.mean(0)
        return mean

    @property
    def ends(self) -> np.ndarray:
        """The ends of the central 90 % intervals, (2, B, N)."""
        return np.quantile(self.values, ENDS, axis=0)

    def where(self, window: int | None) -> str:
        """Say in words which windows these are."""
        return f"averages over {len(self.windows)} windows" if window is None else f"window {window}"

    def positions(self, units: Sequence[str]) -> list[int]:
        """Return where the units of these names are; ValueError for one that is not there."""
        unknown = [unit for unit in units if unit not in self.units]
        if unknown:
            raise ValueError(f"the tree has no unit {unknown[0]!r}; it has {self.units[0]} to {self.units[-1]}")
        return [self.units.index(unit) for unit in units]


def _draws(tree: "DataTree", group: str, site: str | None, window: int | None) -> _Draws:
    if group not in tree.children:
        raise ValueError(f"the tree has no group {group!r}: name it in to_datatree(..., groups=...)")
    sites = [str(name) for name in tree[group].data_vars]
    main = [name for name in sites if "unit" in tree[group][name].dims] if len(sites) > 1 else sites
    if site is None and len(main) != 1:
        raise ValueError(f"the tree has several sites: name one with site=, of {', '.join(sites)}")
    name = site or main[0]
    if name not in sites:
        raise ValueError(f"the tree has no site {name!r}; its sites are {', '.join(sites)}")
    found = tree[group].to_dataset()[name]
    if window is not None and window not in found["window"]:
        raise ValueError(f"the tree has no window {window}; it has {found.sizes['window']} of them")
    found = found if window is None else found.sel(window=[window])
    unit = next(str(dim) for dim in found.dims if str(dim).endswith("unit"))
    wanted = ("chain", "draw", "window", unit)
    values = found.mean([dim for dim in found.dims if dim not in wanted]).transpose(*wanted).to_numpy()
    return _Draws(
        values.reshape(-1, *values.shape[2:]), found["window"].to_numpy(), [str(u) for u in found[unit].values]
    )


def _part_series(figure: Figure, tree: "DataTree") -> None:
    """Draw a line where one series ends and the next begins, and name them above the first panel."""
    posterior = tree["posterior"].to_dataset()
    if "series" not in posterior.coords or len(set(posterior["series"].to_numpy())) == 1:
        return
    series, places = posterior["series"].to_numpy(), posterior["window"].to_numpy().astype(float)
    starts = np.flatnonzero(np.append(True, series[1:] != series[:-1]))
    panels: list[Axes] = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    for ax in panels:
        for start in starts[1:]:
            ax.axvline((places[start - 1] + places[start]) / 2, color=INK, lw=0.6, ls=":")
    for start, end in zip(starts, np.append(starts[1:], len(series)), strict=True):
        middle = (places[start] + places[end - 1]) / 2
        name, place = plain(str(series[start])), panels[0].get_xaxis_transform()
        panels[0].text(middle, 1.02, name, transform=place, ha="center", va="bottom", fontsize=9)


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel estimate over the range of ``values``; of a point, a spike."""
    from scipy.stats import gaussian_kde  # adds filters to everybody's warnings: not on import

    spread = float(values.std())
    if spread < 1e-6:
        return values[:1].repeat(2), np.array([0.0, 1.0])
    places = np.linspace(values.min() - spread / 2, values.max() + spread / 2, GRID)
    density: np.ndarray = gaussian_kde(values)(places)
    return places, density
