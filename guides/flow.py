"""The flow guide: a normalizing flow on top of the mean field."""

from collections.abc import Iterable
from typing import cast

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import AffineCoupling, Permute
from pyro.nn import DenseNN
from torch import Tensor, nn
from torch.distributions import Transform

from eve_pyro.distributions.flow import FlowUnits
from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import Amortizable, Layer


class Flow(AmortizedGuide):
    """q(z | x, y): affine coupling layers over all latents of a path step, on top of the future-aware mean field.

    Two couplings (Dinh et al. 2017), each moving one half of the latents given the other; they start as the identity.
    The KL has no closed form: train with ``LocalELBO(sample_kl=True)``. By unit it is shared out as ``FlowUnits``
    shares its density: the shares add up to the joint KL, a single one may be negative and has no meaning of its own.
    Raises ValueError for a layer of one latent.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        super().__init__(model, lambda layer: FlowHead(layer, model.state_size, model.surprise_size, hidden))


class FlowHead(FutureHead):
    """The flow of one layer."""

    def __init__(self, layer: Layer, state_size: int, surprise_size: int, hidden: int) -> None:
        super().__init__(layer, state_size, surprise_size, hidden)
        if self.size < 2:
            raise ValueError(f"a flow couples at least two latents; layer {layer.name!r} has one")
        half = self.size // 2
        nets = [DenseNN(half, [hidden], [self.size - half] * 2) for _ in range(2)]
        for net in nets:
            for parameter in net.layers[-1].parameters():
                nn.init.zeros_(parameter)
        self.couplings = nn.ModuleList(AffineCoupling(half, net) for net in nets)

    def displaced(self, prior: TorchDistribution, hidden: Tensor) -> TorchDistribution:
        """Return the flow of the normals around ``prior``."""
        normals = super().displaced(prior, hidden)
        flip = Permute(torch.arange(self.size - 1, -1, -1, device=hidden.device))
        first, second = cast("Iterable[Transform]", self.couplings)
        return FlowUnits(normals.mean, normals.stddev, [first, flip, second, flip])
