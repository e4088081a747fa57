"""The delta guide: a point for every unit."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.guides.base import AmortizedGuide, Head
from eve_pyro.protocols import Amortizable, Evidence, Layer, UnitRows


class PointGuide(AmortizedGuide):
    """q(z_n | x) = Delta(loc_n(h)), loc linear in the encoded context h: a neuron as everybody knows it.

    With beta = 0 it makes the deterministic twin of a forecaster. With beta = 1 it is the MAP estimate: a point's KL
    is taken as -log p(z), its infinite constant left out, as Pyro does.
    """

    def __init__(self, model: Amortizable) -> None:
        size = model.state_size
        super().__init__(model, lambda layer: PointHead(layer, size), lambda layer: PositiveHead(layer, size))


class PointHead(Head):
    """The points of one layer."""

    def __init__(self, layer: Layer, state_size: int) -> None:
        super().__init__(layer)
        self.loc = nn.Linear(state_size, self.size)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution:
        """Return batch (..., B, N), event (T, K)."""
        return dist.Delta(self.by_unit(self.loc(state)), event_dim=2)

    def rows(self) -> UnitRows:
        """Return loc's rows; a point has no scale."""
        return self.rows_of(self.loc, None)


class PositiveHead(PointHead):
    """The point of a volatility unit, which starts at 1."""

    def __init__(self, layer: Layer, state_size: int) -> None:
        super().__init__(layer, state_size)
        nn.init.zeros_(self.loc.weight)
        nn.init.zeros_(self.loc.bias)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution:
        """Return batch (..., B, 1), event (1, 1)."""
        return dist.Delta(self.by_unit(self.loc(state[..., -1:, :])).exp(), event_dim=2)

    def rows(self) -> UnitRows:
        """Return no rows: no band holds a volatility unit."""
        return UnitRows((), None)
