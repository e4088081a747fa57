"""Units whose posterior is a normalizing flow of a mean-field base."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Transform, constraints


class FlowUnits(TorchDistribution):
    """z_t = f(x_t) for x ~ Normal(loc, scale^2), with f a chain of Pyro's transforms over the N K latents of a step.

    Batch (..., N), event (T, K), so that it stands in a units plate; ``log_prob`` (..., N) sums over units to the joint
    log density: each unit's base density at its own latents, and the log determinant shared out evenly. So the shares
    of a sampled KL add up to the joint one, but a single share has no meaning of its own and may be negative. Moments
    have no closed form: ``mean`` is the image of the base's location, ``variance`` an estimate from the same 16 draws
    of the base at every look, without gradient.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    num_draws = 16

    def __init__(self, loc: Tensor, scale: Tensor, transforms: Sequence[Transform]) -> None:
        self.base = dist.Normal(loc, scale, validate_args=False).to_event(2)
        self.transforms = list(transforms)
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowUnits":
        """Return the same distribution for a larger batch."""
        base = self.base.base_dist.expand(Size(batch_shape) + self.event_shape)
        return FlowUnits(base.loc, base.scale, self.transforms)

    @property
    def mean(self) -> Tensor:
        """The image of the base's location, (..., N, T, K)."""
        return self._forward(self.base.mean)

    @property
    def variance(self) -> Tensor:
        """Variance, estimated, (..., N, T, K). The global random state is left alone."""
        like = self.base.mean
        own = torch.Generator(like.device).manual_seed(0)
        noise = torch.randn(self.num_draws, *like.shape, generator=own, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            return self._forward(like + self.base.stddev * noise).var(0)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw all units at once, (*sample_shape, ..., N, T, K)."""
        return self._forward(self.base.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return shares (..., N) of the joint log density."""
        flat, log_det = _by_step(value), value.new_zeros(())
        for transform in reversed(self.transforms):
            before = transform.inv(flat)
            log_det = log_det + transform.log_abs_det_jacobian(before, flat)
            flat = before
        base = self.base.log_prob(_by_unit(flat, value))
        return base - log_det.sum(-1, keepdim=True) / base.shape[-1]

    def _forward(self, x: Tensor) -> Tensor:
        flat = _by_step(x)
        for transform in self.transforms:
            flat = transform(flat)
        return _by_unit(flat, x)


def _by_step(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)  # (..., N, T, K) -> (..., T, N K)


def _by_unit(flat: Tensor, like: Tensor) -> Tensor:
    return flat.unflatten(-1, (like.shape[-3], like.shape[-1])).transpose(-3, -2)
