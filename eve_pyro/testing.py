"""What every model and every guide must do, checked on a small batch: ours, and a user's functions or modules.

    def test_my_pair():
        check_model(model, (context, future))  # (B, T, L) and (B, H), at least 3 windows that differ
        check_guide(model, guide, (context, future))

A check returns None, or raises ValueError with the first fault, the most basic one first, and how to mend it. It leaves
the random state, modes, gradients and values of parameters as they were. Modules are checked in eval mode; set modules
that plain functions hold to it yourself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from eve_pyro.distributions import AR1
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import Program, latent_sites, observation, vectorized
from eve_pyro.infer.programs import evaluating, refuse_clashes, store_parameters
from eve_pyro.infer.terms import check_sites
from eve_pyro.protocols import OBSERVED, Guide, Model

Sites = dict[str, Any]
DRAWS = 2  # fewer than the windows, so that no axis of draws passes for one of windows
CALL = "it is called with (context, future) and with (context) alone, on any number of windows"
SHAKE = 0.05  # a head that starts at zero does not show yet what it reads
ROUNDS = 3  # shakes over which a gradient must be something else than 0 once


def check_model(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError unless ``model`` can be trained and forecast with, see the module."""
    context, future = _batch(batch)
    with evaluating(model, None, seed=0):
        refuse_clashes(model)
        given, alone = (_model_sites(model, context, future, observed) for observed in (True, False))
        if list(given) != list(alone):
            raise ValueError(
                f"the model samples {[*given]} with a future and {[*alone]} without one: let the future decide only obs"
            )
        parameters = _parameters("model", model, context, future)
        _check_gradients("model", _log_density(model, context, future), parameters)
        with _shaken(parameters.values()):
            _check_causal(model, context, future)
            _check_parts("model", model, context, future)
        _check_silence("model", lambda: _log_density(model, context, future), parameters, parameters.values())


def check_guide(model: Model, guide: Guide, batch: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError unless ``guide`` is an amortised posterior of the latent sites of ``model``, see the module."""
    context, future = _batch(batch)
    with evaluating(model, guide, seed=0):
        refuse_clashes(model, guide)
        latents = _model_sites(model, context, future, observed=True)
        _check_finite("guide", guide)
        for args in ((context, future), (context,)):
            trace = _run(f"the guide fails {'with' if len(args) == 2 else 'without'} a future", guide, *args)
            trace.compute_score_parts()
            (check_sites if len(args) == 2 else _check_leading)(latents, trace)
            _check_like_model(latents, trace)
            _check_moments(trace)
        own = _parameters("guide", guide, context, future)
        _check_gradients("guide", _loss(model, guide, context, future), own)
        everything = [*own.values(), *_parameters("model", model, context, future).values()]
        with _shaken(everything):
            _check_parts("guide", guide, context, future)
            _check_amortised(latents, guide, context, future)
        _check_silence("guide", lambda: _loss(model, guide, context, future), own, everything)


def _batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    context, future = batch
    if context.ndim != 3 or future.ndim != 2 or not len(context) == len(future) >= 3:
        raise ValueError(
            f"a batch is context (B, T, L) and future (B, H), B >= 3, not {[*context.shape]} and {[*future.shape]}"
        )
    for name, values in (("contexts", context), ("futures", future)):
        if not torch.isfinite(values).all() or (values == values[:1]).all():
            raise ValueError(f"the {name} are all alike or not finite: pass windows that differ")
    return context, future


def _run(fault: str, program: Program, *args: Tensor, mend: str = CALL) -> Trace:
    with poutine.trace() as tracer:
        try:
            program(*args)
        except Exception as error:
            sites: list[Any] = list(tracer.trace.nodes.values())
            sizes = [f"{s['name']!r} of size {s['fn'].size}" for s in sites if poutine.util.site_is_subsample(s)]
            plates = f", in plates {', '.join(sizes)}" if sizes else ""
            raise ValueError(f"{fault}{plates} ({_said(error)}): {mend}") from error
    return poutine.util.prune_subsample_sites(tracer.trace)


def _said(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")


def _model_sites(model: Model, context: Tensor, future: Tensor, observed: bool) -> Sites:
    """Run the model with or without its future, check its sites one by one, and return the latent ones."""
    _check_finite("model", model)
    args = (context, future) if observed else (context,)
    trace = _run(f"the model fails {'with' if observed else 'without'} a future", model, *args)
    latents, fn, site = latent_sites(trace), observation(trace), _samples(trace)[OBSERVED]
    if fn.event_shape != future.shape[1:]:
        raise ValueError(f"site {OBSERVED!r} has event {tuple(fn.event_shape)}, not the horizon ({future.shape[1]},)")
    for each in (site, *latents.values()):
        _check_frames(each, len(future))
        _check_path("model", each)
    value, truth = site["value"], future.unsqueeze(-2)
    if site["is_observed"] != observed or value.shape != truth.shape or (observed and (value != truth).any()):
        raise ValueError(
            f"site {OBSERVED!r} does not observe the future: pass obs=future.unsqueeze(-2), and obs=None without one"
        )
    if not torch.isfinite(fn.log_prob(value)).all():
        raise ValueError(f"log p of site {OBSERVED!r} is not finite: keep its scale positive and its location finite")
    return latents


def _check_frames(site: Any, num_windows: int) -> None:
    """A model's site stands in the windows plate, and its batch is what its plates say."""
    name, frames, batch = site["name"], _frames(site), tuple(site["fn"].batch_shape)
    if -2 not in frames or frames[-2][1] != num_windows or not set(frames) <= {-1, -2}:
        raise ValueError(
            f"the model's site {name!r} stands in {_plates(frames)}: sample it in pyro.plate('windows', len(context), "
            f"dim=-2), here of size {num_windows}, with units at dim -1 and all further axes as event dims"
        )
    expected = (num_windows, frames.get(-1, ("", 1))[1])
    if batch != expected:
        raise ValueError(
            f"the model's site {name!r} has batch {batch} in {_plates(frames)}, not {expected}: open a plate for every "
            "batch axis, or make the axis an event dim with .to_event"
        )


def _frames(site: Any) -> dict[int, tuple[str, int]]:
    return {frame.dim: (frame.name, frame.size) for frame in site["cond_indep_stack"] if frame.vectorized}


def _plates(frames: Mapping[int, tuple[str, int]]) -> str:
    return " and ".join(f"plate {n!r} (dim {dim}, size {size})" for dim, (n, size) in frames.items()) or "no plate"


def _check_like_model(latents: Sites, trace: Trace) -> None:
    """A guide's sites stand in the model's plates, auxiliary ones with the site they serve, and have its shapes."""
    for name, mine in _samples(trace).items():
        served = max((each for each in latents if name == each or name.startswith(f"{each}_")), key=len)
        here, there = _frames(mine), _frames(latents[served])
        if here != there:
            raise ValueError(
                f"the guide's site {name!r} stands in {_plates(here)}, the model's in {_plates(there)}: open the "
                "model's plates, of the same names, dims and sizes"
            )
        own, its = ((tuple(s["fn"].batch_shape), tuple(s["fn"].event_shape)) for s in (mine, latents[served]))
        if own != its and name == served:
            raise ValueError(
                f"the guide's site {name!r} has batch {own[0]} and event {own[1]}, the model's {its[0]} and {its[1]}: "
                "reshape it, or declare event dims with .to_event"
            )
        if (_mask(mine) < _mask(latents[served])).any():
            raise ValueError(
                f"the guide's site {name!r} is masked where the model's is not, so that its KL does not count: take "
                "poutine.mask away, or mask the model's site too"
            )


def _mask(site: Any) -> Tensor:
    """Return what counts of a site, as a tensor of ones and zeros that broadcasts to its batch."""
    counts = torch.ones((), dtype=torch.int)
    for mask in (site["mask"], getattr(site["fn"], "_mask", None)):
        counts = counts if mask is None else counts * torch.as_tensor(mask).int()
    return counts


def _check_moments(trace: Trace) -> None:
    """Draws and locations are finite, scales positive; a point has none."""
    for name, site in _samples(trace).items():
        fn = _base(site["fn"])
        _check_path("guide", site)
        try:
            loc = fn.loc if hasattr(fn, "loc") else fn.mean
            scale = fn.scale if hasattr(fn, "scale") else fn.stddev
        except NotImplementedError:  # moments without a closed form
            loc, scale = site["value"], torch.ones(())
        if not isinstance(fn, dist.Delta) and not ((scale > 0) & torch.isfinite(scale)).all():
            raise ValueError(f"the guide's site {name!r} has a scale that is not positive: use exp or softplus")
        if not (torch.isfinite(loc).all() and torch.isfinite(site["value"]).all()):
            raise ValueError(f"the guide's site {name!r} has a location or draws that are not finite")


def _check_path(role: str, site: Any) -> None:
    """The arguments of an AR(1) are numbers in its bounds: its moments alone would not show all that is wrong."""
    fn = _base(site["fn"])
    if not isinstance(fn, AR1):
        return
    where, positive = f"the {role}'s site {site['name']!r} is an AR(1) whose", "above 0: take its exp or softplus"
    bounds = {"scale": (0.0, torch.inf, positive), "innovation": (0.0, torch.inf, positive)}
    if fn.innovation is None:
        bounds["phi"] = (-1.0, 1.0, "between -1 and 1: take its tanh")
    for name in ("loc", "phi", "scale", "innovation"):
        value = getattr(fn, name)
        if value is None:
            continue
        if not torch.isfinite(value).all():
            raise ValueError(f"{where} {name} is not finite (NaN or inf)")
        low, high, mend = bounds.get(name, (-torch.inf, torch.inf, ""))
        if not ((low < value) & (value < high)).all():
            raise ValueError(f"{where} {name} must lie {mend}")


def _check_finite(role: str, program: Any) -> None:
    for name, value in program.named_parameters() if isinstance(program, nn.Module) else ():
        if not torch.isfinite(value).all():
            raise ValueError(f"the parameter '{role}.{name}' is not finite (NaN or inf)")


def _check_leading(latents: Sites, trace: Trace) -> None:
    """Without a future the guide samples a leading part of the model's sites."""
    own = [name for name, site in _samples(trace).items() if not site["infer"].get("is_auxiliary")]
    if own != list(latents)[: len(own)]:
        raise ValueError(
            f"without a future the guide samples {own}: sample none or the first of {[*latents]}, in order, and the "
            "model's prior fills in the others"
        )


def _loss(model: Model, guide: Guide, context: Tensor, future: Tensor) -> Tensor:
    """Return the local ELBO's loss, every part of which must be finite."""
    elbo = LocalELBO(num_particles=DRAWS, sample_kl=True)
    try:
        with torch.enable_grad(), pyro.validation_enabled(True):
            loss: Tensor = elbo.differentiable_loss(model, guide, context, future)
    except Exception as error:
        raise ValueError(f"LocalELBO(num_particles={DRAWS}, sample_kl=True) fails ({_said(error)})") from error
    parts = {f"the KL of site {name!r}": units.kl for name, units in elbo.terms.units.items()}
    for name, values in ({"log p(y | z)": elbo.terms.log_likelihood} | parts).items():
        if not torch.isfinite(values).all():
            raise ValueError(f"the loss is not finite, for {name} is not: keep scales above 0 and draws in the support")
    return loss


def _log_density(model: Model, context: Tensor, future: Tensor) -> Tensor:
    """Return log p at a draw of the prior, plus what a model shows to guides: whatever its parameters may serve."""
    with torch.enable_grad():
        drawn = _samples(_run("the model fails with gradients", model, context, future))
        values = {name: site["value"].detach() for name, site in drawn.items() if not site["is_observed"]}
        given = poutine.condition(model, data=values)  # else what only moves a prior would cancel in its own draws
        total: Tensor = torch.as_tensor(_run("the model fails with gradients", given, context, future).log_prob_sum())
        if hasattr(model, "evidence"):
            for shown in model.evidence(context, future):
                total = total + (shown * torch.randn_like(shown)).sum()
    return total


def _check_gradients(role: str, loss: Tensor, parameters: Mapping[str, Tensor]) -> None:
    tensors = list(parameters.values())
    reached = loss.requires_grad and tensors
    grads = torch.autograd.grad(loss, tensors, allow_unused=True) if reached else [None] * len(tensors)
    for name, grad in zip(parameters, grads, strict=True):
        if grad is None:
            raise ValueError(_unreached(role, name))
        if not torch.isfinite(grad).all():
            raise ValueError(f"the gradient of the parameter {name!r} is not finite: keep scales away from 0")


def _check_silence(
    role: str, loss: Callable[[], Tensor], parameters: Mapping[str, Tensor], shaken: Iterable[Tensor]
) -> None:
    """A gradient that is exactly 0 everywhere, whatever the values and draws, teaches as little as none."""
    silent, shaken = dict(parameters), list(shaken)
    for _ in range(ROUNDS):
        if not silent:
            return
        with _shaken(shaken):
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


def _parameters(role: str, program: Any, context: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Return what is trained of a program, by name, after a first run: some make their parameters in it."""
    if isinstance(program, nn.Module):
        return {f"{role}.{name}": p for name, p in program.named_parameters() if p.requires_grad}
    return store_parameters(program, program, context, future)


@contextmanager
def _shaken(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Move parameters a little, so that nothing sits at the zeros it starts from, and put them back."""
    before = [(p, p.detach().clone()) for p in {id(p): p for p in parameters}.values()]
    try:
        for p, value in before:
            p.copy_(value + SHAKE * torch.randn_like(value))
        yield
    finally:
        for p, value in before:
            p.copy_(value)


def _check_causal(model: Model, context: Tensor, future: Tensor) -> None:
    """Given the same draws, every distribution is the same with a future and without, so that forecasts are honest."""
    alone = _samples(_run("the model fails without a future", model, context))
    values = {name: site["value"] for name, site in alone.items() if name != OBSERVED}
    given = _samples(_run("the model fails with a future", poutine.condition(model, data=values), context, future))
    for name, site in alone.items():
        here, there = site["fn"], given[name]["fn"]
        for value in (site["value"], given[name]["value"]):
            one, other = (_signature({"fn": fn, "value": value}) for fn in (here, there))
            same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)
            if not same:
                raise ValueError(
                    f"the model's site {name!r} is distributed otherwise with a future than without one: given the "
                    "draws, it may depend on the future only through obs, for a forecast has none"
                )


def _check_parts(role: str, program: Program, context: Tensor, future: Tensor) -> None:
    """Windows do not hear of each other, and draws neither, with a future and without."""
    for args in ((context, future), (context,)):
        together, mend = f"on {len(context)} windows together", "take the number of windows from len(context), and let "
        mend += "none hear of its neighbours, its place or dropout"
        whole = _run(f"the {role} fails", program, *args)
        for rows in ([2, 0], [1]):
            alone = f"on {len(rows)} of {len(context)} windows alone"
            _check_part(role, program, whole, tuple(each[rows] for each in args), rows, (together, alone, mend))
        together, mend = f"under a plate of {DRAWS} draws at dim -3", "index dims from the right, draws stand leftmost"
        whole = _run(f"the {role} fails {together}", vectorized(program, DRAWS), *args, mend=mend)
        for draw in range(DRAWS):
            _check_part(role, program, whole, args, draw, (together, "for one draw alone", mend))


def _check_part(role: str, program: Program, whole: Trace, args: Any, index: Any, words: tuple[str, str, str]) -> None:
    """Given the draws of ``whole[index]``, the program has the same distributions on that part alone."""
    together, alone, mend = words
    sites = _samples(whole)
    values = {name: site["value"][index] for name, site in sites.items() if not site["is_observed"]}
    part = _samples(_run(f"the {role} fails {alone}", poutine.condition(program, data=values), *args, mend=mend))
    for name, site in sites.items():
        other: Any = part.get(name, site)
        batch, found = (tuple(each["fn"].batch_shape) for each in (site, other))
        if found != torch.empty(batch)[index].shape:
            raise ValueError(f"the {role}'s site {name!r} has batch {batch} {together} and {found} {alone}: {mend}")
        if not torch.allclose(_signature(other), _signature(site)[index], rtol=1e-3, atol=1e-3):
            raise ValueError(f"the {role}'s site {name!r} is distributed otherwise {together} than {alone}: {mend}")


def _check_amortised(latents: Sites, guide: Guide, context: Tensor, future: Tensor) -> None:
    """With the same noise, other windows must move the draws of every site."""
    draws = []
    for shift in (0, 1):
        torch.manual_seed(0)
        draws.append(_samples(_run("the guide fails", guide, context.roll(shift, 0), future.roll(shift, 0))))
    for name in latents:
        moved = draws[0][name]["value"] != draws[1][name]["value"]  # (B, N, *event)
        by_unit = moved.flatten(2).any(-1).any(0) if moved.ndim > 2 else moved.any(0)  # (N,)
        if not by_unit.any():
            raise ValueError(f"the guide's site {name!r} is the same in every window: let it read context or future")
        if not by_unit.all():
            still = (~by_unit).nonzero().flatten().tolist()
            raise ValueError(
                f"the guide's site {name!r} is the same in every window for the units {still[:8]}: let each read "
                "context or future"
            )


def _samples(trace: Trace) -> Sites:
    nodes: Sites = dict(trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def _base(fn: Any) -> Any:
    return _base(fn.base_dist) if isinstance(fn, torch.distributions.Independent) else fn


def _signature(site: Any) -> Tensor:
    """Return what tells distributions of a site apart: where a point is, else the density of the draw."""
    fn = _base(site["fn"])
    return fn.v if isinstance(fn, dist.Delta) else site["fn"].log_prob(site["value"])
