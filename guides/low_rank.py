"""The low-rank guide: units whose posteriors lean the same way."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions.low_rank import LowRankUnits
from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import Amortizable, Layer


class LowRank(AmortizedGuide):
    """q(z | x, y) = Normal(m + s d, diag(s^2 exp(2c)) + U U'), with U of rank ``rank`` across all units of a layer.

    d, c and U are amortized, in units of the prior's deviation s. The joint KL is closed form and shared out by unit:
    see ``JointUnits``; the shares add up. Raises ValueError for a rank that is no whole number, below 1 or
    above the number of units.
    """

    def __init__(self, model: Amortizable, rank: int = 4, hidden: int = 256) -> None:
        super().__init__(model, lambda layer: LowRankHead(layer, model.state_size, model.surprise_size, hidden, rank))


class LowRankHead(FutureHead):
    """The joint posterior of one layer."""

    def __init__(self, layer: Layer, state_size: int, surprise_size: int, hidden: int, rank: int) -> None:
        super().__init__(layer, state_size, surprise_size, hidden)
        if rank != int(rank) or not 1 <= rank <= layer.num_units:
            raise ValueError(
                f"the rank across {layer.num_units} units is 1 to {layer.num_units}, a whole number, not {rank}"
            )
        self.rank = int(rank)
        self.factor = nn.Linear(hidden, self.size * self.rank)
        for parameter in self.factor.parameters():  # at zero no draw would tell one column from another
            nn.init.normal_(parameter, std=0.01)

    def displaced(self, prior: TorchDistribution, hidden: Tensor) -> TorchDistribution:
        """Return the joint normal around ``prior``."""
        normals = super().displaced(prior, hidden)
        parts = self.factor(hidden).unflatten(-1, (-1, self.rank)).movedim(-1, 0)  # (R, ..., T, N K)
        factor = torch.stack([self.by_unit(part) for part in parts], -1)
        return LowRankUnits(normals.mean, normals.stddev, prior.stddev.unsqueeze(-1) * factor)
