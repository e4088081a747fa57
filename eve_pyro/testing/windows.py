"""Windows and draws that do not hear of each other, and forecasts that do not hear of the future."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from eve_pyro.infer.predictive import Program, vectorized
from eve_pyro.protocols import OBSERVED, Guide, Model
from eve_pyro.testing.gradients import DRAWS
from eve_pyro.testing.sites import Sites, samples, signature, traced


def check_causal(model: Model, context: Tensor, future: Tensor) -> None:
    """Given the same draws, every distribution is the same with a future and without, so that forecasts are honest."""
    alone = samples(traced("the model fails without a future", model, context))
    values = {name: site["value"] for name, site in alone.items() if name != OBSERVED}
    given = samples(traced("the model fails with a future", poutine.condition(model, data=values), context, future))
    for name, site in alone.items():
        here, there = site["fn"], given[name]["fn"]
        for value in (site["value"], given[name]["value"]):
            one, other = (signature({"fn": fn, "value": value}) for fn in (here, there))
            same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)
            if not same:
                raise ValueError(
                    f"the model's site {name!r} is distributed otherwise with a future than without one: given the "
                    "draws, it may depend on the future only through obs, for a forecast has none"
                )


def check_parts(role: str, program: Program, context: Tensor, future: Tensor) -> None:
    """Windows do not hear of each other, and draws neither, with a future and without."""
    for args in ((context, future), (context,)):
        together, mend = f"on {len(context)} windows together", "take the number of windows from len(context), and let "
        mend += "none hear of its neighbours, its place or dropout"
        whole = traced(f"the {role} fails", program, *args)
        for rows in ([2, 0], [1]):
            alone = f"on {len(rows)} of {len(context)} windows alone"
            _check_part(role, program, whole, tuple(each[rows] for each in args), rows, (together, alone, mend))
        together, mend = f"under a plate of {DRAWS} draws at dim -3", "index dims from the right, draws stand leftmost"
        whole = traced(f"the {role} fails {together}", vectorized(program, DRAWS), *args, mend=mend)
        for draw in range(DRAWS):
            _check_part(role, program, whole, args, draw, (together, "for one draw alone", mend))


def _check_part(role: str, program: Program, whole: Trace, args: Any, index: Any, words: tuple[str, str, str]) -> None:
    """Given the draws of ``whole[index]``, the program has the same distributions on that part alone."""
    together, alone, mend = words
    sites = samples(whole)
    values = {name: site["value"][index] for name, site in sites.items() if not site["is_observed"]}
    part = samples(traced(f"the {role} fails {alone}", poutine.condition(program, data=values), *args, mend=mend))
    for name, site in sites.items():
        other: Any = part.get(name, site)
        batch, found = (tuple(each["fn"].batch_shape) for each in (site, other))
        if found != torch.empty(batch)[index].shape:
            raise ValueError(f"the {role}'s site {name!r} has batch {batch} {together} and {found} {alone}: {mend}")
        if not torch.allclose(signature(other), signature(site)[index], rtol=1e-3, atol=1e-3):
            raise ValueError(f"the {role}'s site {name!r} is distributed otherwise {together} than {alone}: {mend}")


def check_amortised(latents: Sites, guide: Guide, context: Tensor, future: Tensor) -> None:
    """With the same noise, other windows must move the draws of every site."""
    draws = []
    for shift in (0, 1):
        torch.manual_seed(0)
        draws.append(samples(traced("the guide fails", guide, context.roll(shift, 0), future.roll(shift, 0))))
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
