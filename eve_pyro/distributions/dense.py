"""Torch's multivariate normals with draws that do not copy a matrix for each of them."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor


class DenseNormal(dist.MultivariateNormal):
    """The multivariate normal, drawing the same numbers as torch's."""

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw (*sample_shape, ..., H), reparameterised."""
        shape = self._extended_shape(sample_shape)
        return self.loc + _moved(self._unbroadcasted_scale_tril, _draws(shape, self.loc))


class LowRankNormal(dist.LowRankMultivariateNormal):
    """The multivariate normal of low rank, drawing the same numbers as torch's."""

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw (*sample_shape, ..., H), reparameterised."""
        shape, factor = self._extended_shape(sample_shape), self._unbroadcasted_cov_factor
        common = _moved(factor, _draws(Size((*shape[:-1], factor.shape[-1])), self.loc))
        return self.loc + common + self._unbroadcasted_cov_diag.sqrt() * _draws(shape, self.loc)


def _draws(shape: Size, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)


def _moved(matrix: Tensor, draws: Tensor) -> Tensor:
    """Return matrix (..., H, N) times every one of ``draws`` (S..., ..., N), (S..., ..., H), in one product a batch."""
    batch = draws.shape[draws.ndim - matrix.ndim + 1 : -1]
    flat = draws.reshape(-1, *batch, draws.shape[-1])  # (S, ..., N)
    moved = flat.movedim(0, -2) @ matrix.mT  # (..., S, H)
    return moved.movedim(-2, 0).reshape(*draws.shape[:-1], matrix.shape[-2])
