"""The forecaster: encode a context, sample the units, read the future."""

from collections.abc import Sequence
from typing import Protocol

import pyro
from torch import Tensor, nn

from eve_pyro.distributions import rescaled
from eve_pyro.distributions.volatile import volatile
from eve_pyro.nets import InstanceNorm, InstanceScale
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import OBSERVED, WINDOWS, Evidence, Information, Layer, Readout, UnitRows


class Encoder(Protocol):
    """A module from context (B, T, L) to state (B, T, out_features)."""

    out_features: int

    def __call__(self, context: Tensor, /) -> Tensor:
        """Encode the context."""


class Norm(Protocol):
    """A module from context (B, T, L) to the normalised context and the scale to undo it with, or None."""

    def __call__(self, context: Tensor, /) -> tuple[Tensor, InstanceScale | None]:
        """Normalise the context."""


class Forecaster(nn.Module):
    """One layer of EVE neurons between an encoder and a readout.

    ``context`` (B, T, L) -> instance norm -> ``encoder`` -> state (B, T, F) -> ``layer`` (site ``<layer>.z``) ->
    ``readout`` -> ``y`` (batch (B, 1), event (H,)), in the units of the context: the readout's distribution is moved
    and stretched back, its Jacobian included. With T > 1 successive context windows and an ``AR1Prior`` the units
    persist from the previous window to the current one, which alone is read: the paper's persistence; T is ``path``.
    A ``volatility`` layer, of one unit under a ``VolatilityPrior``, divides the deviations of a normal likelihood by
    the root of its activity: values and paths get Student's tails, and a window is calm or wild as a whole.

    Source: arXiv 2602.18250. Every part is an argument, and swapping one leaves the others alone.
    """

    reads = 1  # path steps that the readout reads, from the end

    def __init__(
        self,
        encoder: Encoder,
        layer: EveLayer,
        readout: Readout,
        horizon: int,
        norm: Norm | None = None,
        path: int = 1,
        volatility: EveLayer | None = None,
    ) -> None:
        super().__init__()
        if horizon < 1 or path < 1:
            raise ValueError(f"horizon and path must be at least 1 step, not {horizon} and {path}")
        self.encoder, self.layer, self.readout = encoder, layer, readout
        self.norm = norm or InstanceNorm()
        self.horizon, self.state_size, self.surprise_size = horizon, encoder.out_features, horizon
        self.path = self.num_steps = path
        self.volatility = volatility

    @property
    def layers(self) -> Sequence[EveLayer]:
        """The layers from the bottom up: the volatility unit, where there is one, and the units."""
        return (self.layer,) if self.volatility is None else (self.volatility, self.layer)

    def rows(self) -> UnitRows | None:
        """Return the loadings of the top layer's units, or None for a readout without any."""
        return self.readout.rows() if hasattr(self.readout, "rows") else None

    def rise(self, layer: Layer, state: Tensor, activity: Tensor) -> Tensor:
        """Return what the layer above ``layer`` reads: the state, as all layers here do."""
        return state

    def given(self, layer: Layer, evidence: Evidence, activity: Tensor) -> Evidence:
        """Return what posteriors above ``layer`` may look at: above the volatility unit, surprises without it."""
        if layer is not self.volatility or evidence.surprise is None:
            return evidence
        return evidence._replace(surprise=activity[..., 0].sqrt() * evidence.surprise)

    def encode(self, context: Tensor) -> tuple[Tensor, InstanceScale | None]:
        """Return the state (B, T, F) that the first layer reads, and the scale of the context."""
        if context.ndim != 3 or context.shape[1] != self.path:
            raise ValueError(f"the context needs shape (windows, {self.path}, steps), not {tuple(context.shape)}")
        normalised, instance = self.norm(context)
        return self.encoder(normalised), instance

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program on ``context`` (B, T, L), observing ``future`` (B, H) if given; return y, (..., B, 1, H)."""
        self._check(future)
        state, instance = self.encode(context)
        with pyro.plate(WINDOWS, context.shape[0], dim=-2):
            below, volatility = state, None
            for layer in self.layers:
                activity = layer(below)
                below = self.rise(layer, below, activity)
                volatility = activity if layer is self.volatility else volatility
            likelihood = self.readout(activity[..., -self.reads :, :], state[:, -self.reads :])
            if volatility is not None:
                likelihood = volatile(likelihood, volatility, self.layers[0].site)
            likelihood = likelihood if instance is None else rescaled(likelihood, *instance)
            observed = None if future is None else future.unsqueeze(-2)
            return pyro.sample(OBSERVED, likelihood, obs=observed)

    def evidence(self, context: Tensor, future: Tensor | None = None) -> Evidence:
        """Return the state, and given ``future`` (B, H) how far it lies from what the context foretells, (B, H).

        Under a factor readout that is the standardised residual (y - f) / V; otherwise the normalised future itself.
        """
        self._check(future)
        state, instance = self.encode(context)
        if future is None:
            return Evidence(state)
        read = state[:, -self.reads :]
        target = future if instance is None else (future - instance.loc[:, 0]) / instance.scale[:, 0]
        surprise = self.readout.surprise(target, read) if hasattr(self.readout, "surprise") else target
        return Evidence(state, surprise)

    def _check(self, future: Tensor | None) -> None:
        if future is not None and future.shape[-1] != self.horizon:
            raise ValueError(f"the windows have a horizon of {future.shape[-1]} steps, the model {self.horizon}")

    def information(self, evidence: Evidence) -> Information | None:
        """Return what the future says of the top layer's activity, or None for a readout that is not linear in it."""
        if evidence.surprise is None or not hasattr(self.readout, "information"):
            return None
        return self.readout.information(evidence.surprise, evidence.state[:, -self.reads :])
