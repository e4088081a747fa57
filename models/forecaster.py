"""The forecaster: encode a context, sample the units, read the future."""

from typing import Protocol

import pyro
from torch import Tensor, nn

from eve_pyro.distributions import rescaled
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.nets import InstanceNorm
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import OBSERVED, WINDOWS, Readout


class Encoder(Protocol):
    """A module from context (B, T, L) to state (B, T, out_features)."""

    out_features: int

    def __call__(self, context: Tensor, /) -> Tensor:
        """Encode the context."""


class Forecaster(nn.Module):
    """One layer of EVE neurons between an encoder and a readout.

    ``context`` (B, T, L) -> instance norm -> ``encoder`` -> state (B, T, F) -> ``layer`` (site ``<layer>.z``) ->
    ``readout`` -> ``y`` (batch (B, 1), event (H,)), in the units of the context: the readout's distribution is moved
    and stretched back, its Jacobian included.

    Source: arXiv 2602.18250. Every part is an argument, and swapping one leaves the others alone.
    """

    def __init__(
        self, encoder: Encoder, layer: EveLayer, readout: Readout, horizon: int, norm: InstanceNorm | None = None
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"the horizon must be at least 1 step, not {horizon}")
        self.encoder, self.layer, self.readout = encoder, layer, readout
        self.norm = norm or InstanceNorm()
        self.state_size, self.horizon = encoder.out_features, horizon

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program on ``context`` (B, T, L), observing ``future`` (B, H) if given; return y, (..., B, 1, H)."""
        normalised, instance = self.norm(context)
        state = self.encoder(normalised)
        with pyro.plate(WINDOWS, context.shape[0], dim=-2):
            activity = self.layer(state)[..., -1:, :]  # the path's last step: (..., B, 1, N)
            likelihood = rescaled(self.readout(activity, state[:, -1:]), *instance)
            observed = None if future is None else future.unsqueeze(-2)
            return pyro.sample(OBSERVED, likelihood, obs=observed)

    def evidence(self, context: Tensor, future: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the state (B, T, F) and how far ``future`` (B, H) lies from what the context foretells, (B, H).

        Under a factor readout that is the standardised residual (y - f) / V; otherwise the normalised future itself.
        """
        normalised, instance = self.norm(context)
        state = self.encoder(normalised)
        if future is None:
            return state, None
        target = (future - instance.loc[:, 0]) / instance.scale[:, 0]
        if isinstance(self.readout, FactorReadout):
            target = self.readout.standardise(target, state[:, -1])
        return state, target
