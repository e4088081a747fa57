"""A forecast that is quantiles and nothing else: no density, no dependence."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class Quantiles(TorchDistribution):
    """The ``quantiles`` (..., H, Q) of H values at rising ``levels``: batch (...), event (H,).

    ``log_prob`` is minus the pinball loss summed over levels and values, whose maximum is at the quantiles (Koenker &
    Bassett 1978): quantile regression is its maximum likelihood. It is a score and no density. Draws are independent,
    by linear interpolation between the quantiles, and never beyond the outermost ones.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, quantiles: Tensor, levels: Sequence[float]) -> None:
        if len(levels) != quantiles.shape[-1]:
            raise ValueError(f"{quantiles.shape[-1]} quantiles need as many levels, not {len(levels)}")
        self.quantiles, self.levels = quantiles, tuple(levels)
        super().__init__(quantiles.shape[:-2], quantiles.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Quantiles":
        """Return the same quantiles for a larger batch."""
        return Quantiles(self.quantiles.expand(*batch_shape, *self.quantiles.shape[-2:]), self.levels)

    def rescaled(self, loc: Tensor, scale: Tensor) -> "Quantiles":
        """Return the quantiles of ``loc + scale * y`` for a positive ``scale``."""
        return Quantiles(loc.unsqueeze(-1) + scale.unsqueeze(-1) * self.quantiles, self.levels)

    def pinball(self, value: Tensor) -> Tensor:
        """Return the pinball loss of every value and level, (..., H, Q)."""
        level = self.quantiles.new_tensor(self.levels)
        error = value.unsqueeze(-1) - self.quantiles
        return torch.maximum(level * error, (level - 1) * error)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the pinball loss of a window."""
        return -self.pinball(value).sum((-2, -1))

    def at(self, level: float) -> Tensor:
        """Return the quantile at ``level``, (..., H): exact at a level of its own, else interpolated."""
        return self._interpolate(torch.full(self.quantiles.shape[:-1], level))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw values (*sample_shape, ..., H), each by itself."""
        return self._interpolate(torch.rand(Size(sample_shape) + self.quantiles.shape[:-1]))

    def _interpolate(self, level: Tensor) -> Tensor:
        known = self.quantiles.new_tensor(self.levels)
        level = level.to(known).clamp(known[0], known[-1])
        above = torch.searchsorted(known, level).clamp(1, len(known) - 1)
        weight = (level - known[above - 1]) / (known[above] - known[above - 1])
        quantiles = self.quantiles.expand(*level.shape, -1)
        low = quantiles.gather(-1, above[..., None] - 1)[..., 0]
        return low + weight * (quantiles.gather(-1, above[..., None])[..., 0] - low)

    @property
    def mean(self) -> Tensor:
        """The mean of the quantiles, (..., H): that of the distribution where levels are evenly spaced."""
        return self.quantiles.mean(-1)
