"""Constraints first: which trials are valid, what a missed target costs, who comes first. Source: arXiv 2602.18250."""

import math
from collections.abc import Mapping, Sequence

MOST_TOO_HIGH = 0.12
LEAST_INSIDE = 0.50
MOST_TOO_LOW, UNLESS_INSIDE = 0.48, 0.58
TARGET_INSIDE, STEP = 0.70, 0.10  # what to aim at beyond the gates; a unit more or less is no reason to rank by

Figures = Mapping[str, float]


def gate_margins(figures: Figures) -> dict[str, float]:
    """Return by how much each gate is missed, positive where it is; NaN figures miss every gate by infinity.

    ``figures`` hold the shares of units ``too_high``, ``too_low`` and the ``inside_mass``.
    """
    high, low, inside = (figures[name] for name in ("too_high", "too_low", "inside_mass"))
    margins = {
        "too-high share": high - MOST_TOO_HIGH,
        "inside mass": LEAST_INSIDE - inside,
        "too-low share": min(low - MOST_TOO_LOW, UNLESS_INSIDE - inside),  # both must be missed
    }
    return {gate: math.inf if math.isnan(margin) else margin for gate, margin in margins.items()}


def is_valid(figures: Figures) -> bool:
    """Say whether a trial passes every gate."""
    return max(gate_margins(figures).values()) <= 1e-9


def penalty(figures: Figures) -> float:
    """Return what missed targets cost, in whole steps of 0.10: of an invalid trial, by how much it misses its gates,
    summed; of a valid one, how far its inside mass lies below 0.70.
    """
    missed = sum(max(0.0, margin) for margin in gate_margins(figures).values())
    if is_valid(figures):
        missed = max(0.0, TARGET_INSIDE - figures["inside_mass"])
    return math.inf if math.isinf(missed) else round(STEP * math.ceil(missed / STEP - 1e-6), 9)


def why_invalid(figures: Figures) -> str:
    """Name the gates that a trial fails, and by how much; empty for a valid one."""
    limits = {
        "too-high share": (figures["too_high"], f"> {MOST_TOO_HIGH:.2f}"),
        "inside mass": (figures["inside_mass"], f"< {LEAST_INSIDE:.2f}"),
        "too-low share": (figures["too_low"], f"> {MOST_TOO_LOW:.2f}, inside < {UNLESS_INSIDE:.2f}"),
    }
    failed = [(gate, *limits[gate], by) for gate, by in gate_margins(figures).items() if by > 1e-9]
    return "; ".join(f"{gate} {value:.3f} {limit}, missed by {by:.3f}" for gate, value, limit, by in failed)


def selection_key(figures: Figures) -> tuple[bool, float]:
    """Return what trials are sorted by before any score: valid ones first, then by their penalty."""
    return not is_valid(figures), penalty(figures)


def mean_ranks(columns: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over ``columns`` of each item's rank, lowest first; equal values share the mean of theirs."""
    from scipy.stats import rankdata  # adds filters to everybody's warnings: not on import

    ranks = [rankdata([math.inf if math.isnan(value) else value for value in column]) for column in columns]
    return [float(sum(item) / len(columns)) for item in zip(*ranks, strict=True)]
