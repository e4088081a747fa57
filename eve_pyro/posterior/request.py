"""What is asked of a tree, and how many windows and draws fit into memory at once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eve_pyro.infer.local_elbo import Beta
from eve_pyro.infer.programs import device_of
from eve_pyro.posterior.sampling import FAMILIES, GROUPS, OBSERVED_DATA, POSTERIOR, Pair, Values
from eve_pyro.protocols import Batch, Rows

WORKSPACE = 2**30  # bytes
PROBE_DRAWS = (2, 4)


@dataclass(frozen=True)
class Request:
    """See ``to_datatree``. ``workspace`` bounds the bytes allocated for one batch of windows and draws."""

    pairs: Sequence[Pair]
    windows: Rows
    groups: Collection[str]
    sites: Sequence[str] | None = None
    units: Sequence[str | int] | None = None
    num_draws: int = 100
    batch_size: int = 256
    beta: Beta | None = None
    seed: int = 0
    workspace: int = WORKSPACE

    def __post_init__(self) -> None:
        unknown = [group for group in self.groups if group not in GROUPS]
        if unknown or not self.groups:
            asked = f"there is no group {unknown[0]!r}" if unknown else "no group is asked for"
            raise ValueError(f"{asked}: choose among {', '.join(GROUPS)}")
        if self.num_draws < 1 or self.batch_size < 1:
            raise ValueError(f"num_draws and batch_size must be at least 1, not {self.num_draws} and {self.batch_size}")
        if not len(self.windows):
            raise ValueError("there are no windows to draw for")
        blind = (*POSTERIOR, OBSERVED_DATA)
        needy = [group for group in self.groups if group in blind]
        if needy and not getattr(self.windows, "known", True):
            others = tuple(group for group in GROUPS if group not in blind)
            raise ValueError(f"the windows have no future, which the group {needy[0]!r} needs: choose among {others}")

    def batch(self, place: slice, pair: Pair) -> Batch:
        """Return some windows, on the model's device."""
        device, batch = device_of(pair.model), self.windows[place]
        return Batch(batch.context.to(device), batch.future.to(device))

    @property
    def families(self) -> list[tuple[str, ...]]:
        """The families of groups of which some are asked for."""
        return [family for family in FAMILIES if set(family) & set(self.groups)]

    def draw(self, pair: Pair, family: tuple[str, ...], batch: Batch, num_draws: int) -> Values:
        """Return what a pair says of a batch in the groups of one family."""
        return FAMILIES[family](pair, batch, num_draws, self.groups)


def probe(request: Request, pair: Pair) -> tuple[Values, tuple[int, int]]:
    """Draw for two windows; return the values, and how many windows and draws at once keep within the workspace.

    What a pair allocates grows with the windows and, for each of them, with the draws. All its tensors are counted, as
    if none were freed before the end: an upper bound.
    """
    batch, allocated = request.batch(slice(0, 2), pair), []  # two, for what is broadcast over one is not copied
    for num_draws in PROBE_DRAWS:
        values: Values = {}
        with _Allocations() as allocations:
            for family in request.families:
                values |= request.draw(pair, family, batch, num_draws)
        allocated.append(allocations.bytes / len(batch.context))
    by_draw = (allocated[1] - allocated[0]) / (PROBE_DRAWS[1] - PROBE_DRAWS[0])
    by_window = allocated[0] - PROBE_DRAWS[0] * by_draw
    room = int(request.workspace / 2 / max(by_window + by_draw, 1))
    windows = max(1, min(request.batch_size, len(request.windows), room))
    left = request.workspace / windows - by_window
    parts = -(-request.num_draws // max(1, int(left / max(by_draw, 1))))
    return values, (windows, -(-request.num_draws // parts))


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made; views are not."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in known:
                self.bytes += leaf.untyped_storage().nbytes()
        return result


def _storage(tensor: Tensor) -> int:
    """Return where a tensor's memory is."""
    return tensor.untyped_storage().data_ptr()
