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
    """Lambda_b = I + ``strength``_b A of one ``shared`` A (M, M), symmetric: its spectrum serves every window.

    Every result is a function of A, so that gradients are written in A and not in its eigenvectors, which equal
    eigenvalues leave undetermined. The decomposition is made in double precision.
    """

    def __init__(self, shared: Tensor, strength: Tensor) -> None:
        self.shared, self.strength = shared, strength
        values, self.exact = torch.linalg.eigh(_double(shared.detach()))
        self.spectrum, self.vectors = values.clamp(min=0), self.exact.to(shared)  # (M), (M, M)
        self.values = (1 + _double(strength.detach()).unsqueeze(-1) * self.spectrum).to(shared)  # (B, M)
        self.log_det: Tensor = _LogDet.apply(shared, strength, self.spectrum, self.exact)

    def solve(self, vectors: Tensor) -> Tensor:
        """Return Lambda^-1 x."""
        return self._power(vectors, 1.0)

    def times(self, vectors: Tensor) -> Tensor:
        """Return Lambda x."""
        return vectors + self.strength.unsqueeze(-1) * (vectors @ self.shared)

    def draw(self, shocks: Tensor) -> Tensor:
        """Return draws of Normal(0, Lambda^-1), by its symmetric root; gradients as those of ``Dense``."""
        return self._power(shocks, 0.5)

    def blocks(self, size: int) -> Tensor:
        """Return the blocks on the diagonal of Lambda."""
        eye = torch.eye(size, dtype=self.shared.dtype, device=self.shared.device)
        return eye + self.strength[..., None, None, None] * _diagonal_blocks(self.shared, size)

    def inverse_blocks(self, size: int) -> Tensor:
        """Return those of Lambda^-1."""
        blocks: Tensor = _InverseBlocks.apply(self.shared, self.strength, self.spectrum, self.exact, size)
        return blocks

    def _power(self, vectors: Tensor, power: float) -> Tensor:
        out: Tensor = _Power.apply(vectors, self.shared, self.strength, self.vectors, self.values, power)
        return out


def _double(values: Tensor) -> Tensor:
    """Return ``values`` in double precision, on the CPU where the device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


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


class _Power(torch.autograd.Function):
    """Lambda^-power x for a power of 1, or 1/2, through whose draws gradients follow dx = dS Lambda x / 2.

    In both cases dy = -power Lambda^-1 d(s A) y.
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, shared: Tensor, strength: Tensor, basis: Tensor, values: Tensor, power: float
    ) -> Tensor:
        out: Tensor = (vectors @ basis * values.pow(-power)) @ basis.mT
        ctx.save_for_backward(out, shared, strength, basis, values)
        ctx.power = power
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, shared, strength, basis, values = ctx.saved_tensors
        along = grad @ basis
        to_vectors = (along * values.pow(-ctx.power)) @ basis.mT
        if not any(ctx.needs_input_grad[1:3]):
            return to_vectors, None, None, None, None, None
        pulled = (-ctx.power * along / values) @ basis.mT
        to_strength = (pulled * (out @ shared)).sum(-1).sum_to_size(strength.shape)
        to_shared = (strength.unsqueeze(-1) * pulled).flatten(0, -2).mT @ out.flatten(0, -2)
        return to_vectors, 0.5 * (to_shared + to_shared.mT), to_strength, None, None, None


class _LogDet(torch.autograd.Function):
    """Log determinants (B,) of I + s A, from the spectrum of A."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, strength: Tensor, spectrum: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(strength, spectrum, basis)
        return (_double(strength).unsqueeze(-1) * spectrum).log1p().sum(-1).to(shared)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        strength, spectrum, basis = ctx.saved_tensors
        pulled = _double(grad).unsqueeze(-1) / (1 + _double(strength).unsqueeze(-1) * spectrum)
        to_strength = (pulled * spectrum).sum(-1).to(grad)
        weights = (_double(strength).unsqueeze(-1) * pulled).flatten(0, -2).sum(0)
        return (basis * weights @ basis.mT).to(grad), to_strength, None, None


class _InverseBlocks(torch.autograd.Function):
    """The blocks on the diagonal of (I + s A)^-1, all windows at once.

    The gradient in the basis of A has divided differences of f = 1 / (1 + s lambda), summed over windows first; between
    eigenvalues too close to divide by their distance the derivative takes their place.
    """

    @staticmethod
    def forward(ctx: Any, shared: Tensor, strength: Tensor, spectrum: Tensor, basis: Tensor, size: int) -> Tensor:
        inverse = 1 / (1 + _double(strength).unsqueeze(-1) * spectrum)  # f, (B, M)
        own = basis.unflatten(0, (-1, size))  # (N, P, M)
        outer = (own.unsqueeze(-2) * own.unsqueeze(-3)).flatten(0, -2)  # (N P P, M)
        ctx.save_for_backward(strength, spectrum, basis, inverse, outer)
        ctx.shape = (len(own), size, size)
        return (inverse @ outer.mT).unflatten(-1, ctx.shape).to(shared)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        strength, spectrum, basis, inverse, outer = ctx.saved_tensors
        grad = 0.5 * (grad + grad.mT)
        flat = _double(grad).flatten(-3)  # (B, N P P)
        slope = -_double(strength).unsqueeze(-1) * inverse.square()  # f'
        to_strength = -((flat @ outer) * spectrum * inverse.square()).sum(-1)

        def turned(values: Tensor) -> Tensor:
            """Return V' (sum_b G_b v_bj) V, (M, M), of block diagonal G and ``values`` v (B, M)."""
            summed = (flat.flatten(0, -2).mT @ values.flatten(0, -2)).unflatten(0, ctx.shape)  # (N, P, P, M)
            read = (summed * basis.unflatten(0, ctx.shape[:2]).unsqueeze(-3)).sum(-2)  # (N, P, M)
            return basis.mT @ read.flatten(0, 1)

        distance = spectrum - spectrum.unsqueeze(-1)
        strongest = _double(strength).abs().max()
        near = strongest * distance.abs() <= 1e-5 * (1 + strongest * torch.minimum(spectrum, spectrum.unsqueeze(-1)))
        divided, derived = turned(inverse), turned(slope)
        divided = (divided - divided.mT) / distance.masked_fill(near, 1.0)
        middle = torch.where(near, 0.5 * (derived + derived.mT), divided)
        to_shared = basis @ middle @ basis.mT
        return to_shared.to(grad), to_strength.to(grad), None, None, None
