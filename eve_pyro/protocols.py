"""What the parts of a forecaster ask of each other, and the names they share. Nobody has to subclass anything.

Shapes, everywhere in the library:

- ``context`` is ``(B, T, L)``: B windows, T successive context windows of L steps (T = 1 unless the latent path
  runs over the past);
- ``future`` is ``(B, H)``; ``state`` is ``(B, T, F)``, whatever an encoder makes of the context;
- a layer's site ``<layer>.z`` has batch ``(..., B, N)`` and event ``(T, K)``: N units of K latent dimensions;
- the observation ``y`` has batch ``(..., B, 1)`` and event ``(H,)``;
- particles and draws are leftmost. Windows live at plate dim -2, units at plate dim -1.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

WINDOWS = "windows"
OBSERVED = "y"

Latents = Mapping[str, TorchDistribution | None]  # by site; None for a draw that is passed on and no point


class Batch(NamedTuple):
    """Windows as a model sees them: ``context`` (B, T, L) and ``future`` (B, H)."""

    context: Tensor
    future: Tensor


class Rows(Protocol):
    """What training and scoring ask of data: windows of series, or rows of a table."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: Any, /) -> Batch:
        """Return the rows at some positions."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in order, ``batch_size`` at a time."""

    def at_most(self, count: int) -> "Rows":
        """Return about ``count`` rows, evenly spaced."""


class RowSplits(Protocol):
    """Rows for training, validation and testing."""

    @property
    def train(self) -> Rows:
        """What is learned from."""

    @property
    def validation(self) -> Rows:
        """What the best epoch is chosen by."""

    @property
    def test(self) -> Rows:
        """What is scored at the end."""


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
    """Maps ``state`` (B, T, F) to p(z): batch (..., N), broadcastable to (B, N), event (T, K)."""

    def __call__(self, state: Tensor, /) -> TorchDistribution:
        """Return the prior of one layer."""


class Readout(Protocol):
    """Maps ``activity`` (..., B, P, N) and ``state`` (B, P, F) to p(y | z): batch (..., B, 1), event (H,).

    Two more methods are welcome: ``surprise(target, state)``, how far a (normalised) future lies from what the state
    foretells, and ``information(surprise, state)``, where the likelihood is Gaussian in the activity.
    """

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

    def pooled(self, z: Tensor, /) -> Tensor:
        """Return the activity (..., B, T, N) of draws ``z`` (..., B, N, T, K)."""


class Information(NamedTuple):
    """What a future says of the activity a of the units, where the likelihood is Gaussian in it.

    log p(y | a) = pull . a - (strength * a . precision . a + square) / 2 + what does not depend on a or y. ``pull`` is
    (..., B, N, P) and ``square`` (..., B), for the last P path steps of N units; ``precision`` is (N, P, N, P), shared
    by all windows but for ``strength`` (B,), or (B, N, P, N, P).
    """

    precision: Tensor
    strength: Tensor
    pull: Tensor
    square: Tensor

    @classmethod
    def of_linear(cls, surprise: Tensor, loadings: Tensor, noise: Tensor) -> "Information":
        """Return what surprise (B, H) = loadings (B, H, N, P) . activity + noise (B, H) * epsilon says."""
        weights = (loadings / noise[..., None, None]).flatten(-2)  # (B, H, N P)
        shape = loadings.shape[-2:]
        precision = (weights.mT @ weights).unflatten(-1, shape).unflatten(-3, shape)
        pull = ((surprise / noise).unsqueeze(-2) @ weights)[..., 0, :].unflatten(-1, shape)
        return cls(precision, torch.ones_like(surprise[..., 0]), pull, (surprise / noise).square().sum(-1))


class Evidence(NamedTuple):
    """What posteriors may look at: the encoded context ``state`` (B, T, F), and how far the future lies from what the
    context foretells, ``surprise`` (B, H), or None at forecast time.
    """

    state: Tensor
    surprise: Tensor | None = None


class UnitRows(NamedTuple):
    """The parameters of one layer's posterior, units first, as views: changing them in place changes the guide.

    Scaling the rows of ``loc`` (N, ...) by c scales the unit's displacement from its prior by c, or moves it that way.
    ``log_scale`` (N, ...) is the parameter of its scale, or None where there is none of its own. A layer whose ``loc``
    is empty is left alone: no band holds it. ``reach`` is the largest energy that the units can have in the mean, where
    something bounds it.
    """

    loc: tuple[Tensor, ...]
    log_scale: Tensor | None
    reach: float = inf


class Amortizable(Protocol):
    """What a guide of ours needs of a model: its layers, from the bottom up, and what their posteriors may look at."""

    state_size: int
    surprise_size: int
    num_steps: int

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers whose posteriors are asked for; the first one reads ``evidence.state``."""

    def evidence(self, context: Tensor, future: Tensor | None = None, /) -> Evidence:
        """Encode ``context`` (B, T, L) and, if given, ``future`` (B, H)."""

    def rows(self) -> UnitRows | None:
        """Return the rows by which the top layer's units are read, or None for a readout without any."""

    def rise(self, layer: Layer, state: Tensor, activity: Tensor, /) -> Tensor:
        """Return what the layer above ``layer`` reads, (..., B, T, F), given what ``layer`` read and its activity."""

    def given(self, layer: Layer, evidence: Evidence, activity: Tensor, /) -> Evidence:
        """Return what posteriors above ``layer`` may look at, given its activity."""

    def information(self, evidence: Evidence, /) -> Information | None:
        """Return what the future says of the top layer's activity, where the likelihood is Gaussian in it."""


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

    It needs an ``expand`` of its own that returns its like: Pyro's default wraps it, and these methods are gone.
    """

    def conditional(self) -> TorchDistribution:
        """Return p(y | z) itself, as independent values."""

    def marginal(self, latents: Latents, /) -> TorchDistribution | None:
        """Return p(y_h) under ``latents`` as independent values, or None where there is no closed form."""

    def joint(self, latents: Latents, /) -> TorchDistribution | None:
        """Return p(y) under ``latents``, dependence included, or None where there is no closed form."""


@runtime_checkable
class Blockwise(Protocol):
    """A likelihood that knows the means of its values over blocks of steps, which a composite likelihood scores."""

    def blocks(self, latents: Latents, size: int, /) -> TorchDistribution | None:
        """Return p(mean of y over a block) under ``latents``, batch (B, 1) and event (J + 1,), as independent values.

        Blocks are of ``size`` steps, the last one of what is left; after them comes the whole horizon, unless it is one
        block. None where there is no closed form.
        """
