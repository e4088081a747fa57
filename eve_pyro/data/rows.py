"""What windows of series and rows of tables have in common: one is gathered, batched and thinned out like the other."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from eve_pyro.protocols import Batch

Positions = Sequence[int] | slice | Tensor


class Selectable(ABC):
    """Rows in order: ``rows[i]`` is a ``Batch`` for a list, a slice or an array of positions ``i``.

    Write ``__len__``, ``_gather`` and ``_take``, which see positions as a slice or a tensor.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def _gather(self, rows: slice | Tensor) -> Batch:
        """Return these rows as a batch."""

    @abstractmethod
    def _take(self, rows: slice | Tensor) -> Self:
        """Return these rows as a selection of their own."""

    def __getitem__(self, index: Positions) -> Batch:
        return self._gather(index if isinstance(index, slice) else torch.as_tensor(index))

    def __getitems__(self, index: list[int]) -> Batch:
        """Gather a batch at once, as a DataLoader asks for it."""
        return self[index]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in order, ``batch_size`` at a time, the last batch smaller."""
        for begin in range(0, len(self), batch_size):
            yield self[begin : begin + batch_size]

    def every(self, stride: int) -> Self:
        """Return every ``stride``-th row."""
        return self._take(slice(None, None, stride))

    def at_most(self, count: int) -> Self:
        """Return about ``count`` rows, evenly spaced over all, or all of them where there are fewer.

        Raises ValueError for a ``count`` below 1.
        """
        if count < 1:
            raise ValueError(f"at least 1 row or window is to be taken, not {count}")
        return self.every(max(1, -(-len(self) // count)))

    def select(self, index: Sequence[int] | Tensor) -> Self:
        """Return the rows at the given positions."""
        return self._take(torch.as_tensor(index, dtype=torch.long))
