"""Drawing batch by batch, and putting what was drawn where it belongs."""

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from eve_pyro.infer.programs import evaluating
from eve_pyro.posterior.layout import Layout, betas, window_values
from eve_pyro.posterior.request import Request
from eve_pyro.posterior.sampling import FAMILIES, Key, Values

Arrays = Mapping[Key, Any]  # of whatever takes ``array[index] = values``


class Place(NamedTuple):
    """A chain, some windows and some draws."""

    chain: int
    window: slice
    draw: slice


def fill(request: Request, layout: Layout, arrays: Arrays, progress: bool = False) -> None:
    """Draw from every pair, for all windows, and put everything into ``arrays``."""
    windows, draws = map(_slices, (len(request.windows), request.num_draws), layout.chunk)
    writer = Writer(layout, arrays)
    places = [Place(*place) for place in product(range(len(request.pairs)), windows, draws)]
    writer.put(betas(request, layout.counts), places[0])
    for place in track(places, "drawing", disable=not progress, transient=True):
        if place.chain == place.draw.start == 0:
            writer.put(window_values(request, place.window), place)
        pair = request.pairs[place.chain]
        batch = request.batch(place.window, pair)
        for number, family in enumerate(FAMILIES):
            if family in request.families:
                with evaluating(pair.model, pair.guide, _seed(request.seed, place, number)):
                    values = request.draw(pair, family, batch, place.draw.stop - place.draw.start)
                writer.put_drawn(values, place)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]


def _seed(seed: int, place: Place, family: int) -> int:
    """Return a seed of its own for every batch, so that chains and groups share no noise."""
    parts = seed % 2**64, place.chain, family, place.window.start, place.draw.start
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class Writer:
    """Puts values into arrays; what has no axis of draws is averaged over them first, and so with windows."""

    def __init__(self, layout: Layout, arrays: Arrays) -> None:
        self.layout, self.arrays = layout, arrays
        self.sums: dict[tuple[Any, ...], tuple[int, np.ndarray]] = {}

    def put(self, values: Values, place: Place) -> None:
        """Write values as they are."""
        for key, named in values.items():
            if key in self.arrays:
                self._write(key, self.layout.chosen(named), place)

    def put_drawn(self, values: Values, place: Place) -> None:
        """Write values by draw, and means over draws, or draws and windows, once they are whole."""
        self.put({key: named for key, named in values.items() if "draw" in named.dims}, place)
        sizes = {"draw": place.draw.stop - place.draw.start, "window": place.window.stop - place.window.start}
        for key, named in values.items():
            if key in self.arrays and "draw" not in named.dims:
                missing = [dim for dim in sizes if dim not in named.dims]
                count = int(np.prod([sizes[dim] for dim in missing]))
                whole = int(np.prod([self.layout.sizes[dim] for dim in missing]))
                slot = key, place.chain, None if "window" in missing else place.window.start
                seen, total = self.sums.pop(slot, (0, np.zeros(())))
                seen, total = seen + count, total + count * self.layout.chosen(named).astype(np.float64)
                if seen == whole:
                    self._write(key, total / whole, place)
                else:
                    self.sums[slot] = seen, total

    def _write(self, key: Key, values: np.ndarray, place: Place) -> None:
        variable = self.layout.variables[key]
        index = tuple(place._asdict().get(dim, slice(None)) for dim in variable.dims)
        self.arrays[key][index] = values.astype(variable.dtype, copy=False)
