"""What Gaussian paths have in common: their moments."""

import pyro.distributions as dist
import torch
from torch import Tensor

from eve_pyro.distributions.ar1 import AR1


def path_moments(fn: object) -> tuple[Tensor, Tensor] | None:
    """Return mean (..., N, T, K) and covariance over the path (..., N, K, T, T) of ``fn`` with event (T, K).

    None for a distribution that is neither independent normals nor an AR(1).
    """
    if isinstance(fn, AR1):
        return fn.mean, fn.covariance
    base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
    if isinstance(base, dist.Normal):
        return base.loc, torch.diag_embed(base.variance.mT)
    return None
