"""Readouts: the units' activity and the encoded context -> p(y | z) of the normalised future.

Each is an ordinary module, called as ``readout(activity, state)`` with activity (..., B, P, N) and state (B, P, F), and
returns a distribution with batch (..., B, 1) and event (H,). P is 1 unless the units' path runs over patches of the
horizon. A decoder is any module with an ``out_features``; a readout of your own is any callable with this signature.
"""

import math
from typing import Literal, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from eve_pyro.distributions.factor import FactorNormal, Held, hold, patches_of
from eve_pyro.protocols import Information, Layer, UnitRows

MIN_SCALE, MAX_SCALE = 0.01, 5.0
HeadScale = Literal["global", "read"]


class Decoder(Protocol):
    """A module from activity (..., N) to features (..., out_features)."""

    out_features: int

    def __call__(self, activity: Tensor, /) -> Tensor:
        """Decode the activity."""


def bounded_scale(raw: Tensor) -> Tensor:
    """Map a real number to a scale in [0.01, 5], in units of the context's deviation.

    Without the upper bound a few windows after a flat context teach a head scales that no other window can use.
    """
    return (F.softplus(raw) + MIN_SCALE).clamp(max=MAX_SCALE)


class NormalReadout(nn.Module):
    """y_h | z ~ Normal(loc_h(z), scale_h^2), the scale ``global`` (one a horizon step) or ``read`` from z.

    Where the units' path runs over P patches of the horizon, each patch is decoded from its own activity by the same
    decoder, and the horizon must be a multiple of P.
    """

    def __init__(self, decoder: Decoder, horizon: int, scale: HeadScale = "read", num_patches: int = 1) -> None:
        super().__init__()
        if scale not in ("global", "read"):
            raise ValueError(f"the scale of a head is 'global' or 'read', not {scale!r}")
        if horizon % num_patches:
            raise ValueError(f"a decoded horizon of {horizon} steps is no multiple of {num_patches} patches")
        self.decoder, length = decoder, horizon // num_patches
        self.loc = nn.Linear(decoder.out_features, length)
        self.bias = nn.Parameter(torch.full((length,), -0.5))
        self.scale = nn.Linear(decoder.out_features, length, bias=False) if scale == "read" else None
        if self.scale is not None:
            nn.init.zeros_(self.scale.weight)

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return independent normals over the horizon."""
        return dist.Normal(*self.loc_scale(activity), validate_args=False).to_event(1)

    def loc_scale(self, activity: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale, each (..., B, 1, H)."""
        features = self.decoder(activity)
        loc = self.loc(features)  # (..., B, P, H / P)
        raw = self.bias if self.scale is None else self.bias + self.scale(features)
        scale = bounded_scale(raw).expand_as(loc)
        return loc.flatten(-2).unsqueeze(-2), scale.flatten(-2).unsqueeze(-2)


class StudentTReadout(NormalReadout):
    """y_h | z ~ StudentT(df_h, loc_h(z), scale_h), with learned degrees of freedom, one a horizon step, above 2."""

    def __init__(self, decoder: Decoder, horizon: int, scale: HeadScale = "read", num_patches: int = 1) -> None:
        super().__init__(decoder, horizon, scale, num_patches)
        self.raw_df = nn.Parameter(torch.full((horizon,), 6.0))

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return independent Student-t values over the horizon."""
        df = 2 + F.softplus(self.raw_df)
        return dist.StudentT(df, *self.loc_scale(activity), validate_args=False).to_event(1)


class CategoricalReadout(nn.Module):
    """y | z ~ Categorical(softmax(logits(z))): the class's number, 0 to C - 1, with batch (..., B, 1), event (1,)."""

    def __init__(self, decoder: Decoder, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a classification needs at least 2 classes, not {num_classes}")
        self.decoder, self.num_classes = decoder, num_classes
        self.logits = nn.Linear(decoder.out_features, num_classes)

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return the distribution of the class."""
        return dist.Categorical(logits=self.logits(self.decoder(activity)).unsqueeze(-2)).to_event(1)

    def surprise(self, target: Tensor, state: Tensor) -> Tensor:
        """Return the class as (B, C): one less what an even guess would say; ValueError for an unknown class."""
        wrong = target[~((target >= 0) & (target < self.num_classes) & (target == target.round()))]
        if len(wrong):
            raise ValueError(f"classes are whole numbers from 0 to {self.num_classes - 1}; found {wrong[0].item():g}")
        return F.one_hot(target[..., 0].long(), self.num_classes) - 1 / self.num_classes


class FactorReadout(nn.Module):
    """y | z ~ FactorNormal: location and scale from the context, dependence from the units.

    Loadings A (H, N) are shared by all windows; each context scales them by a gain exp(g(x)). The
    marginals are Normal(f_h(x), V_h(x)^2) whatever the loadings where the activity is standard: under a standard prior,
    or an AR(1) around it, with pooling ``sqrt``. Otherwise they are normals still, in closed form, of another location
    and deviation. With ``loadings=False`` they are off, which leaves those marginals as independent normals: the
    deterministic twin. What is ``held``, "locations" or "scales", the density of paths does not move: it is left to a
    loss on the marginals, such as the predictive term.
    """

    def __init__(
        self, layer: Layer, state_size: int, horizon: int, loadings: bool = True, held: Held | None = None
    ) -> None:
        super().__init__()
        self.site, self.pool_weight, self.held = layer.site, layer.pool_weight, held
        self.loc = nn.Linear(state_size, horizon)
        self.scale = nn.Linear(state_size, horizon)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, -0.5)
        self.loadings = self.gain = None
        if loadings:
            # Loadings are stored at a third of their size: an adaptive optimizer then learns them three times as fast.
            self.loadings = nn.Parameter(torch.randn(horizon, layer.num_units) * 0.3 / math.sqrt(layer.num_units))
            self.gain = nn.Linear(state_size, 1)
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.gain.bias)

    def forward(self, activity: Tensor, state: Tensor) -> TorchDistribution:
        """Return the future given the units, or the independent normals of the twin."""
        loc, scale = self.loc_scale(state)
        if self.loadings is None or self.gain is None:
            return dist.Normal(loc, scale, validate_args=False).to_event(1)
        gain = self._gain(state).expand(-1, *activity.shape[-2:])
        return FactorNormal(
            loc, scale, 3 * self.loadings, gain, activity, site=self.site, pool_weight=self.pool_weight,
            held=self.held, validate_args=False,
        )  # fmt: skip

    def loc_scale(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of the marginals, each (B, 1, H)."""
        return self.loc(state[:, -1:]), bounded_scale(self.scale(state[:, -1:]))

    def _gain(self, state: Tensor) -> Tensor:
        """Return the gain of each window, (B, 1, 1)."""
        assert self.gain is not None
        return self.gain(state[:, -1:]).clamp(-4.0, 1.5).exp()

    def surprise(self, target: Tensor, state: Tensor) -> Tensor:
        """Return (y - f) / V for a normalised future ``target`` (B, H) and ``state`` (B, P, F)."""
        loc, scale = hold(*self.loc_scale(state), self.held)
        return (target - loc[:, 0]) / scale[:, 0]

    def rows(self) -> UnitRows | None:
        """Return each unit's loadings, (N, H); None for a twin."""
        return None if self.loadings is None else UnitRows((self.loadings.data.mT,), None)

    def information(self, surprise: Tensor, state: Tensor) -> Information | None:
        """Return what a ``surprise`` (B, H) says of the activity, for ``state`` (B, P, F); None for a twin.

        The noise k cancels: with W = k g A the precision is g^2 A'A, and the pull g A'r / k.
        """
        if self.loadings is None or self.gain is None:
            return None
        gain, loadings = self._gain(state)[:, 0], 3 * self.loadings  # (B, 1), (H, N)
        patches = torch.arange(state.shape[-2], device=state.device)
        own = (patches_of(len(loadings), len(patches), state.device) == patches[:, None]).to(gain.dtype)  # (P, H)
        by_patch = own.unsqueeze(-1) * loadings  # (P, H, N)
        surprise = surprise * (1 + gain.square() * loadings.square().sum(-1)).sqrt()  # in deviations of the noise
        pull = gain.unsqueeze(-1) * torch.einsum("...bh,phn->...bnp", surprise, by_patch)
        precision = (by_patch.mT @ loadings).permute(1, 2, 0).diag_embed()  # (N, N, P, P)
        return Information(precision.transpose(1, 2), gain[:, 0].square(), pull, surprise.square().sum(-1))
