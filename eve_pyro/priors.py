"""Priors of a layer's units: ``state`` (..., B, T, F) -> p(z) with batch (..., B, N), event (T, K).

Source: arXiv 2602.18250 for the standard and the learned prior. One class a prior; a prior of your own is any callable
with this signature.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from eve_pyro.distributions import AR1
from eve_pyro.protocols import Prior

MIN_LOG_SCALE, MAX_LOG_SCALE = -5.0, 3.0
MAX_PHI, PHI_BOUND = 1 - 1e-6, 1 - 5e-7  # where a unit may start, and what it never passes: below 1 in float32 too


def normal(loc: Tensor, log_scale: Tensor) -> TorchDistribution:
    """Return independent normals over the last two axes (T, K), the scale kept within float-safe bounds."""
    scale = log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp()
    return dist.Normal(loc, scale, validate_args=False).to_event(2)


class StandardPrior(nn.Module):
    """p(z_n) = Normal(0, 1)."""

    centred = True  # of mean 0 whatever the state

    def __init__(self, num_units: int, latent_dim: int = 1) -> None:
        super().__init__()
        self.num_units, self.latent_dim = num_units, latent_dim

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        zeros = state.new_zeros(*state.shape[:-2], self.num_units, state.shape[-2], self.latent_dim)
        return normal(zeros, zeros)


class LearnedPrior(nn.Module):
    """p(z_n) = Normal(m_n, s_n^2), free parameters of each unit and latent dimension."""

    def __init__(self, num_units: int, latent_dim: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_units, 1, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_units, 1, latent_dim))

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        shape = (*state.shape[:-2], self.loc.shape[0], state.shape[-2], self.loc.shape[-1])
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


class VolatilityPrior(nn.Module):
    """p(v) = Gamma(nu / 2, nu / 2) for the one unit of a volatility layer: mean 1, nu = 2 + 3 softplus(linear(h)).

    With normal values given v, of deviation scale / sqrt(v), values are Student's t with nu degrees of freedom.
    """

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.df = nn.Linear(state_size, 1)
        nn.init.zeros_(self.df.weight)
        nn.init.constant_(self.df.bias, 2.0)

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (B, 1), event (1, 1), from the last path step."""
        half = 1 + 1.5 * F.softplus(self.df(state[..., -1:, :])).unsqueeze(-1)
        return dist.Gamma(half, half, validate_args=False).to_event(2)


class AR1Prior(nn.Module):
    """p(z_n) = AR(1) over the path, around the marginals of another prior.

    With m and s from ``marginals`` and u_nt = (z_nt - m_nt) / s_nt: u_nt = phi_n u_n,t-1 + sqrt(1 - phi_n^2) e_nt, so
    that each z_nt stays Normal(m_nt, s_nt^2). ``phi`` is the same for all units, or, with ``learned``, where each unit
    starts; |phi_n| < 1 by construction, in float32 too. Source: arXiv 2602.18250, whose phi is 0.95.

    Raises ValueError for |phi| above 0.999999 and, when called, for a path of one step.
    """

    def __init__(self, marginals: Prior, num_units: int, phi: float = 0.95, learned: bool = False) -> None:
        super().__init__()
        if not -MAX_PHI <= phi <= MAX_PHI:
            raise ValueError(f"an AR(1) prior needs |phi| <= {MAX_PHI}, so that it is below 1 in float32, not {phi!r}")
        self.marginals = marginals
        raw = torch.full((num_units, 1, 1), math.atanh(phi / PHI_BOUND))
        self.raw_phi = nn.Parameter(raw, requires_grad=learned)

    @property
    def centred(self) -> bool:
        """Whether the marginals are of mean 0 whatever the state."""
        return getattr(self.marginals, "centred", False)

    @property
    def phi(self) -> Tensor:
        """The persistence of each unit, (N,)."""
        return self._bounded()[:, 0, 0]

    def forward(self, state: Tensor) -> TorchDistribution:
        """Return batch (..., B, N), event (T, K)."""
        fn = self.marginals(state)
        return AR1(fn.mean, self._bounded(), fn.stddev, validate_args=False)

    def _bounded(self) -> Tensor:
        return PHI_BOUND * self.raw_phi.tanh()
