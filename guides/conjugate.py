"""The conjugate guide: no network, the exact posterior under a linear-Gaussian readout."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.guides.base import AmortizedGuide, Head
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.priors import VolatilityPrior
from eve_pyro.protocols import Amortizable, Evidence, Information, Layer


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
                return ConjugateHead(layer)
            return FutureHead(layer, model.state_size, model.surprise_size, hidden)

        alone = len([layer for layer in model.layers if not isinstance(layer.prior, VolatilityPrior)]) == 1
        super().__init__(model, head_of, (lambda layer: ConjugateVolatility(layer, top)) if alone else None)


class ConjugateHead(Head):
    """The exact posterior of the top layer."""

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (..., B, N), event (T, K), or None without a future."""
        if evidence.surprise is None:
            return None
        return posterior(self.layer, state, evidence.information)


class ConjugateVolatility(Head):
    """The exact posterior of the volatility unit, Gamma(c + H / 2, r + Q / 2), the ``units`` above integrated out.

    Q is the squared surprise that their prior does not explain. Raises ValueError where their prior's mean is not 0.
    """

    units: Layer

    def __init__(self, layer: Layer, units: Layer) -> None:
        super().__init__(layer)
        object.__setattr__(self, "units", units)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (B, 1), event (1, 1), or None without a future."""
        if evidence.surprise is None:
            return None
        q, own = posterior(self.units, state, evidence.information), self.layer.prior(state)
        if q.prior.mean.count_nonzero():
            raise ValueError("a volatility unit has no conjugate posterior under units whose prior's mean is not 0")
        left = (evidence.information.square - q.explained)[..., None, None, None]
        base, size = own.base_dist, evidence.surprise.shape[-1]
        return dist.Gamma(base.concentration + 0.5 * size, base.rate + 0.5 * left, validate_args=False).to_event(2)


def posterior(layer: Layer, state: Tensor, information: Information | None) -> ConjugateUnits:
    """Return the exact posterior of a layer's units; ValueError for a readout that is not linear in them."""
    if information is None:
        raise ValueError(
            "the conjugate guide needs a readout that is linear in its units, such as FactorReadout with loadings"
        )
    return ConjugateUnits(layer.prior(state), information.precision, information.pull, layer.pool_weight)
