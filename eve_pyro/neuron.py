"""The layer of EVE neurons: a plate of units, one sample site, pooled activity."""

import math
from typing import Literal

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.protocols import Prior

Pooling = Literal["mean", "sum", "sqrt"]


class EveLayer(nn.Module):
    """N neurons, each a latent variable of K dimensions with a prior, sampled as one site ``<name>.z``.

    What the next layer reads of a unit is ``pool_weight * sum_k z_k``: ``mean`` (weight 1/K), ``sum`` (1) or ``sqrt``
    (1/sqrt(K), which keeps the scale of a standard unit at 1 for every K). Source: arXiv 2602.18250 and, for K > 1,
    arXiv 2603.13849.

    Open the windows plate (dim -2) before calling the layer; it opens ``<name>.units`` (dim -1) itself. Raises
    ValueError for fewer than one unit or latent dimension, for an unknown pooling and, when called, for a prior of
    another number of either.
    """

    def __init__(
        self, prior: Prior, num_units: int, latent_dim: int = 1, pooling: Pooling = "sqrt", name: str = "eve"
    ) -> None:
        super().__init__()
        if num_units < 1 or latent_dim < 1:
            raise ValueError(f"layer {name!r} needs num_units >= 1 and latent_dim >= 1, not {num_units}, {latent_dim}")
        weights = {"mean": 1 / latent_dim, "sum": 1.0, "sqrt": 1 / math.sqrt(latent_dim)}
        if pooling not in weights:
            raise ValueError(f"layer {name!r}: pooling is one of {', '.join(weights)}, not {pooling!r}")
        self.prior, self.name = prior, name
        self.num_units, self.latent_dim, self.pool_weight = num_units, latent_dim, weights[pooling]

    @property
    def site(self) -> str:
        """The name of the layer's sample site."""
        return f"{self.name}.z"

    def forward(self, state: Tensor) -> Tensor:
        """Sample the units given ``state`` (B, T, F) and return their activity, (..., B, T, N)."""
        with pyro.plate(f"{self.name}.units", self.num_units, dim=-1):
            z = pyro.sample(self.site, self._checked(self.prior(state)))  # (..., B, N, T, K)
        return self.pooled(z)

    def _checked(self, fn: TorchDistribution) -> TorchDistribution:
        """Return ``fn``; ValueError where it is a prior of another layer's shape, which would broadcast unseen."""
        units, event = fn.batch_shape[-1] if fn.batch_shape else 1, tuple(fn.event_shape)
        if units != self.num_units or len(event) != 2 or event[1] != self.latent_dim:
            raise ValueError(
                f"layer {self.name!r} has num_units={self.num_units} and latent_dim={self.latent_dim}, and a prior of "
                f"batch {tuple(fn.batch_shape)} and event {event}: make it (..., {self.num_units}) and "
                f"(T, {self.latent_dim})"
            )
        return fn

    def pooled(self, z: Tensor) -> Tensor:
        """Return the activity (..., B, T, N) of draws ``z`` (..., B, N, T, K)."""
        return self.pool_weight * z.sum(-1).mT
