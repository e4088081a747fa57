"""The exact posterior of units that a linear-Gaussian likelihood reads."""

from typing import Any

import torch
from torch import Size, Tensor
from torch.linalg import cholesky, solve_triangular

from eve_pyro.distributions.joint import JointUnits
from eve_pyro.distributions.paths import path_moments


class ConjugateUnits(JointUnits):
    """p(z | y) for r = sum_pn loadings_hpn a_pn + noise_h e_h, a the activity of independent Gaussian units.

    The likelihood sees z through the last P steps of the activity a_n = ``pool_weight`` * sum_k z_nk alone, so that
    p(z | y) = p(z | a) p(a | y): z = z' + G_n (u_n - u'_n) for a draw z' of the prior, with u the activity whitened by
    its prior covariance, u'_n that of z', and u ~ Normal(m, Lambda^-1)::

        Lambda = I + W' W,   m = Lambda^-1 W' (r - loadings . E a) / noise,   W = loadings . chol(Cov a) / noise

    Shapes: ``prior`` has batch (..., B, N) and event (T, K); ``loadings`` (B, H, P, N), ``noise`` and ``residual`` r
    (B, H). The covariance across units is exact, so the cost grows with (N P)^3.
    """

    def __init__(self, prior: Any, loadings: Tensor, noise: Tensor, residual: Tensor, pool_weight: float) -> None:
        moments = path_moments(prior)
        if moments is None:
            raise ValueError(f"the conjugate posterior needs Gaussian units, not a prior of {type(prior).__name__}")
        self.prior, self.pool_weight, self.reads = prior, pool_weight, loadings.shape[-2]
        loc, covariance = moments  # (..., N, T, K), (..., N, K, T, T)
        self.prior_loc, self.prior_covariance = loc, covariance
        self.activity_loc = self._activity(loc)  # (..., N, P)
        cross = pool_weight * covariance[..., -self.reads :]  # Cov(z_tk, a_p), (..., N, K, T, P)
        self.root = cholesky(pool_weight * cross[..., -self.reads :, :].sum(-3))  # (..., N, P, P)
        self.gain = solve_triangular(self.root.mT.unsqueeze(-3), cross, upper=True, left=False)  # G, (..., N, K, T, P)

        by_unit = loadings.transpose(-2, -1)  # (B, H, N, P)
        expected = (by_unit * self.activity_loc.unsqueeze(-3)).sum((-1, -2))
        pulled = (residual - expected) / noise
        weights = torch.einsum("...hnq,...nqp->...hnp", by_unit, self.root).flatten(-2) / noise.unsqueeze(-1)
        eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        self.precision = eye + weights.mT @ weights  # (..., N P, N P)
        self.precision_root = cholesky(self.precision)
        whitened = torch.cholesky_solve((weights.mT @ pulled.unsqueeze(-1)), self.precision_root)
        self.whitened_loc = whitened[..., 0].unflatten(-1, self.activity_loc.shape[-2:])  # m, (..., N, P)
        self.blocks = self._blocks(torch.cholesky_inverse(self.precision_root))  # Cov u_n, (..., N, P, P)
        self.loc = loc + self._follow(self.whitened_loc)
        super().__init__(self.loc.shape[:-2], self.loc.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, (..., N, T, K)."""
        return self.loc

    @property
    def covariance(self) -> Tensor:
        """Covariance of each unit over its path, for each latent dimension, (..., N, K, T, T)."""
        gone = torch.eye(self.reads, dtype=self.loc.dtype, device=self.loc.device) - self.blocks
        return self.prior_covariance - self.gain @ gone.unsqueeze(-3) @ self.gain.mT

    @property
    def variance(self) -> Tensor:
        """Variance of each latent, (..., N, T, K)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).mT

    @property
    def lag_covariance(self) -> Tensor:
        """Cov(z_t, z_{t-1}), (..., N, T, K)."""
        lagged = self.covariance.diagonal(offset=-1, dim1=-2, dim2=-1).mT
        return torch.cat([torch.zeros_like(self.loc[..., :1, :]), lagged], -2)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw all units at once, (*sample_shape, ..., N, T, K)."""
        prior = self.prior.expand(self.batch_shape).rsample(sample_shape)
        shocks = self.normals(sample_shape, self.precision.shape[-1], 1)
        away = solve_triangular(self.precision_root.mT, shocks, upper=True)[..., 0]
        whitened = self.whitened_loc + away.unflatten(-1, self.whitened_loc.shape[-2:])
        shift = whitened - self._whiten(prior)
        return prior + self._follow(shift)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return shares (..., N) of the joint log density: log p(z) + log q(u) - log p(u)."""
        whitened = self._whiten(value)
        away = (whitened - self.whitened_loc).flatten(-2).unsqueeze(-1)
        shocks = (self.precision_root.mT @ away)[..., 0]
        density = self.precision_root.diagonal(dim1=-2, dim2=-1).log() - 0.5 * shocks.square()
        change = density.unflatten(-1, whitened.shape[-2:]) + 0.5 * whitened.square()
        return self.prior.log_prob(value) + change.sum(-1)

    def unit_entropy(self) -> Tensor:
        """Entropy of each unit's marginal, (..., N)."""
        return self.prior.entropy() + 0.5 * torch.logdet(self.blocks)

    def information(self) -> tuple[Tensor, Tensor]:
        """Total correlation (...) and mutual information of each unit with the others (..., N)."""
        own = torch.logdet(self.blocks)
        joint = -2 * self.precision_root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        given_others = torch.logdet(self._blocks(self.precision))
        return 0.5 * (own.sum(-1) - joint), 0.5 * (own + given_others).clamp(min=0)

    def _activity(self, z: Tensor) -> Tensor:
        return self.pool_weight * z[..., -self.reads :, :].sum(-1)  # (..., N, P)

    def _whiten(self, z: Tensor) -> Tensor:
        away = (self._activity(z) - self.activity_loc).unsqueeze(-1)
        return solve_triangular(self.root, away, upper=False)[..., 0]

    def _follow(self, whitened: Tensor) -> Tensor:
        """Return where the latents (..., N, T, K) go with the whitened activity (..., N, P)."""
        return (self.gain * whitened[..., None, None, :]).sum(-1).mT

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Return the blocks (..., N, P, P) on the diagonal of a matrix (..., N P, N P)."""
        size = self.reads
        blocks = matrix.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (..., N, P, N, P)
        return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
