"""The autoregressive guide: each path step conditions on the one before."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.distributions import AR1
from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.protocols import Amortizable, Layer

MAX_CORRELATION = 1 - 1e-6  # of a step with the one before, under the prior, as float32 tells it from 1


class Autoregressive(AmortizedGuide):
    """q(z_nt | z_n,t-1, x, y) = Normal(m_nt + a_nt (z_n,t-1 - m_n,t-1), v_nt^2): a Gaussian chain along the path.

    m, a and v are amortized and start at the prior's own; the exact posterior of linear-Gaussian paths is of this form.
    With s the prior's deviations, a_nt moves between -s_nt / s_n,t-1 and s_nt / s_n,t-1, the prior's a at a lag
    correlation of -1 and 1: above 1 where the deviations grow. What a path's own observations say only shrinks a.
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
        transition = prior.transition if chained else torch.zeros_like(memory)
        growth = prior.stddev / prior.stddev.roll(1, -2)
        before = (transition / growth).clamp(-MAX_CORRELATION, MAX_CORRELATION).atanh()
        moved = growth * ((before + memory).tanh() - before.tanh())  # exactly 0 where nothing is learned
        return AR1(loc, transition + moved, noise[..., :1, :], noise, validate_args=False)
