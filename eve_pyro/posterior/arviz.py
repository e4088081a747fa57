"""The tree as some of ArviZ's functions want it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from eve_pyro.protocols import OBSERVED

if TYPE_CHECKING:
    from xarray import DataTree


def to_inferencedata(tree: "DataTree") -> Any:
    """Return the tree as an ``InferenceData`` of classic ArviZ (0.23); what the tree reads from a file stays there.

    Newer ArviZ, and arviz-stats and arviz-plots, take the tree as it is. Raises ValueError where classic ArviZ is not
    installed.
    """
    try:
        from arviz import InferenceData
    except ImportError:
        raise ValueError(
            "InferenceData belongs to arviz 0.23, which is not installed: pip install 'eve_pyro[classic]' 'arviz<1'; "
            "arviz 1 and later take the tree itself"
        ) from None
    return InferenceData.from_datatree(tree)


def stack_observed(tree: "DataTree") -> "DataTree":
    """Return a copy of the tree whose y have one axis ``observation`` in place of window and horizon.

    ``plot_ppc_pit`` and ``plot_ppc_interval`` take no other. ``window`` and ``horizon`` stay as coordinates along it.
    Groups whose y has no horizon, as the log likelihood of whole windows, stay as they are.
    """
    stacked = tree.copy()
    for name, group in tree.children.items():
        if OBSERVED in group and "horizon" in group[OBSERVED].dims:
            flat = group.to_dataset().stack(observation=("window", "horizon")).reset_index("observation")
            stacked[name] = type(tree)(flat.assign_coords(observation=np.arange(flat.sizes["observation"])), name=name)
    return stacked
