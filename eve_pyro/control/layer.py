"""One layer of units under control: its band, its energy, its betas."""

import math
from typing import Any

import torch
from torch import Tensor

from eve_pyro.control.band import Band, heterogeneous_band, homogeneous_band
from eve_pyro.control.laws import BandCalibration, Thermostat, ema
from eve_pyro.control.steering import Steering
from eve_pyro.protocols import UnitRows

MIN_SCALE, MAX_SCALE, KICK = 0.15, 5.0, 0.02
MAX_TRANSFER = 4.0  # between a unit's energies on validation and in training, either way
ENERGY_RATE = 0.05
BETA_RANGE = (1e-6, 1e-2)  # on a likelihood averaged over the horizon: times H, in nats a window
ROOM = 10.0
REACHED = 1 / 3  # of the mean energy that units can reach, at most


def make_band(steering: Steering, num_units: int, reach: float = math.inf) -> Band:
    """Return the band that ``steering`` asks for, lowered where its centres would ask for more than a third of
    ``reach`` in the mean: pulled further up, rows grow without end and the energies do not follow.
    """
    if steering.bands == "heterogeneous":
        band = heterogeneous_band(num_units, steering.target, steering.spread, steering.width)
    else:
        band = homogeneous_band(num_units, steering.target, steering.width)
    lowered = min(1.0, REACHED * reach / float(band.centre.mean()))
    return band.scaled(lowered, lowered)


class LayerControl:
    """The controllers of one layer. ``beta`` (N,) is what its units pay at the start; ``state`` is all that is saved.

    Everything lives on the device of ``beta``.
    """

    def __init__(self, steering: Steering, beta: Tensor, horizon: int, reach: float = math.inf) -> None:
        self.steering, self.horizon = steering, horizon
        self.calibration = BandCalibration(make_band(steering, len(beta), reach).to(beta.device))
        low, high = (edge * horizon for edge in BETA_RANGE)
        beta = beta.clamp(min=1e-12)
        # Wherever betas start, the thermostat has room to move them both ways.
        low, high = min(low, float(beta.min()) / ROOM), max(high, float(beta.max()) * ROOM)
        self.thermostat = Thermostat(beta, steering.c_min, steering.c_max, low, high)
        self.energy: Tensor | None = None
        self.transfer: Tensor | None = None

    @property
    def band(self) -> Band:
        """The band as calibrated so far."""
        return self.calibration.band

    @property
    def aim(self) -> Band:
        """What the regime aims at in training: the band, or under homeostasis its inner part, moved for unseen windows.

        A unit that is pulled out of its band settles a little outside of its goal: with the edge as the goal it would
        stay outside for good. And unseen windows, without dropout, have other energies than training's, by a factor of
        each unit that every evaluation measures.
        """
        if self.steering.regime != "homeostasis":
            return self.band
        inner = self.band.inner(self.steering.aim)
        return inner if self.transfer is None else inner.scaled(1 / self.transfer, 1 / self.transfer)

    def observe(self, kl: Tensor, alive: Tensor, energy: Tensor) -> None:
        """Take in a batch's KL, share of windows alive, and energy, each (N,), averaged over all processes."""
        self.thermostat.observe(kl, alive)
        self.energy = ema(self.energy, energy, ENERGY_RATE)

    def compare(self, energy: Tensor) -> None:
        """Take in the energies (N,) of an evaluation on unseen windows."""
        if self.energy is not None:
            self.transfer = (energy / self.energy.clamp(min=1e-30)).clamp(1 / MAX_TRANSFER, MAX_TRANSFER)

    def move(self, rows: UnitRows, factor: Tensor) -> None:
        """Scale each unit's loc rows by ``factor`` (N,), and what is known of its energy with them."""
        for row in rows.loc:
            row.mul_(factor.reshape(-1, *[1] * (row.ndim - 1)))
        if self.energy is not None:
            self.energy = self.energy * factor.square()

    def guard(self, rows: UnitRows) -> None:
        """Keep scales within [0.15, 5], and kick a dead unit's log scale up by 0.02."""
        if rows.log_scale is None or self.thermostat.alive is None:
            return
        dead = (self.thermostat.alive < 0.05).reshape(-1, *[1] * (rows.log_scale.ndim - 1))
        rows.log_scale.add_(KICK * dead).clamp_(math.log(MIN_SCALE), math.log(MAX_SCALE))

    def state(self) -> dict[str, Any]:
        """Return all that a resumed training needs, as tensors and numbers."""
        heat = self.thermostat
        return {
            "energy": self.energy, "transfer": self.transfer, "beta": heat.beta, "kl": heat.kl, "alive": heat.alive,
            "floor": heat.floor, "ceiling": heat.ceiling,
            "low": self.calibration.low, "high": self.calibration.high, "horizon": self.horizon,
        }  # fmt: skip

    @classmethod
    def restored(
        cls, steering: Steering, state: dict[str, Any], device: torch.device, reach: float = math.inf
    ) -> "LayerControl":
        """Return a layer as its ``state`` was saved, on ``device``."""
        state = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in state.items()}
        layer = cls(steering, state["beta"], state["horizon"], reach)
        layer.energy, layer.transfer, heat = state["energy"], state["transfer"], layer.thermostat
        heat.kl, heat.alive = state["kl"], state["alive"]
        heat.floor, heat.ceiling = state["floor"], state["ceiling"]
        layer.calibration.low, layer.calibration.high = state["low"], state["high"]
        return layer
