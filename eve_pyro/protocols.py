"""What the parts of a forecaster ask of each other, and the names they share. Nobody has to subclass anything.

Shapes, everywhere in the library:

- ``context`` is ``(B, T, L)``: B windows, T successive context windows of L steps (T = 1 unless the latent path
  runs over the past);
- ``future`` is ``(B, H)``; ``state`` is ``(B, T, F)``, whatever an encoder makes of the context;
- a layer's site ``<layer>.z`` has batch ``(..., B, N)`` and event ``(T, K)``: N units of K latent dimensions;
- the observation ``y`` has batch ``(..., B, 1)`` and event ``(H,)``;
- particles and draws are leftmost. Windows live at plate dim -2, units at plate dim -1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pyro.distributions import TorchDistribution
from torch import Tensor

WINDOWS = "windows"
OBSERVED = "y"


class Batch(NamedTuple):
    """Windows as a model sees them: ``context`` (B, T, L) and ``future`` (B, H)."""

    context: Tensor
    future: Tensor


class Model(Protocol):
    """A Pyro program: samples the units and the observation ``y``, observed when ``future`` is given."""

    def __call__(self, context: Tensor, future: Tensor | None = None, /) -> object:
        """Run the program on B windows."""


class Guide(Protocol):
    """A Pyro program with the model's signature.

    Called with ``future``, it samples every latent site of the model. Called without, it samples only the sites whose
    posterior needs no future; the model's prior then fills in the others. So a forecast is always ``guide(context)``,
    then ``model(context)`` replayed against it.
    """

    def __call__(self, context: Tensor, future: Tensor | None = None, /) -> object:
        """Run the program on B windows."""


class Prior(Protocol):
    """Maps ``state`` (B, T, F) to p(z): batch broadcastable to (B, N), event (T, K)."""

    def __call__(self, state: Tensor, /) -> TorchDistribution:
        """Return the prior of one layer."""


class Readout(Protocol):
    """Maps ``activity`` (..., B, 1, N) and ``state`` (B, 1, F) to p(y | z): batch (..., B, 1), event (H,)."""

    def __call__(self, activity: Tensor, state: Tensor, /) -> TorchDistribution:
        """Return the likelihood of the (normalised) future."""


class Layer(Protocol):
    """What readouts and guides may know of a layer of units."""

    name: str
    num_units: int
    latent_dim: int
    pool_weight: float

    @property
    def site(self) -> str:
        """The name of the layer's sample site."""

    @property
    def prior(self) -> Prior:
        """The prior of its units."""


class Amortizable(Protocol):
    """What a guide of ours needs of a model: one layer, and what the posterior of its units may look at."""

    state_size: int
    horizon: int

    @property
    def layer(self) -> Layer:
        """The layer whose posterior is asked for."""

    def evidence(self, context: Tensor, future: Tensor | None = None, /) -> tuple[Tensor, Tensor | None]:
        """Return the encoded context (B, T, F) and, given ``future``, its surprise (B, H) in the model's own terms."""


class UnitRows(NamedTuple):
    """The parameters of one layer's posterior, units first, as views: changing them in place changes the guide.

    Scaling the rows of ``loc`` (N, ...) by c scales the unit's displacement from its prior by c. ``log_scale`` (N, ...)
    is the parameter of its scale, or None where there is none of its own.
    """

    loc: tuple[Tensor, ...]
    log_scale: Tensor | None


@runtime_checkable
class Steerable(Protocol):
    """A guide whose units can be steered while they train."""

    def unit_rows(self) -> Mapping[str, UnitRows]:
        """Return the rows of every site."""


class Controller(Protocol):
    """What steers a training: its Lightning callbacks, made anew for each ``fit``."""

    def callbacks(self) -> Sequence[Any]:
        """Return the callbacks, in the order in which they act."""


@runtime_checkable
class Integrable(Protocol):
    """A likelihood p(y | z) that can integrate its latents out in closed form.

    ``conditional`` is p(y | z) itself, as independent values.
    """

    conditional: TorchDistribution

    def marginal(self, latents: Mapping[str, TorchDistribution | None], /) -> TorchDistribution | None:
        """Return p(y_h) under ``latents`` as independent values, or None where there is no closed form."""

    def joint(self, latents: Mapping[str, TorchDistribution | None], /) -> TorchDistribution | None:
        """Return p(y) under ``latents``, dependence included, or None where there is no closed form."""
