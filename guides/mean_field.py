"""Mean-field guides: independent normals for every unit, from the context alone or from the future too."""

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.priors import normal
from eve_pyro.protocols import Amortizable, UnitRows

GuideScale = Literal["scalar", "unit", "input"]


class ContextMeanField(AmortizedGuide):
    """q(z_n | x) = Normal(loc_n(h), scale_n^2), loc linear in the encoded context h: the paper's neuron.

    It never sees the future, so forecasts draw from it. The scale is one ``scalar`` for the layer, one per ``unit``, or
    one per unit and ``input``. Source: arXiv 2602.18250.
    """

    def __init__(self, model: Amortizable, scale: GuideScale = "unit") -> None:
        super().__init__(model)
        if scale not in ("scalar", "unit", "input"):
            raise ValueError(f"the guide's scale is 'scalar', 'unit' or 'input', not {scale!r}")
        size = model.layer.num_units * model.layer.latent_dim
        self.loc = nn.Linear(model.state_size, size)
        self.log_scale = nn.Parameter(torch.full((1 if scale == "scalar" else size,), -1.0))
        self.scale_slope = nn.Linear(model.state_size, size, bias=False) if scale == "input" else None
        if self.scale_slope is not None:
            nn.init.zeros_(self.scale_slope.weight)

    def posterior(self, context: Tensor, future: Tensor | None) -> TorchDistribution:
        """Return batch (B, N), event (T, K)."""
        state, _ = self.model.evidence(context)
        loc = self.loc(state)
        log_scale = self.log_scale if self.scale_slope is None else self.log_scale + self.scale_slope(state)
        return normal(self._by_unit(loc), self._by_unit(log_scale.expand_as(loc)))

    def unit_rows(self) -> dict[str, UnitRows]:
        """Return loc's rows; they are the displacement where the prior's location is 0."""
        return self._rows(self.loc, None if self.log_scale.numel() == 1 else self.log_scale)


class FutureAware(AmortizedGuide):
    """q(z_n | x, y) = Normal(m_n + s_n d_n, (s_n exp(c_n))^2), a displacement from the prior Normal(m_n, s_n^2).

    One hidden layer maps the encoded context and the future's surprise to d and c. At d = c = 0 the posterior is the
    prior, so that KL starts at zero. It needs the future: forecasts draw from the prior.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        super().__init__(model)
        size = model.layer.num_units * model.layer.latent_dim
        self.net = nn.Sequential(nn.Linear(model.horizon + model.state_size, hidden), nn.GELU())
        self.loc, self.log_scale = nn.Linear(hidden, size), nn.Linear(hidden, size)
        for head in (self.loc, self.log_scale):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def posterior(self, context: Tensor, future: Tensor | None) -> TorchDistribution | None:
        """Return batch (B, N), event (T, K), or None without a future."""
        if future is None:
            return None
        state, surprise = self.model.evidence(context, future)
        assert surprise is not None
        surprise = surprise[:, None].expand(-1, state.shape[1], -1)  # the same future at every path step
        hidden = self.net(torch.cat([surprise, state], -1))
        prior = self.model.layer.prior(state)
        loc = prior.mean + prior.stddev * self._by_unit(self.loc(hidden))
        scale = prior.stddev * self._by_unit(self.log_scale(hidden)).clamp(-6.0, 2.0).exp()
        return dist.Normal(loc, scale, validate_args=False).to_event(2)

    def unit_rows(self) -> dict[str, UnitRows]:
        """Return the rows of the displacement, and the intercept of the scale."""
        return self._rows(self.loc, self.log_scale.bias)
