"""What Gaussian paths have in common: their moments."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from eve_pyro.distributions.ar1 import AR1


def path_moments(fn: object) -> tuple[Tensor, Tensor] | None:
    """Return mean (..., N, T, K) and covariance over the path (..., N, K, T, T) of ``fn`` with event (T, K).

    None for a distribution that is neither independent normals nor an AR(1).
    """
    if isinstance(fn, AR1):
        return fn.mean, fn.covariance
    if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 2 and isinstance(fn.base_dist, Normal):
        return fn.mean, torch.diag_embed(fn.variance.mT)
    return None
