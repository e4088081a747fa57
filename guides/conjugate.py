"""The conjugate guide: no network, the exact posterior under a linear-Gaussian readout."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.guides.base import AmortizedGuide, Head
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import WINDOWS, Amortizable, Evidence, Information, Layer, UnitRows


class Conjugate(AmortizedGuide):
    """q(z | x, y) = p(z | x, y) of the layer that a linear readout reads, covariance across its units included.

    Amortized through the readout's own loadings: the guide has no parameters there, and the local ELBO at beta 1 is the
    exact log density. Layers below the top of a stack are ``FutureAware``. The joint KL is shared out by unit: see
    ``JointUnits``; the shares add up. A volatility unit right below it is exact too, for units whose prior says that it
    is ``centred``, of mean 0; otherwise it is amortized. Raises ValueError, when called, for a readout that is not
    linear in its units.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        top = model.layers[-1]

        def head_of(layer: Layer) -> nn.Module:
            if layer is top:
                return ConjugateHead(layer, model)
            return FutureHead(layer, model.state_size, model.surprise_size, hidden)

        # Between volatility and top layer nothing may be drawn, or the top layer's prior is none given the context.
        alone = model.layers[0] is not top and len(model.layers) == 2
        exact = alone and getattr(top.prior, "centred", False)
        super().__init__(model, head_of, (lambda layer: ConjugateVolatility(layer, model)) if exact else None)

    def forward(self, context: Tensor, future: Tensor | None = None) -> None:
        """Sample every layer's site for ``context`` (B, T, L) and ``future`` (B, H).

        An exact volatility v multiplies the surprises that the units above it explain by sqrt(v), and so their mean:
        one posterior of theirs serves both layers.
        """
        below, top = self.model.layers[0], self.model.layers[-1]
        wild, units_of = self.heads[below.name], self.heads[top.name]
        if future is None or not isinstance(wild, ConjugateVolatility) or not isinstance(units_of, ConjugateHead):
            super().forward(context, future)
            return
        evidence = self.model.evidence(context, future)
        units = units_of(evidence.state, evidence)
        with pyro.plate(WINDOWS, context.shape[0], dim=-2):
            with pyro.plate(f"{below.name}.units", below.num_units, dim=-1):
                v = pyro.sample(below.site, wild.given(units, evidence.state))
            with pyro.plate(f"{top.name}.units", top.num_units, dim=-1):
                pyro.sample(top.site, units.stretched(v[..., 0, 0, 0].sqrt()))


class ConjugateHead(Head):
    """The exact posterior of the top layer."""

    needs_future = True
    model: Amortizable

    def __init__(self, layer: Layer, model: Amortizable) -> None:
        super().__init__(layer)
        object.__setattr__(self, "model", model)  # a reference, as the layer is

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (..., B, N), event (T, K), or None without a future."""
        if evidence.surprise is None:
            return None
        return ConjugateUnits(self.layer.prior(state), information(self.model, evidence), self.layer.pool_weight)

    def rows(self) -> UnitRows:
        """Return the loadings, by which a unit's energy grows without being proportional to their square.

        In prior deviations the exact means of all units have squares that sum to at most the number of steps they
        explain: what loadings without end would give.
        """
        rows = self.model.rows()
        if rows is None:
            raise ValueError("this readout names no rows that move the units: steer it by 'off' or 'penalty'")
        return rows._replace(reach=self.model.surprise_size / (self.layer.num_units * self.layer.latent_dim))


class ConjugateVolatility(ConjugateHead):
    """The exact posterior of the volatility unit, Gamma(c + H / 2, r + Q / 2), the units above it integrated out.

    Q is the squared surprise that the units' prior does not explain. To gradients its parameters are constants, which
    at beta 1 is exact: there the local ELBO is stationary in them.
    """

    def rows(self) -> UnitRows:
        """Return no rows: no band holds a volatility unit."""
        return UnitRows((), None)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (B, 1), event (1, 1), or None without a future."""
        if evidence.surprise is None:
            return None
        units = self.model.layers[-1]
        known = information(self.model, evidence)
        return self.given(ConjugateUnits(units.prior(state), known, units.pool_weight), state)

    @torch.no_grad()
    def given(self, units: ConjugateUnits, state: Tensor) -> TorchDistribution:
        """Return q(v) where ``units`` is the posterior that the units above would have at v = 1."""
        own, left = self.layer.prior(state).base_dist, units.unexplained[..., None, None, None]
        half = 0.5 * self.model.surprise_size
        return dist.Gamma(own.concentration + half, own.rate + 0.5 * left, validate_args=False).to_event(2)


def information(model: Amortizable, evidence: Evidence) -> Information:
    """Return what the future says of the top layer's activity; ValueError for a readout that is not linear in it."""
    known = model.information(evidence)
    if known is None:
        raise ValueError(
            "the conjugate guide needs a readout that is linear in its units: take one, such as FactorReadout with "
            "loadings, or another guide, such as future_aware"
        )
    return known
