"""Ordinary torch: encoders, the decoder, instance normalisation. Any ``nn.Module`` of the same shapes can stand in."""

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceScale(NamedTuple):
    """The location and scale of each window's last context, each (B, 1, 1)."""

    loc: Tensor
    scale: Tensor


class InstanceNorm(nn.Module):
    """Subtracts each context's mean and divides by its deviation, sqrt(variance + floor^2).

    The floor is in units of the scaled series (1 is the deviation of the training rows). It matters where contexts are
    flat: a deviation of almost nothing turns the next move of the series into a value of thousands.
    """

    def __init__(self, floor: float = 0.2) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"the floor of the context's deviation must be positive, not {floor}")
        self.floor = floor

    def forward(self, context: Tensor) -> tuple[Tensor, InstanceScale]:
        """Return the normalised ``context`` (B, T, L) and the scale to undo it with, from the last window alone."""
        last = context[:, -1:]
        loc = last.mean(-1, keepdim=True)
        scale = (last.var(-1, correction=0, keepdim=True) + self.floor**2).sqrt()
        return (context - loc) / scale, InstanceScale(loc, scale)


class NoNorm(nn.Module):
    """Leaves contexts as they are: for rows of a table, whose values are no time series."""

    def forward(self, context: Tensor) -> tuple[Tensor, None]:
        """Return ``context`` (B, T, L) and no scale."""
        return context, None


def moving_average(context: Tensor, kernel: int = 25) -> Tensor:
    """Return the trend of ``context`` (B, T, L) that DLinear splits off: the mean of ``kernel`` steps, edges repeated.

    Of a shorter context the window is the longest odd one that fits. Source: Zeng et al., AAAI 2023.
    """
    length = context.shape[-1]
    kernel = min(kernel, length - 1 + length % 2)
    return F.avg_pool1d(F.pad(context, (kernel // 2, kernel // 2), mode="replicate"), kernel, 1)


def _branch(widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers = [(nn.Linear(*width), nn.GELU(), nn.Dropout(dropout)) for width in pairwise(widths)]
    return nn.Sequential(*chain.from_iterable(layers))


class LinearEncoder(nn.Module):
    """Linear features of the seasonal and trend parts of a context, and a small nonlinear branch on top of them.

    DLinear's ``moving_average`` splits the context; both parts pass two linear maps without an activation between
    them. ``state`` concatenates ``features`` linear and ``hidden`` nonlinear values, so whatever is linear in the state
    is a linear forecaster with a nonlinear correction. ``dropout`` falls on both. Of ``layers`` of the branch the last
    is ``hidden`` wide, those before it are as wide as the features.
    """

    def __init__(
        self, context_length: int, hidden: int = 256, features: int = 512, dropout: float = 0.1, layers: int = 1
    ) -> None:
        if layers < 1:
            raise ValueError(f"the nonlinear branch has at least 1 hidden layer, not {layers}")
        super().__init__()
        self.context_length, self.out_features = context_length, features + hidden
        self.seasonal, self.trend = nn.Linear(context_length, hidden), nn.Linear(context_length, hidden)
        self.linear = nn.Linear(hidden, features)
        self.branch = _branch([features] * layers + [hidden], dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, context: Tensor) -> Tensor:
        """Map ``context`` (B, T, L) to ``state`` (B, T, features + hidden)."""
        if context.shape[-1] != self.context_length:
            raise ValueError(
                f"the windows have a context of {context.shape[-1]} steps, the encoder {self.context_length}"
            )
        smooth = moving_average(context)
        linear = self.linear(self.seasonal(context - smooth) + self.trend(smooth))
        linear = self.dropout(linear / math.sqrt(self.linear.out_features))  # so Adam's steps stay small on this path
        return torch.cat([linear, self.branch(4 * linear)], -1)


class MLPEncoder(nn.Module):
    """A linear map and a nonlinear branch beside it, for rows of a table."""

    def __init__(self, num_features: int, hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = num_features + hidden
        self.branch = _branch([num_features, hidden], dropout)

    def forward(self, context: Tensor) -> Tensor:
        """Map ``context`` (B, T, L) to ``state`` (B, T, L + hidden)."""
        return torch.cat([context, self.branch(context)], -1)


class MLPDecoder(nn.Module):
    """A nonlinear decoder of the units' activity: a linear skip beside one hidden layer."""

    def __init__(self, num_units: int, hidden: int = 256) -> None:
        super().__init__()
        self.out_features = num_units + hidden
        self.branch = nn.Sequential(nn.Linear(num_units, hidden), nn.GELU())

    def forward(self, activity: Tensor) -> Tensor:
        """Map ``activity`` (..., N) to features (..., N + hidden)."""
        return torch.cat([activity, self.branch(activity)], -1)
