"""Windows on their way into a pair: checked, in batches, on its device."""

from collections.abc import Iterator

import torch
from rich.progress import track

from eve_pyro.data import Windows
from eve_pyro.protocols import Batch, Rows


def batches_of(
    windows: Rows, batch_size: int, device: torch.device, progress: bool = False, label: str = "windows"
) -> Iterator[Batch]:
    """Yield batches on ``device``, with a progress bar if asked for; ValueError for no windows, or none in a batch."""
    if not len(windows):
        raise ValueError("there are no windows to look at")
    if batch_size < 1:
        raise ValueError(f"a batch has at least 1 window, not {batch_size}")
    count = -(-len(windows) // batch_size)
    for context, future in track(windows.batches(batch_size), label, count, disable=not progress, transient=True):
        yield Batch(context.to(device), future.to(device))


def check_futures(windows: Rows) -> None:
    """Raise ValueError for windows whose future is yet to come."""
    if isinstance(windows, Windows) and not windows.known:
        raise ValueError("these windows have no future yet: take windows of make_windows, not latest_windows")
