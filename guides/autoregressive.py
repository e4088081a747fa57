"""The autoregressive guide: each path step conditions on the one before."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions import AR1
from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import Amortizable, Layer


class Autoregressive(AmortizedGuide):
    """q(z_nt | z_n,t-1, x, y) = Normal(m_nt + a_nt (z_n,t-1 - m_n,t-1), v_nt^2): a Gaussian chain along the path.

    m, a and v are amortized and start at the prior's own; the exact posterior of linear-Gaussian paths is of this form.
    Over layers, each conditions on the draws below, as all guides here do. A path of one step has nothing to condition
    on: there it is ``FutureAware``.
    """

    def __init__(self, model: Amortizable, hidden: int = 256) -> None:
        kind = ChainHead if model.num_steps > 1 else FutureHead
        super().__init__(model, lambda layer: kind(layer, model.state_size, model.surprise_size, hidden))


class ChainHead(FutureHead):
    """The chains of one layer."""

    def __init__(self, layer: Layer, state_size: int, surprise_size: int, hidden: int) -> None:
        super().__init__(layer, state_size, surprise_size, hidden)
        self.memory = nn.Linear(hidden, self.size)
        nn.init.zeros_(self.memory.weight)
        nn.init.zeros_(self.memory.bias)

    def displaced(self, prior: TorchDistribution, hidden: Tensor) -> TorchDistribution:
        """Return the chains around ``prior``."""
        memory = self.by_unit(self.memory(hidden))
        loc = prior.mean + prior.stddev * self.by_unit(self.loc(hidden))
        chained = isinstance(prior, AR1)
        noise = (prior.noise if chained else prior.stddev) * self.by_unit(self.log_scale(hidden)).clamp(-6.0, 2.0).exp()
        before = prior.transition.clamp(-0.999, 0.999).atanh() if chained else torch.zeros_like(memory)
        return AR1(loc, (before + memory).tanh() * 0.9999, noise[..., :1, :], noise, validate_args=False)
