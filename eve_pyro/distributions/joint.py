"""Units that know of one another: posteriors over a whole layer, reported unit by unit."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.distributions.kl import register_kl

from eve_pyro.distributions.ar1 import AR1, delayed, dynamics, innovations

LOG_2PI_E = 2.8378770664093453  # of the entropy of a normal


class JointUnits(TorchDistribution):
    """A Gaussian over all N units of a layer that looks like one of independent units: batch (..., N), event (T, K).

    So it stands in a units plate. ``log_prob`` (..., N) sums over units to the joint log density; what a single unit's
    share is has no meaning of its own. KL(q || p) to independent units is closed form and shared out as::

        KL_n = KL(q_n || p_n) + TC * I_n / sum_m I_m

    with q_n the marginal of unit n, TC = sum_n H(q_n) - H(q) the total correlation, and I_n the mutual information
    between unit n and all others. The shares add up to KL(q || p) exactly, none is negative, and a unit that is
    independent of the others pays for itself alone.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    @property
    @abstractmethod
    def lag_covariance(self) -> Tensor:
        """Cov(z_t, z_{t-1}) of every unit, (..., N, T, K); 0 at the first step."""

    @abstractmethod
    def unit_entropy(self) -> Tensor:
        """Entropy of each unit's marginal, (..., N)."""

    @abstractmethod
    def information(self) -> tuple[Tensor, Tensor]:
        """Total correlation (...) and the mutual information of each unit with the others (..., N)."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "JointUnits":
        """Return the same distribution for a larger batch; the parameters broadcast."""
        new: JointUnits = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def normals(self, sample_shape: Any, *event: int) -> Tensor:
        """Draw standard normals (*sample_shape, *batch without units, *event)."""
        like = self.mean
        shape = Size(sample_shape) + self.batch_shape[:-1] + Size(event)
        return torch.randn(shape, dtype=like.dtype, device=like.device)


def _kl(q: JointUnits, p: Distribution) -> Tensor:
    """KL(q || p) by unit, see ``JointUnits``: p's units are independent, so that its side needs q's moments only."""
    transition, noise = dynamics(p)
    moved = innovations(q.mean - p.mean, transition).square()
    spread = q.variance + transition.square() * delayed(q.variance) - 2 * transition * q.lag_covariance
    cross = 0.5 * (LOG_2PI_E - 1 + 2 * noise.log() + (spread + moved) / noise.square()).sum((-2, -1))
    total, shared = q.information()
    shared = shared + torch.finfo(shared.dtype).eps  # where rounding is all there is to share, gradients stay small
    weight = shared / shared.sum(-1, keepdim=True)
    return cross - q.unit_entropy() + total.unsqueeze(-1) * weight


for _family in (AR1, Independent):
    register_kl(JointUnits, _family)(_kl)
