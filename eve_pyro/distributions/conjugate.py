"""The exact posterior of units that a linear-Gaussian likelihood reads."""

from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Size, Tensor
from torch.linalg import cholesky, solve_triangular

from eve_pyro.distributions.joint import JointUnits
from eve_pyro.distributions.paths import path_moments
from eve_pyro.distributions.precision import Dense, Precision, Spectral
from eve_pyro.protocols import Information


class ConjugateUnits(JointUnits):
    """p(z | y) where log p(y | a) = pull . a - strength a . precision . a / 2, a of independent Gaussian units.

    The likelihood sees z through the last P steps of the activity a_n = ``pool_weight`` * sum_k z_nk alone, so that
    p(z | y) = p(z | a) p(a | y): z = z' + G_n (u_n - u'_n) for a draw z' of the prior, with u the activity whitened by
    its prior covariance, u'_n that of z', and u ~ Normal(m, Lambda^-1)::

        Lambda = I + strength R' precision R,   m = Lambda^-1 R' (pull - strength precision E a),   R = chol(Cov a)

    Shapes: ``prior`` has batch (..., B, N) and event (T, K); for the ``known`` of a likelihood see ``Information``. The
    covariance across units is exact. Where prior covariance and precision are the same for all windows but for a
    strength, one spectrum serves all of them; else every window costs (N P)^3.
    """

    def __init__(self, prior: Any, known: Information, pool_weight: float) -> None:
        moments = path_moments(prior)
        if moments is None:
            raise ValueError(f"the conjugate posterior needs Gaussian units, not a prior of {type(prior).__name__}")
        self.prior, self.pool_weight, self.reads = prior, pool_weight, known.pull.shape[-1]
        self.prior_loc, covariance = moments  # (..., N, T, K), (..., N, K, T, T)
        self.prior_covariance = covariance = _once(covariance)
        self.activity_loc = self._activity(self.prior_loc)  # (..., N, P)
        cross = pool_weight * covariance[..., -self.reads :]  # Cov(z_tk, a_p), (..., N, K, T, P)
        self.root = cholesky(pool_weight * cross[..., -self.reads :, :].sum(-3))  # (..., N, P, P)
        self.gain = solve_triangular(self.root.mT.unsqueeze(-3), cross, upper=True, left=False)  # G, (..., N, K, T, P)

        self.precision = _precision(self.root, known)
        expected = known.precision.flatten(-4, -3).flatten(-2) @ self.activity_loc.flatten(-2).unsqueeze(-1)
        expected = known.strength[..., None, None] * expected[..., 0].unflatten(-1, known.pull.shape[-2:])
        pulled = (self.root.mT @ (known.pull - expected).unsqueeze(-1)).flatten(-3)
        whitened = self.precision.solve(pulled)
        self.unexplained = known.square - (pulled * whitened).sum(-1)  # squared surprise, where E a = 0: (..., B)
        self.whitened_loc = whitened.unflatten(-1, known.pull.shape[-2:])  # m, (..., N, P)
        self.loc = self.prior_loc + self._follow(self.whitened_loc)
        super().__init__(self.loc.shape[:-2], self.loc.shape[-2:], validate_args=False)

    def stretched(self, factor: Tensor) -> "ConjugateUnits":
        """Return the posterior of surprises ``factor`` (..., B) times as large, where E a = 0: its mean is, too."""
        stretched = copy(self)
        stretched.whitened_loc = factor[..., None, None] * self.whitened_loc
        stretched.loc = self.prior_loc + self._follow(stretched.whitened_loc)
        stretched.unexplained = factor.square() * self.unexplained
        stretched._batch_shape = stretched.loc.shape[:-2]
        return stretched

    @cached_property
    def blocks(self) -> Tensor:
        """Cov u_n, (..., N, P, P)."""
        return self.precision.inverse_blocks(self.reads)

    @property
    def mean(self) -> Tensor:
        """Mean, (..., N, T, K)."""
        return self.loc

    @cached_property
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
        """Draw all units at once, (*sample_shape, ..., N, T, K)."""
        prior = self.prior.expand(self.batch_shape).rsample(sample_shape)
        shape = self.whitened_loc.shape[-2:]
        away = self.precision.draw(self.normals(sample_shape, shape.numel()))
        whitened = self.whitened_loc + away.unflatten(-1, shape)
        shift = whitened - self._whiten(prior)
        return prior + self._follow(shift)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return shares (..., N) of the joint log density: log p(z) + log q(u) - log p(u)."""
        whitened = self._whiten(value)
        away = (whitened - self.whitened_loc).flatten(-2)
        exponent = (away * self.precision.times(away)).reshape(whitened.shape)
        change = 0.5 * (whitened.square() - exponent).sum(-1)
        return self.prior.log_prob(value) + change + 0.5 * self.precision.log_det.unsqueeze(-1) / whitened.shape[-2]

    def unit_entropy(self) -> Tensor:
        """Entropy of each unit's marginal, (..., N)."""
        return self.prior.entropy() + 0.5 * _log_det(self.blocks)

    def information(self) -> tuple[Tensor, Tensor]:
        """Total correlation (...) and mutual information of each unit with the others (..., N)."""
        own, given_others = _log_det(self.blocks), _log_det(self.precision.blocks(self.reads))
        return 0.5 * (own.sum(-1) + self.precision.log_det), 0.5 * (own + given_others).clamp(min=0)

    def _activity(self, z: Tensor) -> Tensor:
        return self.pool_weight * z[..., -self.reads :, :].sum(-1)  # (..., N, P)

    def _whiten(self, z: Tensor) -> Tensor:
        away = (self._activity(z) - self.activity_loc).unsqueeze(-1)
        if self.reads == 1:  # thousands of systems of one equation
            return (away / self.root)[..., 0]
        return solve_triangular(self.root, away, upper=False)[..., 0]

    def _follow(self, whitened: Tensor) -> Tensor:
        """Return where the latents (..., N, T, K) go with the whitened activity (..., N, P)."""
        return (self.gain * whitened[..., None, None, :]).sum(-1).mT


def _once(covariance: Tensor) -> Tensor:
    """Return a prior covariance (..., N, K, T, T) without its axes of windows where these are all the same."""
    first = covariance.flatten(0, -5)[0] if covariance.ndim > 4 else covariance
    return first if torch.equal(covariance, first.expand_as(covariance)) else covariance


def _precision(root: Tensor, known: Information) -> Precision:
    """Return I + R' (strength * precision) R."""
    rooted = torch.einsum("...nqms,...msr->...nqmr", known.precision, root)
    rooted = torch.einsum("...nqp,...nqmr->...npmr", root, rooted)
    rooted = rooted.flatten(-4, -3).flatten(-2)  # (..., N P, N P)
    if rooted.ndim == 2:
        return Spectral(rooted, known.strength)
    eye = torch.eye(rooted.shape[-1], dtype=rooted.dtype, device=rooted.device)
    return Dense(eye + known.strength[..., None, None] * rooted)


def _log_det(blocks: Tensor) -> Tensor:
    return blocks[..., 0, 0].log() if blocks.shape[-1] == 1 else torch.logdet(blocks)
