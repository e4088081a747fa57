"""Gaussian units as dense normals over all latents at once, and linear readings of them by the textbook."""

import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal

from eve_pyro.distributions import AR1
from eve_pyro.protocols import Information

B, N, H, POOL = 2, 3, 5, 0.7
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def leaf(value):
    return value.double().requires_grad_()


def dense_paths(loc, scale, phi):
    """Independent chains as one normal (..., N T K): Cov(z_t, z_u) = s_t s_u phi^|t - u|, phi (N,)."""
    units, steps, dims = loc.shape[-3:]
    memory = phi.view(-1, 1, 1) ** (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    eyes = torch.eye(units, dtype=loc.dtype), torch.eye(dims, dtype=loc.dtype)
    covariance = torch.einsum("...ntk,...nuk,ntu,nm,kl->...ntkmul", scale, scale, memory, *eyes)
    return MultivariateNormal(loc.flatten(-3), covariance.flatten(-6, -4).flatten(-3))


def prior_of(kind, steps, dims):
    """A prior, the same dense, and its parameters."""
    loc, scale = leaf(torch.randn(B, N, steps, dims)), leaf(torch.rand(B, N, steps, dims) + 0.5)
    if kind == "normal":
        fn, phi = dist.Normal(loc, scale).to_event(2), torch.zeros(N).double()
    else:
        phi = leaf(torch.tensor([0.8, -0.5, 0.95]))
        fn = AR1(loc, phi.view(N, 1, 1), scale)
    return fn, dense_paths(loc, scale, phi), (loc, scale, phi)[: 2 if kind == "normal" else 3]


def conditioned(prior, matrix, noise, value):
    """Return p(z | r) and p(r) of r = matrix z + noise e, by the textbook."""
    gain = matrix @ prior.covariance_matrix
    evidence = MultivariateNormal(
        (matrix @ prior.mean[..., None])[..., 0], gain @ matrix.mT + noise.square().diag_embed()
    )
    regression = torch.linalg.solve(evidence.covariance_matrix, gain).mT
    mean = prior.mean + (regression @ (value - evidence.mean)[..., None])[..., 0]
    covariance = prior.covariance_matrix - regression @ gain
    return MultivariateNormal(mean, 0.5 * (covariance + covariance.mT)), evidence


def by_unit(covariance):
    """The blocks (..., N, D, D) on the diagonal of a covariance (..., N D, N D)."""
    size = covariance.shape[-1] // N
    return torch.stack([covariance[..., n * size :, n * size :][..., :size, :size] for n in range(N)], -3)


def reading(loadings, steps, dims):
    """The matrix (B, H, N T K) from latents to readings: a_np = POOL * sum_k z_ntk at the last steps t."""
    matrix = torch.zeros(B, H, N, steps, dims, dtype=loadings.dtype)
    matrix[..., -loadings.shape[-2] :, :] = POOL * loadings.transpose(-2, -1)[..., None]
    return matrix.flatten(-3)


def linear_model(kind, steps, reads, dims):
    """A prior with its dense form and leaves, and a linear reading of it: loadings, noise and what was read."""
    loadings, noise = leaf(torch.randn(B, H, reads, N)), leaf(torch.rand(B, H) + 0.3)
    return prior_of(kind, steps, dims), (loadings, noise, leaf(torch.randn(B, H)))


def read_by(loadings, noise, value):
    """What a linear reading says of the activity, as the conjugate posterior takes it, and how it is pooled."""
    by_unit = loadings.transpose(-2, -1) / noise[..., None, None]  # (B, H, N, P)
    pull = torch.einsum("bhnp,bh->bnp", by_unit, value / noise)
    precision, square = torch.einsum("bhnp,bhmq->bnpmq", by_unit, by_unit), (value / noise).square().sum(-1)
    return Information(precision, torch.ones_like(square), pull, square), POOL


LINEAR = [  # prior, T, P, K
    ("normal", 1, 1, 1), ("normal", 1, 1, 2), ("normal", 3, 3, 2), ("ar1", 3, 1, 1), ("ar1", 3, 1, 2),
    ("ar1", 3, 3, 1), ("ar1", 3, 3, 2), ("ar1", 3, 2, 2),
]  # fmt: skip
