"""The exact posterior of units that a linear-Gaussian likelihood reads."""

from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import cholesky, solve_triangular

from eve_pyro.distributions.joint import JointUnits
from eve_pyro.distributions.paths import path_moments


class ConjugateUnits(JointUnits):
    """p(z | y) where log p(y | a) = pull . a - a . precision . a / 2, a the activity of independent Gaussian units.

    The likelihood sees z through the last P steps of the activity a_n = ``pool_weight`` * sum_k z_nk alone, so that
    p(z | y) = p(z | a) p(a | y): z = z' + G_n (u_n - u'_n) for a draw z' of the prior, with u the activity whitened by
    its prior covariance, u'_n that of z', and u ~ Normal(m, Lambda^-1)::

        Lambda = I + R' precision R,   m = Lambda^-1 R' (pull - precision E a),   R = chol(Cov a)

    Shapes: ``prior`` has batch (..., B, N) and event (T, K); ``precision`` (B, N, P, N, P) and ``pull`` (B, N, P), see
    ``Information``. The covariance across units is exact, so the cost grows with (N P)^3.
    """

    def __init__(self, prior: Any, precision: Tensor, pull: Tensor, pool_weight: float) -> None:
        moments = path_moments(prior)
        if moments is None:
            raise ValueError(f"the conjugate posterior needs Gaussian units, not a prior of {type(prior).__name__}")
        self.prior, self.pool_weight, self.reads = prior, pool_weight, pull.shape[-1]
        loc, covariance = moments  # (..., N, T, K), (..., N, K, T, T)
        self.prior_loc, self.prior_covariance = loc, covariance
        self.activity_loc = self._activity(loc)  # (..., N, P)
        cross = pool_weight * covariance[..., -self.reads :]  # Cov(z_tk, a_p), (..., N, K, T, P)
        self.root = cholesky(pool_weight * cross[..., -self.reads :, :].sum(-3))  # (..., N, P, P)
        self.gain = solve_triangular(self.root.mT.unsqueeze(-3), cross, upper=True, left=False)  # G, (..., N, K, T, P)

        size = pull.shape[-2:].numel()
        expected = precision.flatten(-4, -3).flatten(-2) @ self.activity_loc.flatten(-2).unsqueeze(-1)
        pulled = self.root.mT @ (pull - expected[..., 0].unflatten(-1, pull.shape[-2:])).unsqueeze(-1)
        rooted = torch.einsum("...nqp,...nqms,...msr->...npmr", self.root, precision, self.root)
        eye = torch.eye(size, dtype=pull.dtype, device=pull.device)
        self.precision = eye + rooted.flatten(-4, -3).flatten(-2)  # (..., N P, N P)
        self.spread, self.log_det, self.precision_root = _Inverse.apply(self.precision)
        pulled = pulled.flatten(-3).unsqueeze(-1)
        whitened = self.spread @ pulled
        self.explained = (pulled * whitened).sum((-2, -1))  # of the squared surprise, where E a = 0: (..., B)
        self.whitened_loc = whitened[..., 0].unflatten(-1, self.activity_loc.shape[-2:])  # m, (..., N, P)
        self.blocks = self._blocks(self.spread)  # Cov u_n, (..., N, P, P)
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
        return torch.cat([lagged.new_zeros(*lagged.shape[:-2], 1, lagged.shape[-1]), lagged], -2)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw all units at once, (*sample_shape, ..., N, T, K).

        Gradients follow the linear transport du = dS Lambda (u - m) / 2 of the covariance S, which needs no derivative
        of a Cholesky factor.
        """
        prior = self.prior.expand(self.batch_shape).rsample(sample_shape)
        shocks = self._columns(self.normals(sample_shape, self.precision.shape[-1]))
        away = solve_triangular(self.precision_root.mT, shocks, upper=True)
        away = away + 0.5 * (self.spread - self.spread.detach()) @ (self.precision_root @ shocks)
        away = away.movedim(-1, 0).reshape(*prior.shape[:-3], *self.whitened_loc.shape[-2:])
        whitened = self.whitened_loc + away
        shift = whitened - self._whiten(prior)
        return prior + self._follow(shift)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return shares (..., N) of the joint log density: log p(z) + log q(u) - log p(u)."""
        whitened = self._whiten(value)
        away = self._columns((whitened - self.whitened_loc).flatten(-2))
        exponent = (away * (self.precision @ away)).movedim(-1, 0).reshape(whitened.shape)
        change = 0.5 * (whitened.square() - exponent).sum(-1)
        return self.prior.log_prob(value) + change + 0.5 * self.log_det.unsqueeze(-1) / whitened.shape[-2]

    def unit_entropy(self) -> Tensor:
        """Entropy of each unit's marginal, (..., N)."""
        return self.prior.entropy() + 0.5 * torch.logdet(self.blocks)

    def information(self) -> tuple[Tensor, Tensor]:
        """Total correlation (...) and mutual information of each unit with the others (..., N)."""
        own = torch.logdet(self.blocks)
        given_others = torch.logdet(self._blocks(self.precision))
        return 0.5 * (own.sum(-1) + self.log_det), 0.5 * (own + given_others).clamp(min=0)

    def _activity(self, z: Tensor) -> Tensor:
        return self.pool_weight * z[..., -self.reads :, :].sum(-1)  # (..., N, P)

    def _columns(self, vectors: Tensor) -> Tensor:
        """Return vectors (L..., B, N P) as columns (B, N P, L): a matrix a window serves all draws without a copy."""
        draws = vectors.shape[: vectors.ndim - self.precision.ndim + 1].numel()
        return vectors.reshape(draws, *self.precision.shape[:-1]).movedim(0, -1)

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


class _Inverse(torch.autograd.Function):
    """Inverse, log determinant and Cholesky factor of positive definite matrices; no gradient through the factor.

    Two products of matrices make the gradient, where autograd through ``cholesky_inverse`` takes five times as long.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        root = cholesky(matrix)
        inverse = torch.cholesky_inverse(root)
        ctx.save_for_backward(inverse)
        ctx.mark_non_differentiable(root)
        return inverse, 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1), root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, inverse_grad: Tensor, log_det_grad: Tensor, root_grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        gradient: Tensor = log_det_grad[..., None, None] * inverse - inverse @ inverse_grad @ inverse
        return gradient
