"""The conjugate guide: no network, the exact posterior under a linear-Gaussian readout."""

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.guides.base import AmortizedGuide, Head
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import Amortizable, Evidence, Layer


class Conjugate(AmortizedGuide):
    """q(z | x, y) = p(z | x, y) of the layer that a linear readout reads, covariance across its units included.

    Amortized through the readout's own loadings: the guide has no parameters there, and the local ELBO at beta 1 is the
    exact log density. Layers below the top of a stack are ``FutureAware``. The joint KL is shared out by unit: see
    ``JointUnits``; the shares add up. Raises ValueError, when called, for a readout that is not linear in its units.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        top = model.layers[-1]

        def head_of(layer: Layer) -> nn.Module:
            if layer is top:
                return ConjugateHead(layer, model)
            return FutureHead(layer, model.state_size, model.surprise_size, hidden)

        super().__init__(model, head_of)


class ConjugateHead(Head):
    """The exact posterior of the top layer."""

    model: Amortizable

    def __init__(self, layer: Layer, model: Amortizable) -> None:
        super().__init__(layer)
        object.__setattr__(self, "model", model)  # a reference, as the layer is

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (..., B, N), event (T, K), or None without a future."""
        if evidence.surprise is None:
            return None
        information = self.model.information(evidence)
        if information is None:
            raise ValueError(
                "the conjugate guide needs a readout that is linear in its units, such as FactorReadout with loadings"
            )
        return ConjugateUnits(self.layer.prior(state), *information, self.layer.pool_weight)
