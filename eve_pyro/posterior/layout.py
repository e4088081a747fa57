"""What a tree will hold: its variables, their axes and their coordinates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from eve_pyro.data import Windows
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.programs import evaluating
from eve_pyro.posterior.request import Request, probe
from eve_pyro.posterior.sampling import (
    CONSTANT_DATA,
    OBSERVED_DATA,
    Key,
    Named,
    Pair,
    Values,
    layer_of,
    prefixes,
    unit_counts,
)
from eve_pyro.protocols import OBSERVED

DENSITIES = ("log_likelihood", "sample_stats")
SHOWN = 4  # names in a message


class Variable(NamedTuple):
    """An array to be filled: draws and data are float32, densities and KLs float64."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """The size of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The arrays of a tree by group and name, the sizes of all axes and the coordinates of those not just numbered, how
    many units each site has, the positions of the chosen ones by their axis, and how many windows and draws are drawn
    at once.
    """

    variables: Mapping[Key, Variable]
    sizes: Mapping[str, int]
    coords: Mapping[str, tuple[str, np.ndarray]]
    counts: Mapping[str, int]
    kept: Mapping[str, list[int]]
    chunk: tuple[int, int]

    @property
    def bytes(self) -> int:
        """The size of all arrays."""
        return sum(variable.bytes for variable in self.variables.values())

    @property
    def groups(self) -> list[str]:
        """The groups, in order."""
        return list(dict.fromkeys(group for group, _ in self.variables))

    def coords_of(self, group: str) -> dict[str, tuple[str, np.ndarray]]:
        """Return the coordinates along the axes of a group; an axis without any is numbered."""
        dims = {dim for (owner, _), variable in self.variables.items() if owner == group for dim in variable.dims}
        numbers = {dim: (dim, np.arange(size)) for dim, size in self.sizes.items() if dim in dims}
        return numbers | {name: coord for name, coord in self.coords.items() if coord[0] in dims}

    def chosen(self, named: Named) -> np.ndarray:
        """Return the values of the chosen units."""
        values = named.values.detach().cpu().numpy()
        for axis, dim in enumerate(named.dims):
            if dim in self.kept and self.kept[dim] != list(range(values.shape[axis])):
                values = values.take(self.kept[dim], axis)
        return values


def plan(request: Request) -> Layout:
    """Draw for two windows from every pair and return what the tree will hold; ValueError for what cannot be had."""
    probes = [_probe(request, pair) for pair in request.pairs]
    counts, values, _ = probes[0]
    for number, other in enumerate(probes[1:]):
        if other[0] != counts or _shapes(other[1]) != _shapes(values):
            raise ValueError(f"restarts[{number}] has other sites, units or kinds of posteriors than the first pair")
    labels = unit_labels(counts)
    kept = choose(request, counts)
    sizes = {"chain": len(probes), "draw": request.num_draws, "window": len(request.windows)}
    sizes |= {dim: len(positions) for dim, positions in kept.items()}

    variables: dict[Key, Variable] = {}
    drawn = {key: Named(("chain", *named.dims), named.values[None]) for key, named in values.items()}
    for key, named in (drawn | window_values(request, slice(0, 1)) | betas(request, counts)).items():
        if all(dim in kept for dim in named.dims if dim in labels):
            own = dict(zip(named.dims, named.values.shape, strict=True)) | sizes
            sizes |= {dim: own[dim] for dim in named.dims}
            shape = tuple(sizes[dim] for dim in named.dims)
            variables[key] = Variable(named.dims, shape, "float64" if key[0] in DENSITIES else "float32")
    coords = {dim: (dim, np.array(labels[dim])[positions]) for dim, positions in kept.items()}
    coords |= _time_coords(request, sizes)
    chunk = min(windows for *_, (windows, _) in probes), min(draws for *_, (_, draws) in probes)
    return Layout(variables, sizes, coords, counts, kept, chunk)


def _probe(request: Request, pair: Pair) -> tuple[dict[str, int], Values, tuple[int, int]]:
    with evaluating(pair.model, pair.guide, request.seed):
        return unit_counts(pair, request.batch(slice(0, 1), pair).context), *probe(request, pair)


def _shapes(values: Values) -> dict[Key, Any]:
    return {key: (named.dims, named.values.shape) for key, named in values.items()}


def unit_labels(counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the names of all units, ``<layer>[i]``, by the axis of their site."""
    return {
        f"{start}unit": [f"{layer_of(site)}[{unit}]" for unit in range(counts[site])]
        for site, start in prefixes(counts).items()
    }


def choose(request: Request, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the positions of the chosen units, by the axis of their site; sites without any are left out.

    Raises ValueError for sites and units that are not there, and for a unit named twice.
    """
    sites = list(counts) if request.sites is None else request.sites
    _check_known("site", sites, counts)
    axis_of = dict(zip(counts, unit_labels(counts).items(), strict=True))
    labels = dict(axis_of[site] for site in sites)
    if request.units is None:
        return {axis: list(range(len(names))) for axis, names in labels.items()}
    known: dict[str | int, tuple[str, int]] = {
        name: (axis, unit) for axis, names in labels.items() for unit, name in enumerate(names)
    }
    if len(labels) == 1:  # of one site, numbers will do
        known |= dict(enumerate(known.values()))
    _check_known("unit", request.units, known)
    places = [known[unit] for unit in request.units]
    if len(set(places)) < len(places):
        raise ValueError("a unit is named twice in units: name each once")
    return {axis: chosen for axis in labels if (chosen := [unit for owner, unit in places if owner == axis])}


def _check_known(kind: str, asked: Sequence[Any], known: Mapping[Any, Any]) -> None:
    names = ", ".join(map(repr, list(known)[:SHOWN])) + (", ..." if len(known) > SHOWN else "")
    if not asked:
        raise ValueError(f"no {kind} is asked for: choose among {names}")
    for name in asked:
        if name not in known:
            raise ValueError(f"there is no {kind} {name!r}: choose among {names}")


def window_values(request: Request, place: slice) -> Values:
    """Return the data of some windows, in the scale of the training rows, and what undoes the scale."""
    windows, values = request.windows, Values()
    batch = windows[place]
    if OBSERVED_DATA in request.groups:
        values[OBSERVED_DATA, OBSERVED] = Named(("window", "horizon"), batch.future)
    if CONSTANT_DATA in request.groups:
        last = "past" if isinstance(windows, Windows) else "feature"
        path = batch.context.shape[1] > 1
        context = batch.context if path else batch.context[:, 0]
        values[CONSTANT_DATA, "context"] = Named(("window", *(["path"] if path else []), last), context)
        if isinstance(windows, Windows):
            scale = windows.select(range(place.start, place.stop)).scale()
            for name, column in zip(("mean", "deviation"), scale, strict=True):
                values[CONSTANT_DATA, name] = Named(("window",), column[:, 0])
    return values


def betas(request: Request, counts: Mapping[str, int]) -> Values:
    """Return the beta of every unit."""
    if request.beta is None or "sample_stats" not in request.groups:
        return {}
    elbo = LocalELBO(beta=request.beta)
    return {
        ("sample_stats", f"{start}beta"): Named(
            (f"{start}unit",),
            elbo.beta_of(site, torch.zeros(1, counts[site], dtype=torch.float64)).expand(counts[site]),
        )
        for site, start in prefixes(counts).items()
    }


def _time_coords(request: Request, sizes: Mapping[str, int]) -> dict[str, tuple[str, np.ndarray]]:
    coords = {}
    if "horizon" in sizes:
        coords["horizon"] = ("horizon", np.arange(1, sizes["horizon"] + 1))
    if "past" in sizes:
        coords["past"] = ("past", np.arange(1 - sizes["past"], 1))
    windows = request.windows
    if isinstance(windows, Windows):
        coords["series"] = ("window", np.array(windows.panel.names)[windows.series.numpy()])
        coords["origin"] = ("window", _origins(windows))
    return coords


def _origins(windows: Windows) -> np.ndarray:
    """Return the last timestamp that every window's forecast sees; times with a zone in UTC, as files know none."""
    origins: Any = windows.origins()
    zoned = isinstance(origins, pd.DatetimeIndex) and origins.tz is not None
    return (origins.tz_convert(None) if zoned else origins).to_numpy()
