"""The controllers' laws, one small object or function each: measured figures in, actions out, no training loop.

Each is the formula of arXiv 2602.18250 with its constants; states are plain tensors, so that they can be saved.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eve_pyro.control.band import Band

ALIVE = 1e-4  # nats: a unit with less KL does not live in this window


def ema(old: Tensor | None, new: Tensor, rate: float) -> Tensor:
    """Return the exponential moving average after ``new``, which starts it where there is no ``old``."""
    return new.clone() if old is None else old + rate * (new - old)


def projection_factors(energy: Tensor, band: Band, limit: float = 50.0) -> Tensor:
    """Return by how much to scale each unit's loc rows, (N,), so that it lands on its nearest edge; 1 inside.

    Energy is quadratic in the rows, so the factor is sqrt(edge / energy), within [1 / limit, limit].
    """
    outside = band.too_low(energy) | band.too_high(energy)
    factor = (band.nearest(energy) / energy.clamp(min=1e-30)).sqrt().clamp(1 / limit, limit)
    return torch.where(outside, factor, torch.ones_like(factor))


def homeostat_factors(energy: Tensor, band: Band, eta: float = 0.15) -> Tensor:
    """Return by how much to scale each unit's loc rows, (N,): (goal / energy)^(eta / 2), within [1/2, 2].

    The goal is the nearest edge outside the band and the geometric centre inside; ``eta`` grows with disorder to
    eta * (1 + 2 * out-of-band fraction), at most 0.5.
    """
    outside = band.too_low(energy) | band.too_high(energy)
    goal = torch.where(outside, band.nearest(energy), band.centre)
    strength = min(0.5, eta * (1 + 2 * float(outside.float().mean())))
    return (goal / energy.clamp(min=1e-30)).pow(strength / 2).clamp(0.5, 2.0)


@dataclass
class Thermostat:
    """A beta for every unit of a layer, so that its KL stays within [c_min, c_max] nats.

    log beta_n += 0.2 * (kl_n - clip(kl_n, c_min, c_max)), kl_n an EMA of rate 0.1. A unit alive (KL > 1e-4) in under
    5 % of the windows is an emergency: an extra step of -0.5. Each beta stays within [floor, ceiling], in nats,
    and within [1/4, 4] of the mean beta. Start it with ``beta`` (N,).
    """

    beta: Tensor
    c_min: float = 0.05
    c_max: float = 0.30
    floor: float = 1e-4
    ceiling: float = 1.0
    kl: Tensor | None = None
    alive: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.c_min <= self.c_max:
            raise ValueError(f"the thermostat needs 0 <= c_min <= c_max, not [{self.c_min}, {self.c_max}]")

    def observe(self, kl: Tensor, alive: Tensor) -> None:
        """Take in a batch's mean KL and the share of its windows with a KL above 1e-4, each (N,)."""
        self.kl, self.alive = ema(self.kl, kl, 0.1), ema(self.alive, alive, 0.1)

    def act(self) -> Tensor:
        """Return the new betas, (N,)."""
        if self.kl is None or self.alive is None:
            return self.beta
        step = 0.2 * (self.kl - self.kl.clamp(self.c_min, self.c_max))
        step = torch.where(self.alive < 0.05, step - 0.5, step)
        beta = (self.beta.log() + step).exp().clamp(self.floor, self.ceiling)
        mean = beta.mean()
        self.beta = beta.clamp(mean / 4, 4 * mean)
        return self.beta


@dataclass
class BandCalibration:
    """One common factor on all lows and one on all highs, which follow where the units live.

    The low factor follows the 20 % quantile of energy / base low, the high factor the 90 % quantile of energy / base
    high: EMA 0.7 in log space, at most x1.02 up and /1.10 down each time, within [0.02, 3]. Heterogeneity is kept.
    """

    base: Band
    low: float = 1.0
    high: float = 1.0

    def act(self, energy: Tensor) -> Band:
        """Return the band after a look at ``energy`` (N,)."""
        self.low = _follow(self.low, float((energy / self.base.low).quantile(0.2)))
        self.high = _follow(self.high, float((energy / self.base.high).quantile(0.9)))
        self.high = max(self.high, 1.01 * self.low * float((self.base.low / self.base.high).max()))  # low < high
        return self.band

    @property
    def band(self) -> Band:
        """The calibrated band."""
        return self.base.scaled(self.low, self.high)


def _follow(factor: float, seen: float) -> float:
    wanted = math.exp(0.7 * math.log(factor) + 0.3 * math.log(max(seen, 1e-12)))
    return min(3.0, max(0.02, min(1.02 * factor, max(factor / 1.10, wanted))))


@dataclass
class ArShare:
    """The weight of an AR penalty, held so that the penalty's share of the loss is near 20 % and below 30 %.

    log weight -= 0.1 * (share - 0.20), and beyond the cap 0.2 * (share - 0.30) instead.
    """

    weight: float = 1.0

    def act(self, share: float) -> float:
        """Return the new weight after seeing a ``share`` in [0, 1]."""
        step = 0.2 * (share - 0.30) if share > 0.30 else 0.1 * (share - 0.20)
        self.weight *= math.exp(-step)
        return self.weight
