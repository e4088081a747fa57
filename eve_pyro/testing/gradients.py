"""What trains: a finite loss, and a gradient that reaches every parameter."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.programs import store_parameters
from eve_pyro.protocols import OBSERVED, Guide, Integrable, Model
from eve_pyro.testing.sites import said, samples, traced

DRAWS = 2  # fewer than the windows, so that no axis of draws passes for one of windows
SHAKE = 0.05  # a head that starts at zero does not show yet what it reads
ROUNDS = 3  # shakes over which a gradient must be something else than 0 once


def elbo_loss(model: Model, guide: Guide, context: Tensor, future: Tensor) -> Tensor:
    """Return the local ELBO's loss, every part of which must be finite."""
    elbo = LocalELBO(num_particles=DRAWS, sample_kl=True)
    try:
        with torch.enable_grad(), pyro.validation_enabled(True):
            loss: Tensor = elbo.differentiable_loss(model, guide, context, future)
    except Exception as error:
        raise ValueError(f"LocalELBO(num_particles={DRAWS}, sample_kl=True) fails ({said(error)})") from error
    parts = {f"the KL of site {name!r}": units.kl for name, units in elbo.terms.units.items()}
    for name, values in ({"log p(y | z)": elbo.terms.log_likelihood} | parts).items():
        if not torch.isfinite(values).all():
            raise ValueError(f"the loss is not finite, for {name} is not: keep scales above 0 and draws in the support")
    return loss


def log_density(model: Model, context: Tensor, future: Tensor) -> Tensor:
    """Return log p at a draw of the prior, plus what a model shows to guides and to the predictive term: whatever its
    parameters may serve.
    """
    with torch.enable_grad():
        drawn = samples(traced("the model fails with gradients", model, context, future))
        values = {name: site["value"].detach() for name, site in drawn.items() if not site["is_observed"]}
        given = poutine.condition(model, data=values)  # else what only moves a prior would cancel in its own draws
        trace = traced("the model fails with gradients", given, context, future)
        total: Tensor = torch.as_tensor(trace.log_prob_sum())
        fn = trace.nodes[OBSERVED]["fn"]
        if isinstance(fn, Integrable) and (exact := fn.marginal({name: drawn[name]["fn"] for name in values})):
            total = total + exact.log_prob(future.unsqueeze(-2)).sum()
        if hasattr(model, "evidence"):
            for shown in model.evidence(context, future):
                total = total + (shown * torch.randn_like(shown)).sum()
    return total


def check_gradients(role: str, loss: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """A finite gradient reaches every parameter."""
    tensors = list(parameters.values())
    reached = loss.requires_grad and tensors
    grads = torch.autograd.grad(loss, tensors, allow_unused=True) if reached else [None] * len(tensors)
    for name, grad in zip(parameters, grads, strict=True):
        if grad is None:
            raise ValueError(_unreached(role, name))
        if not torch.isfinite(grad).all():
            raise ValueError(f"the gradient of the parameter {name!r} is not finite: keep scales away from 0")


def check_silence(
    role: str, loss: Callable[[], Tensor], parameters: Mapping[str, Tensor], moved: Iterable[Tensor]
) -> None:
    """A gradient that is exactly 0 everywhere, whatever the values and draws, teaches as little as none."""
    silent, moved = dict(parameters), list(moved)
    for _ in range(ROUNDS):
        if not silent:
            return
        with shaken(moved):
            grads = torch.autograd.grad(loss(), list(silent.values()), allow_unused=True)
        silent = {
            name: value
            for (name, value), grad in zip(silent.items(), grads, strict=True)
            if grad is None or (grad == 0).all()
        }
    for name in silent:
        raise ValueError(_unreached(role, name, "its gradient is 0 at every draw; "))


def _unreached(role: str, name: str, found: str = "") -> str:
    return (
        f"no gradient reaches the parameter {name!r}: {found}let a distribution of the {role} depend on it without "
        "detach or no_grad, or freeze it with requires_grad_(False), or move it to the program that reads it"
    )


def trained_parameters(role: str, program: Any, context: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Return what is trained of a program, by name, after a first run: some make their parameters in it."""
    if isinstance(program, nn.Module):
        return {f"{role}.{name}": p for name, p in program.named_parameters() if p.requires_grad}
    return store_parameters(program, program, context, future)


@contextmanager
def shaken(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Move parameters a little, so that nothing sits at the zeros it starts from, and put them back."""
    before = [(p, p.detach().clone()) for p in {id(p): p for p in parameters}.values()]
    try:
        for p, value in before:
            p.copy_(value + SHAKE * torch.randn_like(value))
        yield
    finally:
        for p, value in before:
            p.copy_(value)
