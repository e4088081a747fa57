"""The trajectory: the units' path runs along the horizon, so that sampled forecasts have persistence of their own."""

import torch
from torch import Tensor, nn

from eve_pyro.models.forecaster import Encoder, Forecaster, Norm
from eve_pyro.nets import InstanceScale
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import Readout


class Trajectory(Forecaster):
    """A forecaster whose units take P steps, one for each patch of the horizon, under a prior such as ``AR1Prior``.

    Patch p is read from z_p. What the units read is the encoded context, moved by an embedding of the patch, so that
    with ``ContextualPrior`` marginals the path has a contextual mean and AR(1) deviations. The context is one window.

    Raises ValueError for fewer than two patches or more than steps of the horizon.
    """

    def __init__(
        self,
        encoder: Encoder,
        layer: EveLayer,
        readout: Readout,
        horizon: int,
        norm: Norm | None = None,
        num_patches: int = 6,
        volatility: EveLayer | None = None,
    ) -> None:
        super().__init__(encoder, layer, readout, horizon, norm, volatility=volatility)
        if not 2 <= num_patches <= horizon:
            raise ValueError(f"a trajectory over {horizon} steps needs 2 to {horizon} patches, not {num_patches}")
        self.reads = self.num_steps = num_patches
        self.patches = nn.Parameter(0.02 * torch.randn(num_patches, encoder.out_features))

    def encode(self, context: Tensor) -> tuple[Tensor, InstanceScale | None]:
        """Return the state (B, P, F) of every patch, and the scale of the context."""
        state, instance = super().encode(context)
        # The last patch's state is the encoder's own: what reads it alone is not moved by the embedding's training.
        return state + self.patches - self.patches[-1:], instance
