"""Modules and plain functions alike: where a program's parameters are, and how to run it for evaluation."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
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


def store_parameters(model: Any, guide: Any, context: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Run a pair once, with and without a future; return what the param store alone holds of it, by name.

    That is all of a plain function, and of a module what it makes with ``pyro.param``, unconstrained. Running the pair
    also lets modules make what they make when first called. Raises ValueError as ``refuse_clashes`` does.
    """
    refuse_clashes(model, guide)
    context, future = context.to(device_of(model)), future.to(device_of(model))
    found: dict[str, Tensor] = {}
    for program in (guide, model):
        for args in ((context, future), (context,)):
            with torch.no_grad(), poutine.block(), poutine.trace(param_only=True) as capture:
                program(*args)
            own = {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()
            sites: dict[str, Any] = dict(capture.trace.nodes)
            stored = {name: site["value"].unconstrained() for name, site in sites.items()}
            found |= {name: value for name, value in stored.items() if id(value) not in own}
    return found


def refuse_clashes(*programs: Any) -> None:
    """Raise ValueError where the param store holds, under a PyroModule's names, parameters that are not its own."""
    held = dict(pyro.get_param_store().named_parameters())
    for program in programs:
        if not isinstance(program, PyroModule):
            continue
        for name, own in program.named_parameters():
            plain = name.removesuffix("_unconstrained")
            for key in (plain, "$$$".join(plain.rsplit(".", 1))):  # as Pyro names a plain module inside a PyroModule
                if key in held and held[key].data_ptr() != own.data_ptr():
                    raise ValueError(
                        f"Pyro's param store holds another parameter {key!r}, which would take the place of this "
                        f"{type(program).__name__}'s: call pyro.clear_param_store(), or build the modules under "
                        "pyro.settings.set(module_local_params=True)"
                    )


def is_leader() -> bool:
    """Return whether this process is the one that writes and speaks, of those that train together."""
    return int(os.environ.get("RANK", 0)) == 0


def check_accelerator(name: str) -> None:
    """Raise ValueError for an accelerator this machine has not."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(name, True):
        raise ValueError(f"this machine has no {name}: use --accelerator cpu or auto")


def check_weights(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError, by name, where the weights ``found`` at ``path`` are not those ``wanted``."""
    for name, value in wanted.items():
        if name not in found:
            raise ValueError(f"{path} does not fit its configuration: it has no {name!r}")
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)} instead of {tuple(value.shape)}"
            raise ValueError(f"{path} does not fit its configuration: {name!r} is {shapes}")
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise ValueError(f"{path} does not fit its configuration: it holds {extra[0]!r}, which the model has not")


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
    modes = {part: part.training for module in modules for part in module.modules()}
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
