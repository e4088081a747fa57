"""What the guides share: the plates, the sites, and the walk from the bottom layer to the top."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from eve_pyro.priors import VolatilityPrior
from eve_pyro.protocols import WINDOWS, Amortizable, Evidence, Layer, UnitRows

HeadOf = Callable[[Layer], nn.Module]


class Head(nn.Module):
    """The posterior of one layer: subclass it and write ``forward(state, evidence)``.

    ``state`` (..., B, T, F) is what the layer reads, above the first layer with the draws below in it.
    """

    layer: Layer
    needs_future = False  # whether ``forward`` returns None without one

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)  # a reference: the layer's parameters stay the model's
        self.size = layer.num_units * layer.latent_dim

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return q(z), batch (..., B, N) and event (T, K), or None where it needs a future and there is none."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward(state, evidence)")

    def by_unit(self, flat: Tensor) -> Tensor:
        """Reshape (..., T, N K) to (..., N, T, K)."""
        return flat.unflatten(-1, (self.layer.num_units, self.layer.latent_dim)).transpose(-2, -3)

    def rows_of(self, loc: nn.Linear, log_scale: Tensor | None) -> UnitRows:
        """Return the rows of a linear ``loc`` and of a parameter of N K scales, units first."""
        shape = (self.layer.num_units, -1)
        weight, bias = loc.weight.data, loc.bias.data
        scale = None if log_scale is None else log_scale.data.view(shape)
        return UnitRows((weight.view(*shape, weight.shape[1]), bias.view(shape)), scale)


class VolatilityHead(Head):
    """q(v | x, y) = Gamma(c, c / m) of a volatility unit, c and its mean m amortized.

    A hidden layer sees the future's surprise and its mean square; with ``surprise_size`` 0 it sees the context alone.
    """

    def __init__(self, layer: Layer, state_size: int, surprise_size: int, hidden: int = 64) -> None:
        super().__init__(layer)
        self.needs_future = surprise_size > 0
        inputs = state_size + (surprise_size + 1 if self.needs_future else 0)
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 2))
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (..., B, 1), event (1, 1), or None where it needs a future and there is none."""
        seen = state[..., -1, :]
        if self.needs_future:
            if evidence.surprise is None:
                return None
            size = evidence.surprise.square().mean(-1, keepdim=True).add(1e-6).log()
            seen = torch.cat([evidence.surprise, size, seen], -1)
        log_mean, raw = self.net(seen)[..., None, None, None].unbind(-4)
        concentration = 1 + F.softplus(raw + 10)
        return dist.Gamma(concentration, concentration * (-log_mean).exp(), validate_args=False).to_event(2)

    def rows(self) -> UnitRows:
        """Return no rows: no band holds a volatility unit."""
        return UnitRows((), None)


class AmortizedGuide(nn.Module):
    """A guide for every layer of a model, from the bottom up: ``head_of(layer)`` makes the posterior of each.

    A head is any module that maps ``(state, evidence)`` to q(z), see ``Head``. Where one needs a future that is not
    given, the guide samples nothing from there up, and the model's priors fill in. The model is kept as a reference and
    not as a submodule: its parameters stay the model's, also where the posterior reads its encoder.
    """

    model: Amortizable

    def __init__(self, model: Amortizable, head_of: HeadOf, volatility_of: HeadOf | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        volatility_of = volatility_of or (lambda layer: VolatilityHead(layer, model.state_size, model.surprise_size))
        self.heads = nn.ModuleDict()
        for layer in model.layers:
            self.heads[layer.name] = (volatility_of if isinstance(layer.prior, VolatilityPrior) else head_of)(layer)

    def posterior(self, context: Tensor, future: Tensor | None = None) -> TorchDistribution | None:
        """Return q(z) of the first layer, batch (B, N) and event (T, K), or None where it needs a future."""
        evidence = self.model.evidence(context, future)
        return self.heads[self.model.layers[0].name](evidence.state, evidence)

    def forward(self, context: Tensor, future: Tensor | None = None) -> None:
        """Sample every layer's site for ``context`` (B, T, L) and ``future`` (B, H)."""
        if future is None and getattr(self.heads[self.model.layers[0].name], "needs_future", False):
            return  # nothing to sample, nothing to encode
        evidence = self.model.evidence(context, future)
        state = evidence.state
        with pyro.plate(WINDOWS, context.shape[0], dim=-2):
            for layer in self.model.layers:
                posterior = self.heads[layer.name](state, evidence)
                if posterior is None:
                    return
                with pyro.plate(f"{layer.name}.units", layer.num_units, dim=-1):
                    z = pyro.sample(layer.site, posterior)
                activity = layer.pooled(z)
                state, evidence = self.model.rise(layer, state, activity), self.model.given(layer, evidence, activity)

    def unit_rows(self) -> Mapping[str, UnitRows]:
        """Return the rows of every layer; ValueError where a head has none."""
        heads: dict[str, Any] = {layer.site: self.heads[layer.name] for layer in self.model.layers}
        for site, head in heads.items():
            if not hasattr(head, "rows"):
                raise ValueError(
                    f"{type(self).__name__} has no rows that move the units of {site!r}: take another guide, or the "
                    "regimes 'off' and 'penalty'"
                )
        return {site: head.rows() for site, head in heads.items()}
