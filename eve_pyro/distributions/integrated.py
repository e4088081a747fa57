"""The factor normal with its units gone: a normal of low rank, at the price of its loadings alone."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from eve_pyro.distributions.factor import FactorNormal, GivenLatents
from eve_pyro.protocols import Latents


class IntegratedFactor(GivenLatents):
    """p(y) of a ``factor`` normal with standard units and one patch: Normal(loc, scale) values of rank N dependence.

    With g the gain and A the loadings (H, N) that all windows share, P = I + g A'A g and b = g A'r, r being the
    residual in deviations of the noise::

        log p(y) = log p(y | a = 0) - log|P| / 2 + b' P^-1 b / 2

    which never builds loadings by window, as torch's normal of low rank does.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, factor: FactorNormal) -> None:
        if factor.activity.shape[-2] != 1 or factor.loadings.ndim != 2:
            raise ValueError(
                "units over several patches, or loadings by window, are integrated out by FactorNormal.joint"
            )
        self.factor = factor
        super().__init__(factor.batch_shape, factor.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "IntegratedFactor":
        """Return the same distribution for a larger batch."""
        return IntegratedFactor(self.factor.expand(batch_shape))

    def rescaled(self, loc: Tensor, scale: Tensor) -> "IntegratedFactor":
        """Return the distribution of ``loc + scale * y``."""
        return IntegratedFactor(self.factor.rescaled(loc, scale))

    def conditional(self) -> dist.Independent:
        """Return the normals p(y_h); no latent is left to be given."""
        shape = self.batch_shape + self.event_shape
        loc, scale = self.factor.loc.expand(shape), self.factor.scale.expand(shape)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y), in nats per window."""
        factor, loadings, gain = self.factor, self.factor.loadings, self.factor.gain  # gain (B, 1, N)
        loc, noise = factor.path_loc.expand(self.batch_shape + self.event_shape), factor.path_scale * factor.noise
        pull = gain * ((value - loc) / noise @ loadings)  # (..., B, 1, N)
        precision = gain.unsqueeze(-1) * (loadings.mT @ loadings) * gain.unsqueeze(-2)  # (B, 1, N, N)
        root = torch.linalg.cholesky(precision + torch.eye(loadings.shape[-1]).to(precision))
        white = torch.linalg.solve_triangular(root, pull.unsqueeze(-1), upper=False)[..., 0]
        alone = dist.Normal(loc, noise, validate_args=False).log_prob(value).sum(-1)
        return alone - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * white.square().sum(-1)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw paths (*sample_shape, ..., H): units, then values given them."""
        factor = self.factor
        shape = self._extended_shape(sample_shape)
        units = torch.randn(*shape[:-1], factor.loadings.shape[-1]).to(factor.loc)
        common = (factor.gain * units) @ factor.loadings.mT
        return factor.loc + factor.scale * factor.noise * (common + torch.randn(shape).to(factor.loc))

    def marginal(self, latents: Latents) -> TorchDistribution:
        """Return the normals p(y_h)."""
        return self.conditional()

    def joint(self, latents: Latents) -> TorchDistribution:
        """Return the distribution itself."""
        return self
