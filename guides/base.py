"""What the guides share: the plates, the site, and one method to write."""

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from eve_pyro.protocols import WINDOWS, Amortizable, UnitRows


class AmortizedGuide(nn.Module):
    """A guide for one layer of a model: subclass it and write ``posterior``.

    The model is kept as a reference and not as a submodule: its parameters stay the model's, also where the posterior
    reads its encoder.
    """

    model: Amortizable

    def __init__(self, model: Amortizable) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)

    def posterior(self, context: Tensor, future: Tensor | None) -> TorchDistribution | None:
        """Return q(z | x, y), batch (B, N) and event (T, K), or None where forecasts draw from the prior."""
        raise NotImplementedError(f"{type(self).__name__} needs a method posterior(context, future)")

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor | None:
        """Sample the layer's site for ``context`` (B, T, L) and ``future`` (B, H)."""
        posterior = self.posterior(context, future)
        if posterior is None:
            return None
        layer = self.model.layer
        with (
            pyro.plate(WINDOWS, context.shape[0], dim=-2),
            pyro.plate(f"{layer.name}.units", layer.num_units, dim=-1),
        ):
            return pyro.sample(layer.site, posterior)

    def _rows(self, loc: nn.Linear, log_scale: Tensor | None) -> dict[str, UnitRows]:
        """Return the rows of a linear ``loc`` and of a parameter of N K scales, units first."""
        shape = (self.model.layer.num_units, -1)
        weight, bias = loc.weight.data, loc.bias.data
        scale = None if log_scale is None else log_scale.data.view(shape)
        return {self.model.layer.site: UnitRows((weight.view(*shape, weight.shape[1]), bias.view(shape)), scale)}

    def _by_unit(self, flat: Tensor) -> Tensor:
        """Reshape (B, T, N K) to (B, N, T, K)."""
        layer = self.model.layer
        return flat.unflatten(-1, (layer.num_units, layer.latent_dim)).transpose(-2, -3)
