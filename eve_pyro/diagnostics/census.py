"""The census: which state each unit of a layer is in, from figures alone. Source: arXiv 2602.18250."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from eve_pyro.infer.terms import ELBOTerms

NOTHING = 1e-4  # nats and squared prior deviations: below this a unit is dead
ACTIVE = 0.01  # nats: above this a unit says something
SATURATED = 4.0  # times the band's upper edge
FLOOR = 0.15 * 1.01  # posterior deviations at the guard's floor
DRIFT = math.log(1.5)  # an energy that moves by half in an epoch
STATES = ("living", "too_low", "too_high", "dead", "saturated", "collapsed", "drifting")


class UnitFigures(NamedTuple):
    """A layer's units, averaged over windows, each (N,): KL in nats, energy in squared prior deviations, posterior
    deviation.
    """

    kl: Tensor
    energy: Tensor
    scale: Tensor


@dataclass
class Tally:
    """Averages the figures of every layer over batches, each window with the same weight."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    windows: int = 0

    def add(self, terms: ELBOTerms) -> None:
        """Take in a batch."""
        count = len(terms.log_likelihood)
        self.windows += count
        for site, units in terms.units.items():
            figures = count * torch.stack([units.kl.mean(0), units.energy, units.scale]).detach()
            self.totals[site] = self.totals[site].to(figures) + figures if site in self.totals else figures

    def take(self) -> dict[str, Tensor]:
        """Return the averages by site, (3, N) in the order of ``UnitFigures``, and start anew."""
        means = {site: total / self.windows for site, total in self.totals.items()}
        self.totals, self.windows = {}, 0
        return means


def judge(figures: UnitFigures, low: Tensor, high: Tensor, drifting: Tensor | None = None) -> dict[str, Tensor]:
    """Return which units are in each of ``STATES``, (N,) boolean, given their bands' edges (N,).

    ``too_low`` and ``too_high``: outside the band. ``dead``: energy and KL below 1e-4. ``saturated``: energy above four
    times the band's upper edge. ``collapsed``: the posterior's deviation at its floor of 0.15, a deterministic scalar.
    ``drifting`` is handed in by who has watched long enough. ``living``: none of these, and inside the band. A unit
    whose energy is NaN, for want of a prior's moments, is neither inside nor living.
    """
    states = {
        "too_low": figures.energy < low,
        "too_high": figures.energy > high,
        "dead": (figures.energy < NOTHING) & (figures.kl < NOTHING),
        "saturated": figures.energy > SATURATED * high,
        "collapsed": figures.scale <= FLOOR,
        "drifting": torch.zeros_like(figures.kl, dtype=torch.bool) if drifting is None else drifting,
    }
    return {"living": ~torch.stack([*states.values(), figures.energy.isnan()]).any(0)} | states


def has_drifted(energy: Tensor, before: Tensor, gained: bool) -> Tensor:
    """Return which units' energies moved by more than half since ``before``, where no score was ``gained``, (N,)."""
    moved = (energy.clamp(min=NOTHING) / before.clamp(min=NOTHING)).log().abs() > DRIFT
    return moved & (not gained)


def summary(states: dict[str, Tensor], figures: UnitFigures) -> dict[str, float]:
    """Return shares of the units in each state, ``inside_mass``, ``active`` (the share with more than 0.01 nats), and
    ``kl`` (the sum over units, in nats a window), ``effective_kl`` (the mean of the active units) and mean ``energy``.
    """
    shares = {name: float(members.float().mean()) for name, members in states.items()}
    active = figures.kl > ACTIVE
    effective = float(figures.kl[active].mean()) if active.any() else 0.0
    unknown = float(figures.energy.isnan().float().mean())
    return {
        "inside_mass": 1 - shares["too_low"] - shares["too_high"] - unknown,
        **shares,
        "active": float(active.float().mean()),
        "kl": float(figures.kl.sum()),
        "effective_kl": effective,
        "energy": float(figures.energy.mean()),
    }


def state_names(states: dict[str, Tensor]) -> list[str]:
    """Return one word a unit: its gravest state, where it stands to its band, or ``unknown``."""
    order = ("dead", "saturated", "collapsed", "drifting", "too_low", "too_high", "living")
    count = len(states["living"])
    return [next((name for name in order if states[name][unit]), "unknown") for unit in range(count)]


def final_census(units: pd.DataFrame, census: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Judge a ``unit_table`` by the bands that a training's ``census`` ended with.

    Returns rows as the census has them, of split ``test``, and their summary, named ``test_*``.
    """
    last = census[census["step"] == census["step"].max()].drop_duplicates(["site", "unit"])
    bands = last[["step", "epoch", "site", "unit", "low", "high", "beta"]]
    table = bands.merge(units, on=["site", "unit"], validate="one_to_one").assign(split="test")
    figures, states = _judged(table)
    rows = table.assign(state=state_names(states))[list(census.columns)]
    return rows, {f"test_{name}": value for name, value in summary(states, figures).items()}


def last_figures(census: pd.DataFrame) -> pd.DataFrame:
    """Return how each layer of a ``census`` ended, a row a ``site`` and ``split``.

    The number of ``units``, their band from ``low`` to ``high``, the share of units in each of ``STATES``, every unit
    in its gravest so that the shares add up, and the other figures as ``summary`` has them.
    """
    last = census[census["step"] == census.groupby("split")["step"].transform("max")]
    rows = []
    for (site, split), layer in last.groupby(["site", "split"], sort=False):
        figures, states = _judged(layer)
        band = {"low": layer["low"].min(), "high": layer["high"].max()}
        shares = {state: float((layer["state"] == state).mean()) for state in STATES}
        rows.append({"site": site, "split": split, "units": len(layer)} | band | summary(states, figures) | shares)
    return pd.DataFrame(rows)


def _judged(table: pd.DataFrame) -> tuple[UnitFigures, dict[str, Tensor]]:
    """Return the figures of a table with a row a unit, and the states that its bands make of them."""
    columns = {name: torch.tensor(table[name].to_numpy()) for name in ("kl", "energy", "scale", "low", "high")}
    figures = UnitFigures(columns["kl"], columns["energy"], columns["scale"])
    return figures, judge(figures, columns["low"], columns["high"])
