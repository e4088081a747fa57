"""Mean-field guides: independent normals for every unit, from the context alone or from the future too."""

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.guides.base import AmortizedGuide, Head, VolatilityHead
from eve_pyro.priors import normal
from eve_pyro.protocols import Amortizable, Evidence, Layer, UnitRows

GuideScale = Literal["scalar", "unit", "input"]


class ContextMeanField(AmortizedGuide):
    """q(z_n | x) = Normal(loc_n(h), scale_n^2), loc linear in the encoded context h: the paper's neuron.

    It never sees the future, so forecasts draw from it. The scale is one ``scalar`` for the layer, one per ``unit``, or
    one per unit and ``input``. Source: arXiv 2602.18250.
    """

    def __init__(self, model: Amortizable, scale: GuideScale = "unit") -> None:
        size = model.state_size
        super().__init__(
            model, lambda layer: ContextHead(layer, size, scale), lambda layer: VolatilityHead(layer, size, 0)
        )


class ContextHead(Head):
    """The normals of one layer, from the context."""

    def __init__(self, layer: Layer, state_size: int, scale: GuideScale) -> None:
        super().__init__(layer)
        if scale not in ("scalar", "unit", "input"):
            raise ValueError(f"the guide's scale is 'scalar', 'unit' or 'input', not {scale!r}")
        self.loc = nn.Linear(state_size, self.size)
        self.log_scale = nn.Parameter(torch.full((1 if scale == "scalar" else self.size,), -1.0))
        self.scale_slope = nn.Linear(state_size, self.size, bias=False) if scale == "input" else None
        if self.scale_slope is not None:
            nn.init.zeros_(self.scale_slope.weight)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution:
        """Return batch (..., B, N), event (T, K)."""
        loc = self.loc(state)
        log_scale = self.log_scale if self.scale_slope is None else self.log_scale + self.scale_slope(state)
        return normal(self.by_unit(loc), self.by_unit(log_scale.expand_as(loc)))

    def rows(self) -> UnitRows:
        """Return loc's rows; they are the displacement where the prior's location is 0."""
        return self.rows_of(self.loc, None if self.log_scale.numel() == 1 else self.log_scale)


class FutureAware(AmortizedGuide):
    """q(z_n | x, y) = Normal(m_n + s_n d_n, (s_n exp(c_n))^2), a displacement from the prior Normal(m_n, s_n^2).

    One hidden layer maps what the layer reads and the future's surprise to d and c, which start at 0. There the
    posterior has the prior's marginals: under a prior of independent normals the KL starts at zero, under an AR(1) at
    the price of denying its persistence. It needs the future: forecasts draw from the prior.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        super().__init__(model, lambda layer: FutureHead(layer, model.state_size, model.surprise_size, hidden))


class FutureHead(Head):
    """The normals of one layer, displaced from its prior."""

    needs_future = True

    def __init__(self, layer: Layer, state_size: int, surprise_size: int, hidden: int = 256) -> None:
        super().__init__(layer)
        self.net = nn.Sequential(nn.Linear(surprise_size + state_size, hidden), nn.GELU())
        self.loc, self.log_scale = nn.Linear(hidden, self.size), nn.Linear(hidden, self.size)
        for part in (self.loc, self.log_scale):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, state: Tensor, evidence: Evidence) -> TorchDistribution | None:
        """Return batch (..., B, N), event (T, K), or None without a future."""
        if evidence.surprise is None:
            return None
        return self.displaced(self.layer.prior(state), self.features(state, evidence.surprise))

    def features(self, state: Tensor, surprise: Tensor) -> Tensor:
        """Return the hidden layer, (..., B, T, hidden); every path step sees the same future."""
        batch = torch.broadcast_shapes(surprise.shape[:-1], state.shape[:-2])  # either may have draws of what is below
        both = surprise.unsqueeze(-2).expand(*batch, state.shape[-2], -1), state.expand(*batch, -1, -1)
        return self.net(torch.cat(both, -1))

    def displaced(self, prior: TorchDistribution, hidden: Tensor) -> TorchDistribution:
        """Return the normals around ``prior``."""
        loc = prior.mean + prior.stddev * self.by_unit(self.loc(hidden))
        scale = prior.stddev * self.by_unit(self.log_scale(hidden)).clamp(-6.0, 2.0).exp()
        return dist.Normal(loc, scale, validate_args=False).to_event(2)

    def rows(self) -> UnitRows:
        """Return the rows of the displacement, and the intercept of the scale."""
        return self.rows_of(self.loc, self.log_scale.bias)
