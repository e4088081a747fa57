"""Units whose posterior is diagonal plus low rank."""

import math
from typing import Any

import torch
from torch import Size, Tensor

from eve_pyro.distributions.joint import LOG_2PI_E, JointUnits


class LowRankUnits(JointUnits):
    """z_n = loc_n + scale_n * e_n + factor_n x, with e_n ~ N(0, I) for each unit and x ~ N(0, I_R) shared by all.

    Shapes: ``loc`` and ``scale`` (..., N, T, K), ``factor`` (..., N, T, K, R).
    """

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        self.relative = (factor / scale.unsqueeze(-1)).flatten(-3, -2)  # (..., N, T K, R)
        self.by_unit = self.relative.mT @ self.relative  # (..., N, R, R)
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, (..., N, T, K)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each latent, (..., N, T, K)."""
        return self.scale.square() + self.factor.square().sum(-1)

    @property
    def lag_covariance(self) -> Tensor:
        """Cov(z_t, z_{t-1}), (..., N, T, K)."""
        lagged = torch.zeros_like(self.loc)
        lagged[..., 1:, :] = (self.factor[..., 1:, :, :] * self.factor[..., :-1, :, :]).sum(-1)
        return lagged

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw all units at once, (*sample_shape, ..., N, T, K)."""
        own = self.normals(sample_shape, *self.loc.shape[-3:])
        shared = self.normals(sample_shape, 1, 1, 1, self.factor.shape[-1])
        return self.loc + self.scale * own + (self.factor * shared).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return shares (..., N) of the joint log density, by the matrix inversion lemma."""
        away = ((value - self.loc) / self.scale).flatten(-2)  # (..., N, T K)
        own = (
            -0.5 * away.square().sum(-1) - self.scale.log().sum((-1, -2)) - 0.5 * math.log(2 * math.pi) * away.shape[-1]
        )
        root = torch.linalg.cholesky(self._capacitance(self.by_unit.sum(-3)))
        pull = (self.relative * away.unsqueeze(-1)).sum((-3, -2))  # (..., R)
        pulled = torch.linalg.solve_triangular(root, pull.unsqueeze(-1), upper=False)[..., 0]
        joint = 0.5 * pulled.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return own + joint.unsqueeze(-1) / own.shape[-1]

    def unit_entropy(self) -> Tensor:
        """Entropy of each unit's marginal, (..., N)."""
        latents = self.loc.shape[-2] * self.loc.shape[-1]
        return 0.5 * LOG_2PI_E * latents + self.scale.log().sum((-1, -2)) + 0.5 * self._log_det(self.by_unit)

    def information(self) -> tuple[Tensor, Tensor]:
        """Total correlation (...) and mutual information of each unit with the others (..., N)."""
        whole = self.by_unit.sum(-3)
        own, others = self._log_det(self.by_unit), self._log_det(whole.unsqueeze(-3) - self.by_unit)
        joint = self._log_det(whole)
        return 0.5 * (own.sum(-1) - joint), 0.5 * (own + others - joint.unsqueeze(-1)).clamp(min=0)

    @staticmethod
    def _capacitance(gram: Tensor) -> Tensor:
        return gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def _log_det(self, gram: Tensor) -> Tensor:
        return torch.logdet(self._capacitance(gram))
