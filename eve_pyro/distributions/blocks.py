"""Blocks of a horizon: runs of steps whose means are scored beside the steps themselves."""

import torch
from torch import Tensor
from torch.nn import functional as F

COUNTS = (1, 4)  # blocks of a horizon
SHORTEST = 4  # steps that make a block


def block_sizes(horizon: int) -> tuple[int, ...]:
    """Return the sizes of blocks: the whole horizon, and a quarter of it, where that is 4 steps or more.

    >>> block_sizes(96)
    (96, 24)
    """
    return tuple(size for count in COUNTS if (size := -(-horizon // count)) >= SHORTEST)


def block_lengths(horizon: int, size: int) -> Tensor:
    """Return how many steps each block has, (J,): ``size``, and the last one what is left."""
    return by_block(torch.ones(horizon), size, dim=-1).sum(-1)


def by_block(values: Tensor, size: int, dim: int) -> Tensor:
    """Return axis ``dim`` (< 0) of H steps as two, (J, size), with zeros after the last step."""
    left = -values.shape[dim] % size
    padded = F.pad(values, (0, 0) * (-1 - dim) + (0, left)) if left else values
    return padded.unflatten(dim, (-1, size))


def block_means(values: Tensor, size: int) -> Tensor:
    """Return the means of ``values`` (..., H) over blocks, (..., J)."""
    return by_block(values, size, dim=-1).sum(-1) / block_lengths(values.shape[-1], size).to(values)
