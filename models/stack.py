"""The stack: layers of EVE neurons above one another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eve_pyro.models.forecaster import Encoder, Forecaster, Norm
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import Layer, Readout


class Stack(Forecaster):
    """A forecaster of several layers, bottom first, each with a site, a prior, a posterior and a local ELBO of its own.

    A layer above the first reads ``lift(activity below)``, added to what the layer below read where ``residual``; its
    prior and its posterior condition on that. The readout reads the top layer. A stack of one layer is the forecaster.

    Raises ValueError for no layer and for two layers of one name.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[EveLayer],
        readout: Readout,
        horizon: int,
        norm: Norm | None = None,
        path: int = 1,
        residual: bool = True,
        volatility: EveLayer | None = None,
    ) -> None:
        names = [layer.name for layer in layers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a stack needs at least one layer, and a name for each, not {names}")
        super().__init__(encoder, layers[-1], readout, horizon, norm, path, volatility)
        self.below, self.residual = nn.ModuleList(layers[:-1]), residual
        width = encoder.out_features
        self.lifts = nn.ModuleDict(
            {
                layer.name: nn.Sequential(nn.Linear(layer.num_units, width), nn.GELU(), nn.Linear(width, width))
                for layer in layers[:-1]
            }
        )

    @property
    def layers(self) -> Sequence[EveLayer]:
        """The layers from the bottom up."""
        lowest, below = super().layers[:-1], (layer for layer in self.below if isinstance(layer, EveLayer))
        return (*lowest, *below, self.layer)

    def rise(self, layer: Layer, state: Tensor, activity: Tensor) -> Tensor:
        """Return what the layer above ``layer`` reads, (..., B, T, F)."""
        if layer.name not in self.lifts:
            return state
        lifted: Tensor = self.lifts[layer.name](activity)
        return torch.add(state, lifted) if self.residual else lifted
