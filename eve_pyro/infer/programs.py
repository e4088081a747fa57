"""Modules and plain functions alike: where a program's parameters are, and how to run it for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn


class StoreParameters(nn.Module):
    """Parameters that plain functions keep in Pyro's param store, as a module: optimised, saved, loaded in place."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.named = parameters
        for name, value in parameters.items():
            key = name.replace(".", "/")  # a module's names hold no dots
            if isinstance(value, nn.Parameter):
                self.register_parameter(key, value)
            else:
                self.register_buffer(key, value)


def store_parameters(*programs: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return the unconstrained parameters that programs which are no modules use, by name, from one run each."""
    found: dict[str, Tensor] = {}
    for program in programs:
        if isinstance(program, nn.Module):
            continue
        with torch.no_grad(), poutine.block(), poutine.trace(param_only=True) as capture:
            program(*args)
        sites: dict[str, Any] = dict(capture.trace.nodes)
        found |= {name: site["value"].unconstrained() for name, site in sites.items()}
    return found


def device_of(program: Any) -> torch.device:
    """Return the device of a module's parameters; a plain function's is the CPU."""
    first = next(program.parameters(), None) if isinstance(program, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluating(model: Any, guide: Any, seed: int) -> Iterator[None]:
    """Run a pair for evaluation: no gradients, dropout off, Pyro's checks off, and a seed of its own.

    The modes of the modules and the global random state are what they were before, afterwards.
    """
    modules = [program for program in (model, guide) if isinstance(program, nn.Module)]
    modes = [module.training for module in modules]
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)
