"""What the guides share: the plates, the sites, and the walk from the bottom layer to the top."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.protocols import WINDOWS, Amortizable, Evidence, Layer, UnitRows


class Head(nn.Module):
    """The posterior of one layer: subclass it and write ``forward(state, evidence)``.

    ``state`` (..., B, T, F) is what the layer reads, above the first layer with the draws below in it.
    """

    layer: Layer

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


class AmortizedGuide(nn.Module):
    """A guide for every layer of a model, from the bottom up: ``head_of(layer)`` makes the posterior of each.

    A head is any module that maps ``(state, evidence)`` to q(z), see ``Head``. Where one needs a future that is not
    given, the guide samples nothing from there up, and the model's priors fill in. The model is kept as a reference and
    not as a submodule: its parameters stay the model's, also where the posterior reads its encoder.
    """

    model: Amortizable

    def __init__(self, model: Amortizable, head_of: Callable[[Layer], nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        self.heads = nn.ModuleDict({layer.name: head_of(layer) for layer in model.layers})

    def posterior(self, context: Tensor, future: Tensor | None = None) -> TorchDistribution | None:
        """Return q(z) of the first layer, batch (B, N) and event (T, K), or None where it needs a future."""
        evidence = self.model.evidence(context, future)
        return self.heads[self.model.layers[0].name](evidence.state, evidence)

    def forward(self, context: Tensor, future: Tensor | None = None) -> None:
        """Sample every layer's site for ``context`` (B, T, L) and ``future`` (B, H)."""
        evidence = self.model.evidence(context, future)
        state = evidence.state
        with pyro.plate(WINDOWS, context.shape[0], dim=-2):
            for level, layer in enumerate(self.model.layers):
                posterior = self.heads[layer.name](state, evidence)
                if posterior is None:
                    return
                with pyro.plate(f"{layer.name}.units", layer.num_units, dim=-1):
                    z = pyro.sample(layer.site, posterior)
                if level + 1 < len(self.model.layers):
                    state = self.model.rise(level, state, layer.pooled(z))

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
