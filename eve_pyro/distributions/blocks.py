"""Blocks of a horizon, its quarters and the whole, whose means are scored beside the steps themselves."""

import torch
from torch import Tensor
from torch.nn import functional as F

SHORTEST = 4  # steps that make a block


def block_size(horizon: int) -> int | None:
    """Return the steps of a block: a quarter of the horizon, or all of it where a quarter has fewer than 4 steps.

    None for a horizon of fewer than 4, which has no blocks.

    >>> block_size(96), block_size(12), block_size(3)
    (24, 12, None)
    """
    quarter = -(-horizon // 4)
    return quarter if quarter >= SHORTEST else horizon if horizon >= SHORTEST else None


def by_block(values: Tensor, size: int, dim: int) -> Tensor:
    """Return axis ``dim`` (< 0) of H steps as two, (J, size), with zeros after the last step."""
    left = -values.shape[dim] % size
    padded = F.pad(values, (0, 0) * (-1 - dim) + (0, left)) if left else values
    return padded.unflatten(dim, (-1, size))


def with_whole(sums: Tensor, dim: int) -> Tensor:
    """Return sums over J blocks, along ``dim``, and after them, where J > 1, the sum over all: (J + 1,)."""
    return torch.cat([sums, sums.sum(dim, keepdim=True)], dim) if sums.shape[dim] > 1 else sums


def block_lengths(horizon: int, size: int) -> Tensor:
    """Return how many steps each block has: ``size``, the last one what is left, and the whole horizon after them."""
    return with_whole(by_block(torch.ones(horizon), size, dim=-1).sum(-1), dim=-1)


def block_means(values: Tensor, size: int) -> Tensor:
    """Return the means of ``values`` (..., H) over J blocks and, where J > 1, over the whole horizon: (..., J + 1)."""
    sums = with_whole(by_block(values, size, dim=-1).sum(-1), dim=-1)
    return sums / block_lengths(values.shape[-1], size).to(values)
