"""Energy bands, and the hinge that leans on units outside them. Source: arXiv 2602.18250."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eve_pyro.infer.terms import ELBOTerms

LOW, HIGH = 0.8, 1.6  # a band's edges, in units of its target, where it is as wide as the paper's
WIDTH = HIGH / LOW
HINGE_FLOOR = 1e-3  # of the denominators of the relative hinge
CROWDED, EASED = 0.35, 0.3  # above this share of units too low, the high side counts this much


@dataclass(frozen=True)
class Band:
    """Where each unit's energy should live: ``low`` and ``high`` (N,), in squared prior deviations."""

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        if not (self.low > 0).all() or not (self.low < self.high).all():
            raise ValueError("every unit's band needs 0 < low < high")

    @property
    def centre(self) -> Tensor:
        """The geometric centre, (N,)."""
        return (self.low * self.high).sqrt()

    def too_low(self, energy: Tensor) -> Tensor:
        """Return which units lie below their band, (N,), boolean."""
        return energy < self.low

    def too_high(self, energy: Tensor) -> Tensor:
        """Return which units lie above their band, (N,), boolean."""
        return energy > self.high

    def nearest(self, energy: Tensor) -> Tensor:
        """Return each unit's energy moved to its nearest edge, those inside as they are."""
        return energy.clamp(self.low, self.high)

    def inner(self, share: float) -> "Band":
        """Return the band of this ``share`` of the width, in logs, around the same centre."""
        return Band(self.centre * (self.low / self.centre) ** share, self.centre * (self.high / self.centre) ** share)

    def to(self, device: torch.device) -> "Band":
        """Return the band on ``device``."""
        return Band(self.low.to(device), self.high.to(device))

    def scaled(self, low: float | Tensor, high: float | Tensor) -> "Band":
        """Return the band with its lows and its highs multiplied by a factor each, one for all or one a unit."""
        return Band(self.low * low, self.high * high)


def homogeneous_band(num_units: int, target: float = 0.03, width: float = WIDTH) -> Band:
    """Return [0.8, 1.6] * target for every unit, or as wide as ``width``, high over low, around the same centre."""
    return _around(torch.full((_count(num_units),), _positive(target, "target energy")), width)


def heterogeneous_band(num_units: int, target: float = 0.03, spread: float = 8.0, width: float = WIDTH) -> Band:
    """Return bands around targets log-spaced from target / spread to target * spread along the units."""
    if spread < 1:
        raise ValueError(f"the spread of the bands is a factor of at least 1, not {spread}")
    centre, reach = torch.tensor(_positive(target, "target energy")).log(), torch.tensor(spread).log()
    return _around(torch.linspace(float(centre - reach), float(centre + reach), _count(num_units)).exp(), width)


def _around(target: Tensor, width: float) -> Band:
    if not width > 1:
        raise ValueError(f"the width of a band is a factor above 1, not {width}")
    return Band(LOW * math.sqrt(WIDTH / width) * target, HIGH * math.sqrt(width / WIDTH) * target)


def _positive(value: float, name: str) -> float:
    if not value > 0:
        raise ValueError(f"the {name} must be positive, not {value}")
    return value


def _count(num_units: int) -> int:
    if num_units < 1:
        raise ValueError(f"a band needs at least one unit, not {num_units}")
    return num_units


def hinge(energy: Tensor, band: Band, relative: bool = True) -> Tensor:
    """Return the penalty of ``energy`` (N,), a scalar: the mean over units of the squared distance to the band.

    ``relative`` divides each distance by its edge (at least 1e-3). While more than 35 % of the units are too low, the
    high side counts 0.3: units that carry are needed while the others wake.
    """
    below, above = (band.low - energy).clamp(min=0), (energy - band.high).clamp(min=0)
    if relative:
        below = below / band.low.clamp(min=HINGE_FLOOR)
        above = above / band.high.clamp(min=HINGE_FLOOR)
    crowded = float(band.too_low(energy).float().mean()) > CROWDED
    return (below.square() + (EASED if crowded else 1.0) * above.square()).mean()


def ramp(step: int, warmup: int, length: int) -> float:
    """Return a penalty's weight at ``step``: 0 for ``warmup`` steps, then linear to 1 over ``length`` steps."""
    return min(1.0, max(0.0, (step - warmup) / length)) if length else float(step >= warmup)


class BandPenalty:
    """The hinge of every layer, as a penalty of the local ELBO: ``weight * ramp * hinge``, in nats a window.

    ``bands`` maps sites to bands, none before their first step; ``strength`` is the ramp, moved by whoever counts the
    steps.
    """

    def __init__(self, bands: dict[str, Band], weight: float = 1.0, relative: bool = True) -> None:
        if weight < 0:
            raise ValueError(f"the weight of the band penalty cannot be negative, not {weight}")
        self.bands, self.weight, self.relative, self.strength = bands, weight, relative, 0.0

    def __call__(self, terms: ELBOTerms) -> Tensor:
        """Return the penalty of ``ELBOTerms``."""
        if not (self.strength and self.bands):
            return next(iter(terms.units.values())).energy.new_zeros(())
        hinges = [hinge(terms.units[site].energy, band, self.relative) for site, band in self.bands.items()]
        return self.weight * self.strength * torch.stack(hinges).sum()
