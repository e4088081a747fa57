"""Precision matrices of many windows, I + s A: one by one, or all of them through the spectrum of one shared A."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import cholesky, solve_triangular


class Precision(Protocol):
    """What a posterior asks of its precision Lambda (B, M, M); vectors are (..., B, M)."""

    log_det: Tensor

    def solve(self, vectors: Tensor) -> Tensor:
        """Return Lambda^-1 x."""

    def times(self, vectors: Tensor) -> Tensor:
        """Return Lambda x."""

    def draw(self, shocks: Tensor) -> Tensor:
        """Return draws of Normal(0, Lambda^-1) made of standard normals, differentiable."""

    def blocks(self, size: int) -> Tensor:
        """Return the blocks (B, M / size, size, size) on the diagonal of Lambda."""

    def inverse_blocks(self, size: int) -> Tensor:
        """Return those of Lambda^-1."""


class Dense:
    """Precisions (B, M, M), each with a factorisation of its own."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.inverse, self.log_det, self.root = _Inverse.apply(matrix)

    def solve(self, vectors: Tensor) -> Tensor:
        """Return Lambda^-1 x."""
        return self._by_window(self.inverse, vectors)

    def times(self, vectors: Tensor) -> Tensor:
        """Return Lambda x."""
        return self._by_window(self.matrix, vectors)

    def draw(self, shocks: Tensor) -> Tensor:
        """Return draws of Normal(0, Lambda^-1).

        Gradients follow the linear transport dx = dS Lambda x / 2 of the covariance S, which needs no derivative of a
        Cholesky factor.
        """
        columns = self._columns(shocks)
        away = solve_triangular(self.root.mT, columns, upper=True)
        away = away + 0.5 * (self.inverse - self.inverse.detach()) @ (self.root @ columns)
        return away.movedim(-1, 0).reshape(shocks.shape)

    def blocks(self, size: int) -> Tensor:
        """Return the blocks on the diagonal of Lambda."""
        return _diagonal_blocks(self.matrix, size)

    def inverse_blocks(self, size: int) -> Tensor:
        """Return those of Lambda^-1."""
        return _diagonal_blocks(self.inverse, size)

    def _by_window(self, matrix: Tensor, vectors: Tensor) -> Tensor:
        return (matrix @ self._columns(vectors)).movedim(-1, 0).reshape(vectors.shape)

    def _columns(self, vectors: Tensor) -> Tensor:
        """Return vectors (L..., B, M) as columns (B, M, L): a matrix a window serves all draws without a copy."""
        draws = vectors.shape[: vectors.ndim - self.matrix.ndim + 1].numel()
        return vectors.reshape(draws, *self.matrix.shape[:-1]).movedim(0, -1)


class Spectral:
    """Lambda_b = I + ``strength``_b A of one ``shared`` A (M, M): its spectrum serves every window.

    The decomposition is made in double precision; every result is a function of the spectrum alone, so that its
    gradient does not see which eigenvectors stand for equal eigenvalues.
    """

    def __init__(self, shared: Tensor, strength: Tensor) -> None:
        values, vectors = _Spectrum.apply(shared.double())
        self.vectors = vectors.to(shared.dtype)
        self.values = 1 + strength.unsqueeze(-1) * values.clamp(min=0).to(shared.dtype)  # (B, M)
        self.log_det = self.values.log().sum(-1)

    def solve(self, vectors: Tensor) -> Tensor:
        """Return Lambda^-1 x."""
        return self._through(vectors, 1 / self.values)

    def times(self, vectors: Tensor) -> Tensor:
        """Return Lambda x."""
        return self._through(vectors, self.values)

    def draw(self, shocks: Tensor) -> Tensor:
        """Return draws of Normal(0, Lambda^-1), by its symmetric root."""
        return self._through(shocks, self.values.rsqrt())

    def blocks(self, size: int) -> Tensor:
        """Return the blocks on the diagonal of Lambda."""
        return self._blocks(self.values, size)

    def inverse_blocks(self, size: int) -> Tensor:
        """Return those of Lambda^-1."""
        return self._blocks(1 / self.values, size)

    def _through(self, vectors: Tensor, values: Tensor) -> Tensor:
        return (vectors @ self.vectors * values) @ self.vectors.mT

    def _blocks(self, values: Tensor, size: int) -> Tensor:
        own = self.vectors.unflatten(0, (-1, size))  # (M / size, size, M)
        outer = own.unsqueeze(-2) * own.unsqueeze(-3)  # (M / size, size, size, M)
        return (values @ outer.flatten(0, -2).mT).unflatten(-1, outer.shape[:-1])


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
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


class _Spectrum(torch.autograd.Function):
    """Eigenvalues and eigenvectors of a symmetric matrix, for functions of the spectrum alone.

    Their gradient between two eigenvectors of the same eigenvalue cancels; torch's own divides it by the distance of the
    eigenvalues all the same, so that zero by zero becomes NaN where there are more units than steps to read them.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, values_grad: Tensor, vectors_grad: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        distance = values - values.unsqueeze(-1)
        near = distance.abs() <= 1e-10 * values.abs().max()
        turned = (vectors.mT @ vectors_grad) / distance.masked_fill(near, torch.inf)
        gradient: Tensor = vectors @ (turned + values_grad.diag_embed()) @ vectors.mT
        return 0.5 * (gradient + gradient.mT)
