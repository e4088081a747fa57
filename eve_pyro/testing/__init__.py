"""What every model and every guide must do, checked on a small batch: ours, and a user's functions or modules.

    def test_my_pair():
        check_model(model, (context, future))  # (B, T, L) and (B, H), at least 3 windows that differ
        check_guide(model, guide, (context, future))

A check returns None, or raises ValueError with the first fault, the most basic one first, and how to mend it. It leaves
the random state, modes, gradients and values of parameters as they were. Modules are checked in eval mode; set modules
that plain functions hold to it yourself.
"""

import torch
from torch import Tensor

from eve_pyro.infer.programs import evaluating, refuse_clashes
from eve_pyro.infer.terms import check_sites
from eve_pyro.protocols import Guide, Model
from eve_pyro.testing.gradients import (
    check_gradients,
    check_silence,
    elbo_loss,
    log_density,
    shaken,
    trained_parameters,
)
from eve_pyro.testing.sites import check_finite, check_leading, check_like_model, check_moments, model_sites, traced
from eve_pyro.testing.windows import check_amortised, check_causal, check_parts


def check_model(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError unless ``model`` can be trained and forecast with, see the module."""
    context, future = _batch(batch)
    with evaluating(model, None, seed=0):
        refuse_clashes(model)
        given, alone = (model_sites(model, context, future, observed) for observed in (True, False))
        if list(given) != list(alone):
            raise ValueError(
                f"the model samples {[*given]} with a future and {[*alone]} without one: let the future decide only obs"
            )
        parameters = trained_parameters("model", model, context, future)
        check_gradients("model", log_density(model, context, future), parameters)
        with shaken(parameters.values()):
            check_causal(model, context, future)
            check_parts("model", model, context, future)
        check_silence("model", lambda: log_density(model, context, future), parameters, parameters.values())


def check_guide(model: Model, guide: Guide, batch: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError unless ``guide`` is an amortised posterior of the latent sites of ``model``, see the module."""
    context, future = _batch(batch)
    with evaluating(model, guide, seed=0):
        refuse_clashes(model, guide)
        latents = model_sites(model, context, future, observed=True)
        check_finite("guide", guide)
        for args in ((context, future), (context,)):
            trace = traced(f"the guide fails {'with' if len(args) == 2 else 'without'} a future", guide, *args)
            trace.compute_score_parts()
            (check_sites if len(args) == 2 else check_leading)(latents, trace)
            check_like_model(latents, trace)
            check_moments(trace)
        own = trained_parameters("guide", guide, context, future)
        check_gradients("guide", elbo_loss(model, guide, context, future), own)
        everything = [*own.values(), *trained_parameters("model", model, context, future).values()]
        with shaken(everything):
            check_parts("guide", guide, context, future)
            check_amortised(latents, guide, context, future)
        check_silence("guide", lambda: elbo_loss(model, guide, context, future), own, everything)


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
