"""The stack: layers of EVE neurons above one another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eve_pyro.models.forecaster import Encoder, Forecaster, Norm
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import Readout


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
    ) -> None:
        names = [layer.name for layer in layers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a stack needs at least one layer, and a name for each, not {names}")
        super().__init__(encoder, layers[-1], readout, horizon, norm, path)
        self.below, self.residual = nn.ModuleList(layers[:-1]), residual
        self.lifts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(layer.num_units, encoder.out_features),
                nn.GELU(),
                nn.Linear(encoder.out_features, encoder.out_features),
            )
            for layer in layers[:-1]
        )

    @property
    def layers(self) -> Sequence[EveLayer]:
        """The layers from the bottom up."""
        return (*self.below, self.layer)

    def rise(self, level: int, state: Tensor, activity: Tensor) -> Tensor:
        """Return what layer ``level + 1`` reads, (..., B, T, F)."""
        lifted: Tensor = self.lifts[level](activity)
        return torch.add(state, lifted) if self.residual else lifted
