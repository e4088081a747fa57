"""The delta guide: a point for every unit."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.protocols import Amortizable, UnitRows


class PointGuide(AmortizedGuide):
    """q(z_n | x) = Delta(loc_n(h)), loc linear in the encoded context h: a neuron as everybody knows it.

    With beta = 0 it makes the deterministic twin of a forecaster. With beta = 1 it is the MAP estimate: a point's KL
    is taken as -log p(z), its infinite constant left out, as Pyro does.
    """

    def __init__(self, model: Amortizable) -> None:
        super().__init__(model)
        self.loc = nn.Linear(model.state_size, model.layer.num_units * model.layer.latent_dim)

    def posterior(self, context: Tensor, future: Tensor | None) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        state, _ = self.model.evidence(context)
        return dist.Delta(self._by_unit(self.loc(state)), event_dim=2)

    def unit_rows(self) -> dict[str, UnitRows]:
        """Return loc's rows; a point has no scale."""
        return self._rows(self.loc, None)
