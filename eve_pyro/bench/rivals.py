"""Rivals of a forecaster of neurons, as plain Pyro models without a neuron: ``y`` alone is sampled.

Each is trained by ``fit`` and scored by ``evaluate`` like any other model, beside the guide ``no_units``.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions import rescaled
from eve_pyro.distributions.integrated import IntegratedFactor
from eve_pyro.distributions.mixture import EqualMixture
from eve_pyro.distributions.quantiles import Quantiles
from eve_pyro.infer.predictive import forecast_latents, forecast_trace, joint, observation
from eve_pyro.likelihoods import FactorReadout, bounded_scale
from eve_pyro.models.forecaster import Encoder, Norm
from eve_pyro.nets import moving_average
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import StandardPrior
from eve_pyro.protocols import OBSERVED, WINDOWS, Guide, Model

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
PASSES = 25  # forward passes behind a forecast of MC dropout


def no_units(context: Tensor, future: Tensor | None = None) -> None:
    """Sample nothing: the guide of a model without latent sites."""


class Plain(nn.Module):
    """Encoder and head: ``context`` (B, T, L) -> instance norm -> ``encoder`` -> ``head`` -> y, as a forecaster does.

    ``head`` is a readout, which reads the last state (B, 1, F) in place of the units' activity.
    """

    def __init__(self, encoder: Encoder, norm: Norm, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.norm, self.head = encoder, norm, head

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program, observing ``future`` (B, H) if given."""
        normalised, instance = self.norm(context)
        state = self.encoder(normalised)[:, -1:]
        likelihood = self.head(state, state)
        return observe(likelihood if instance is None else rescaled(likelihood, *instance), future)


def observe(likelihood: TorchDistribution, future: Tensor | None) -> Tensor:
    """Sample ``y`` from ``likelihood``, batch (B, 1) and event (H,), in the windows plate."""
    with pyro.plate(WINDOWS, likelihood.batch_shape[0], dim=-2):
        return pyro.sample(OBSERVED, likelihood, obs=None if future is None else future.unsqueeze(-2))


class Through(nn.Identity):
    """The decoder that leaves the state as it is, so that heads read it whole."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features


class LowRankHead(nn.Module):
    """A normal of low rank, trained on its exact joint density: location, scale and ``rank`` loadings times a gain.

    It is the factor readout with standard units integrated out, so that it can say what the units can, without them.
    """

    def __init__(self, state_size: int, horizon: int, rank: int) -> None:
        super().__init__()
        layer = EveLayer(StandardPrior(rank), rank)  # no part of the model: it says how many units there would be
        self.rank, self.readout = rank, FactorReadout(layer, state_size, horizon)

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return the multivariate normal of the normalised future, batch (B, 1)."""
        return IntegratedFactor(self.readout(state.new_zeros(len(state), 1, self.rank), state))


class QuantileHead(nn.Module):
    """Nineteen quantiles of every step, each linear in the state and sorted; they start from those of a normal."""

    def __init__(self, state_size: int, horizon: int, start_scale: float = 0.6) -> None:
        super().__init__()
        self.quantiles = nn.Linear(state_size, horizon * len(LEVELS))
        start = dist.Normal(0.0, start_scale).icdf(torch.tensor(LEVELS))
        self.quantiles.bias.data.copy_(start.repeat(horizon))

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return the quantiles of the normalised future, batch (B, 1)."""
        return Quantiles(self.quantiles(state).unflatten(-1, (-1, len(LEVELS))).sort(-1).values, LEVELS)


class DLinear(nn.Module):
    """Two linear maps of the context's seasonal and trend parts, as published, without instance normalisation.

    Trained on the likelihood of normals with one global scale a step: squared error, steps weighted by their precision.
    Source: Zeng et al., AAAI 2023.
    """

    def __init__(self, context_length: int, horizon: int, kernel: int = 25) -> None:
        super().__init__()
        self.kernel = kernel
        self.seasonal, self.trend = nn.Linear(context_length, horizon), nn.Linear(context_length, horizon)
        self.raw_scale = nn.Parameter(torch.zeros(horizon))

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program, observing ``future`` (B, H) if given."""
        last = context[:, -1:]
        smooth = moving_average(last, self.kernel)
        loc = self.seasonal(last - smooth) + self.trend(smooth)
        scale = bounded_scale(self.raw_scale).expand_as(loc)
        return observe(dist.Normal(loc, scale, validate_args=False).to_event(1), future)


def foretold(model: Model, guide: Guide, context: Tensor) -> TorchDistribution:
    """Return what a pair says of the future, batch (B, 1) and event (H,); ValueError where that is no closed form."""
    with pyro.poutine.block():
        model_trace, guide_trace = forecast_trace(model, guide, context)
        whole = joint(observation(model_trace), forecast_latents(model_trace, guide_trace))
    if whole is None:
        raise ValueError("a mixture of forecasts needs members with a closed form, such as deterministic twins")
    return whole


class Ensemble(nn.Module):
    """The equal mixture of trained ``pairs`` of model and guide: a path is of one member, and densities are exact."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        super().__init__()
        self.pairs = list(pairs)
        self.weights = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program, observing ``future`` (B, H) if given."""
        return observe(EqualMixture([foretold(*pair, context) for pair in self.pairs]), future)


class MCDropout(nn.Module):
    """A pair whose dropout stays on: its forecast is the equal mixture of ``passes`` passes; it trains on one.

    Source: Gal & Ghahramani, ICML 2016.
    """

    def __init__(self, pair: tuple[Any, Any], passes: int = PASSES) -> None:
        super().__init__()
        self.model, self.guide = pair
        self.passes = passes

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program, observing ``future`` (B, H) if given."""
        self.model.train()
        members = [foretold(self.model, self.guide, context) for _ in range(1 if self.training else self.passes)]
        self.model.train(self.training)
        return observe(EqualMixture(members), future)
