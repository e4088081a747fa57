"""Priors of a layer's units: ``state`` (B, T, F) -> p(z) with batch (B, N) or (N,), event (T, K).

Source: arXiv 2602.18250 for the standard and the learned prior. One class a prior; a prior of your own is any callable
with this signature.
"""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

MIN_LOG_SCALE, MAX_LOG_SCALE = -5.0, 3.0


def normal(loc: Tensor, log_scale: Tensor) -> TorchDistribution:
    """Return independent normals over the last two axes (T, K), the scale kept within float-safe bounds."""
    scale = log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp()
    return dist.Normal(loc, scale, validate_args=False).to_event(2)


class StandardPrior(nn.Module):
    """p(z_n) = Normal(0, 1)."""

    def __init__(self, num_units: int, latent_dim: int = 1) -> None:
        super().__init__()
        self.num_units, self.latent_dim = num_units, latent_dim

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        zeros = state.new_zeros(state.shape[0], self.num_units, state.shape[1], self.latent_dim)
        return normal(zeros, zeros)


class LearnedPrior(nn.Module):
    """p(z_n) = Normal(m_n, s_n^2), free parameters of each unit and latent dimension."""

    def __init__(self, num_units: int, latent_dim: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_units, 1, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_units, 1, latent_dim))

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        shape = (state.shape[0], self.loc.shape[0], state.shape[1], self.loc.shape[-1])
        return normal(self.loc.expand(shape), self.log_scale.expand(shape))


class ContextualPrior(nn.Module):
    """p(z_n | x) = Normal(m_n(h), s_n(h)^2), linear in the state h, so that forecasts can come from the prior alone."""

    def __init__(self, state_size: int, num_units: int, latent_dim: int = 1) -> None:
        super().__init__()
        self.num_units, self.latent_dim = num_units, latent_dim
        self.loc = nn.Linear(state_size, num_units * latent_dim)
        self.log_scale = nn.Linear(state_size, num_units * latent_dim)
        nn.init.zeros_(self.log_scale.weight)
        nn.init.zeros_(self.log_scale.bias)

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        return normal(self._by_unit(self.loc(state)), self._by_unit(self.log_scale(state)))

    def _by_unit(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.num_units, self.latent_dim)).transpose(-2, -3)  # (B, T, N K) -> (B, N, T, K)
