"""AR(1) paths of random arguments, and the same as dense normals, built step by step."""

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from eve_pyro.distributions import AR1

B, N, T, K = 3, 2, 5, 2
FORMS = ("stationary", "innovation")


def arguments(form, batch=(B, N), steps=T, dims=K, phi=None, step_phi=True):
    """Random arguments, every one varying by step unless ``step_phi`` is off; ``phi`` fixes the memory."""
    shape = (*batch, steps, dims)
    memory = torch.rand(*batch, steps if step_phi else 1, dims).double() * 1.9 - 0.95
    args = {
        "loc": torch.randn(shape).double(),
        "phi": memory if phi is None else torch.full_like(memory, phi),
        "scale": torch.randn(shape).double().mul(0.5).exp(),
    }
    if form == "innovation":
        args["innovation"] = torch.randn(shape).double().mul(0.5).exp()
    return args


def independent(batch=(B, N), steps=T, dims=K, family=Independent):
    loc, scale = torch.randn(*batch, steps, dims).double(), torch.rand(*batch, steps, dims).double() + 0.3
    return family(Normal(loc, scale), 2)


def dense_moments(loc, phi, scale, innovation=None):
    """Mean (..., K, T) and covariance (..., K, T, T), a row a step, from the definitions in the docstring."""
    loc, phi, scale = (each.mT for each in torch.broadcast_tensors(loc, phi, scale))
    rows = torch.zeros(*loc.shape, loc.shape[-1], dtype=loc.dtype)
    rows[..., 0, 0] = 1.0 if innovation is None else scale[..., 0].square()
    for t in range(1, loc.shape[-1]):
        rows[..., t, :t] = phi[..., t, None] * rows[..., t - 1, :t]
        rows[..., :t, t] = rows[..., t, :t]
        if innovation is None:
            rows[..., t, t] = 1.0
        else:
            noise = innovation.expand(loc.mT.shape).mT[..., t]
            rows[..., t, t] = phi[..., t].square() * rows[..., t - 1, t - 1] + noise.square()
    return loc, rows if innovation is not None else scale[..., None] * rows * scale[..., None, :]


def dense(fn, args=None):
    """The same path as a dense normal over the steps, a chain a batch entry (..., K)."""
    if isinstance(fn, Independent):
        return MultivariateNormal(fn.mean.mT, scale_tril=torch.diag_embed(fn.stddev.mT))
    return MultivariateNormal(*dense_moments(**args))


def pair(form, **options):
    args = arguments(form, **options)
    fn = AR1(**args)
    return fn, dense(fn, args)
