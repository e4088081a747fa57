"""A program's sites one by one: plates, shapes, moments, finite numbers."""

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from eve_pyro.distributions import AR1
from eve_pyro.infer.predictive import Program, latent_sites, observation
from eve_pyro.protocols import OBSERVED, Model

Sites = dict[str, Any]
CALL = "it is called with (context, future) and with (context) alone, on any number of windows"


def traced(fault: str, program: Program, *args: Tensor, mend: str = CALL) -> Trace:
    """Return the trace of a program; a ValueError names the ``fault`` and how to mend it."""
    with poutine.trace() as tracer:
        try:
            program(*args)
        except Exception as error:
            sites: list[Any] = list(tracer.trace.nodes.values())
            sizes = [f"{s['name']!r} of size {s['fn'].size}" for s in sites if poutine.util.site_is_subsample(s)]
            plates = f", in plates {', '.join(sizes)}" if sizes else ""
            raise ValueError(f"{fault}{plates} ({said(error)}): {mend}") from error
    return poutine.util.prune_subsample_sites(tracer.trace)


def said(error: Exception) -> str:
    """Return an error in one line."""
    return shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")


def model_sites(model: Model, context: Tensor, future: Tensor, observed: bool) -> Sites:
    """Run the model with or without its future, check its sites one by one, and return the latent ones."""
    check_finite("model", model)
    args = (context, future) if observed else (context,)
    trace = traced(f"the model fails {'with' if observed else 'without'} a future", model, *args)
    latents, fn, site = latent_sites(trace), observation(trace), samples(trace)[OBSERVED]
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


def check_like_model(latents: Sites, trace: Trace) -> None:
    """A guide's sites stand in the model's plates, auxiliary ones with the site they serve, and have its shapes."""
    for name, mine in samples(trace).items():
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


def check_moments(trace: Trace) -> None:
    """Draws and locations are finite, scales positive; a point has none."""
    for name, site in samples(trace).items():
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


def check_finite(role: str, program: Any) -> None:
    """Every parameter of a module is a finite number."""
    for name, value in program.named_parameters() if isinstance(program, nn.Module) else ():
        if not torch.isfinite(value).all():
            raise ValueError(f"the parameter '{role}.{name}' is not finite (NaN or inf)")


def check_leading(latents: Sites, trace: Trace) -> None:
    """Without a future the guide samples a leading part of the model's sites."""
    own = [name for name, site in samples(trace).items() if not site["infer"].get("is_auxiliary")]
    if own != list(latents)[: len(own)]:
        raise ValueError(
            f"without a future the guide samples {own}: sample none or the first of {[*latents]}, in order, and the "
            "model's prior fills in the others"
        )


def samples(trace: Trace) -> Sites:
    """Return the sample sites of a trace by name."""
    nodes: Sites = dict(trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def _base(fn: Any) -> Any:
    return _base(fn.base_dist) if isinstance(fn, torch.distributions.Independent) else fn


def signature(site: Any) -> Tensor:
    """Return what tells distributions of a site apart: where a point is, else the density of the draw."""
    fn = _base(site["fn"])
    return fn.v if isinstance(fn, dist.Delta) else site["fn"].log_prob(site["value"])
