"""Fronts over several objectives, all of which are minimised."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from eve_pyro.autopilot.gates import Figures

OBJECTIVES: dict[str, Callable[[Figures], float]] = {
    "crps": lambda figures: figures["crps"],
    "joint_log_score": lambda figures: figures["joint_log_score"],
    "coverage_error": lambda figures: abs(figures["coverage_90"] - 0.9),
    "inside_mass": lambda figures: -figures["inside_mass"],
    "seconds": lambda figures: figures["seconds"],
    "parameters": lambda figures: figures["parameters"],
}


def check_objectives(names: Sequence[str]) -> None:
    """Raise ValueError for unknown objectives, one named twice, and more than three."""
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown:
        raise ValueError(f"there is no objective {unknown[0]!r}; choose among {', '.join(OBJECTIVES)}")
    if not 1 <= len(set(names)) == len(names) <= 3:
        raise ValueError(f"name one objective, or two or three different ones, not {', '.join(names) or 'none'}")


def values_of(figures: Figures, objectives: Sequence[str]) -> list[float]:
    """Return the objectives of a trial, each lower where it is better; what is not a number is the worst there is."""
    values = (float(OBJECTIVES[name](figures)) for name in objectives)
    return [math.inf if math.isnan(value) else value for value in values]


def fronts(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the number of each item's front: 0 for what nothing dominates, 1 for what only the former dominate, ...

    An item dominates another that is nowhere better and somewhere worse.
    """
    table = np.array([list(each) for each in values], dtype=float)
    found, front = np.full(len(table), -1), 0
    while (left := np.flatnonzero(found < 0)).size:
        rest = table[left]
        no_worse = (rest[:, None] <= rest[None]).all(-1)  # (i, j): i is nowhere worse than j
        better = (rest[:, None] < rest[None]).any(-1)
        found[left[~(no_worse & better).any(0)]] = front
        front += 1
    return [int(number) for number in found]
