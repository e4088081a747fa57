"""Scores of a trained pair on windows: exact where the model has a closed form, from a stated number of draws else."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from eve_pyro import metrics
from eve_pyro.distributions.quantiles import Quantiles
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.predictive import (
    Predictive,
    cdf,
    is_categorical,
    latent_sites,
    predict,
    quantile,
    vectorized,
)
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import OBSERVED, Guide, Model, Rows

KEYS = ("mse", "mae", "crps", "energy_score", "crps_mean", "log_score", "joint_log_score", "coverage_90")


def evaluate(
    model: Model,
    guide: Guide,
    windows: Rows,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Return the mean scores over ``windows``, in the scale of the training rows, log scores in nats a value.

    ``joint_log_score`` of a model without a closed form is estimated by importance sampling through the guide with
    ``joint_log_score_draws`` draws; ``joint_log_score_se`` is then its Monte-Carlo standard error. It is an upper bound
    in expectation (Jensen), which more draws tighten. The exact CRPS of a mixture costs ``num_draws`` squared.

    Classes have an ``accuracy``, the share of windows whose most probable class is the right one, and log scores; the
    other scores, which are of distances, are left out. Raises ValueError for a label that is no class, for no windows,
    and for windows whose future is yet to come.
    """
    scores = window_scores(model, guide, windows, num_draws, batch_size, seed, progress)
    variance = scores.pop("joint_log_score_variance", None)
    result = {name: float(values.double().mean()) for name, values in scores.items()}
    if variance is not None:
        result["joint_log_score_draws"] = float(num_draws)
        result["joint_log_score_se"] = float(variance.double().sum().sqrt() / len(windows))
    return result


def window_scores(
    model: Model,
    guide: Guide,
    windows: Rows,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Return each score by window, (N,): what paired comparisons are made of. See ``evaluate``.

    Raises ValueError for no windows, and for windows whose future is yet to come.
    """
    parts: list[dict[str, Tensor]] = []
    check_futures(windows)
    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device_of(model), progress, "scoring"):
            prediction = predict(model, guide, context, num_draws)
            scores = marginal_scores(prediction, future) | path_scores(prediction, future)
            scores |= joint_score(model, guide, context, future, prediction, num_draws)
            parts.append({name: values.cpu() for name, values in scores.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def marginal_scores(prediction: Predictive, truth: Tensor) -> dict[str, Tensor]:
    """Score every value by itself, averaged over the horizon: exact for normals and their mixtures.

    Of other families all but the log score comes from the draws; without a density of single values that is NaN. The
    CRPS of quantiles is twice their mean pinball loss. Of classes there are the log score and the ``accuracy`` alone.
    """
    if is_categorical(prediction.values):
        return _mean(_class_scores(prediction, truth))
    if isinstance(prediction.values, Quantiles):
        return _mean(_quantile_scores(prediction.values, truth))
    components, paths = prediction.components, prediction.paths
    if components is None:
        log_prob, pit = prediction.log_prob(truth), (paths <= truth).float().mean(0)
        log_score = torch.full_like(truth, math.nan) if log_prob is None else metrics.log_score(log_prob)
        point = {"mse": metrics.mse(paths, truth), "mae": metrics.mae(paths, truth), "crps": metrics.crps(paths, truth)}
        return _mean(point | {"log_score": log_score, "coverage_90": metrics.coverage(pit)})
    median = quantile(prediction, 0.5)
    return _mean(
        {
            "mse": metrics.mse(components.mean, truth),
            "mae": metrics.mae(median[None], truth),
            "crps": crps_of(prediction, truth),
            "log_score": metrics.log_score(components.log_prob(truth)),
            "coverage_90": metrics.coverage(cdf(components, truth).mean(0)),
        }
    )


def crps_of(prediction: Predictive, truth: Tensor) -> Tensor:
    """Return the CRPS of every value, (B, H): exact for normals, their mixtures and a single t, else from the draws."""
    components: Any = prediction.components
    if isinstance(components, dist.Normal):
        return metrics.crps_normal_mixture(components.loc, components.scale, truth)
    if isinstance(components, dist.StudentT) and len(components.loc) == 1:
        return metrics.crps_student_t(components.df[0], components.loc[0], components.scale[0], truth)
    return metrics.crps(prediction.paths, truth)


def _quantile_scores(forecast: Quantiles, truth: Tensor) -> dict[str, Tensor]:
    """Score quantiles, batch (B, 1), each (B, H): they have no density, and an interval if they reach that far."""
    low, high = (forecast.at(level).squeeze(-2) for level in (0.05, 0.95))
    return {
        "mse": (forecast.mean.squeeze(-2) - truth).square(),
        "mae": (forecast.at(0.5).squeeze(-2) - truth).abs(),
        "crps": 2 * forecast.pinball(truth.unsqueeze(-2)).mean(-1).squeeze(-2),
        "log_score": torch.full_like(truth, math.nan),
        "coverage_90": ((truth >= low) & (truth <= high)).to(truth.dtype),
    }


def _class_scores(prediction: Predictive, truth: Tensor) -> dict[str, Tensor]:
    """Score numbers of classes, each (B, H), by their probabilities, averaged over the draws of the units."""
    probs: Tensor = prediction.values.probs  # type: ignore[union-attr]  # (..., B, 1, H, C)
    check_classes(truth, probs.shape[-1])
    mean = probs.reshape(-1, *probs.shape[-4:]).mean(0)[:, 0]  # (B, H, C)
    log_prob = prediction.log_prob(truth)
    assert log_prob is not None
    return {"log_score": metrics.log_score(log_prob), "accuracy": (mean.argmax(-1) == truth).to(mean.dtype)}


def check_classes(labels: Tensor, count: int) -> None:
    """Raise ValueError for a label that is not the number of one of ``count`` classes."""
    wrong = labels[~((labels >= 0) & (labels < count) & (labels == labels.round()))]
    if len(wrong):
        raise ValueError(f"classes are whole numbers from 0 to {count - 1}; found {wrong[0].item():g}")


def path_scores(prediction: Predictive, truth: Tensor) -> dict[str, Tensor]:
    """Score the joint paths: the energy score and the CRPS of the horizon's mean, each (B,).

    Of classes there is nothing to score, and quantiles have no paths: NaN.
    """
    if is_categorical(prediction.values):
        return {}
    if isinstance(prediction.values, Quantiles):
        return dict.fromkeys(("energy_score", "crps_mean"), torch.full_like(truth[..., 0], math.nan))
    return {
        "energy_score": metrics.energy_score(prediction.paths, truth),
        "crps_mean": metrics.crps_mean(prediction.paths, truth),
    }


def joint_score(
    model: Model, guide: Guide, context: Tensor, future: Tensor, prediction: Predictive, num_draws: int
) -> dict[str, Tensor]:
    """Return -log p(y | x) a value, (B,), exact or with the variance of its importance-sampling estimate.

    Quantiles have no density: NaN.
    """
    horizon = future.shape[-1]
    if isinstance(prediction.values, Quantiles):
        return {"joint_log_score": torch.full_like(future[..., 0], math.nan)}
    if prediction.joint is not None:
        return {"joint_log_score": -prediction.joint.log_prob(future[:, None])[:, 0] / horizon}
    log_weights = importance_log_weights(model, guide, context, future, num_draws)
    weights = (log_weights - log_weights.max(0).values).exp()
    relative = weights.var(0) / weights.mean(0).square() / num_draws  # delta method
    return {
        "joint_log_score": metrics.log_score(log_weights) / horizon,
        "joint_log_score_variance": relative / horizon**2,
    }


def importance_log_weights(model: Model, guide: Guide, context: Tensor, future: Tensor, num_draws: int) -> Tensor:
    """Return log p(y | z) + log r(z) - log q(z) for draws z ~ q = guide(context, future), (S, B).

    r is the distribution of z at forecast time, so the mean weight estimates p(y | x) without bias.
    """
    guide_trace = poutine.trace(vectorized(guide, num_draws)).get_trace(context, future)
    at_forecast = poutine.trace(poutine.replay(vectorized(guide, num_draws), trace=guide_trace)).get_trace(context)
    replayed = poutine.replay(vectorized(model, num_draws), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(context, future)
    observed: Any = model_trace.nodes[OBSERVED]
    log_weights = _by_window(observed["fn"].log_prob(observed["value"]), num_draws, len(context))
    for name, site in latent_sites(model_trace).items():
        own: dict[str, Any] = dict(at_forecast.nodes)
        if name not in guide_trace.nodes:
            raise ValueError(
                f"the guide does not sample the model's site {name!r} with a future, so there is nothing to propose "
                "draws for its joint density by: add it, or condition the model on it"
            )
        r: Any = own.get(name, site)["fn"]
        q: Any = guide_trace.nodes[name]["fn"]
        if isinstance(q, dist.Delta) and not isinstance(r, dist.Delta):
            raise ValueError(
                f"the guide proposes a point for site {name!r}, which forecasts draw from a distribution: no number of "
                "draws estimates its joint density"
            )
        ratio = r.log_prob(site["value"]) - q.log_prob(site["value"])
        log_weights = log_weights + _by_window(ratio, num_draws, len(context))
    return log_weights


def _by_window(log_prob: Tensor, num_draws: int, num_windows: int) -> Tensor:
    """Sum a site's log density (..., B, N) over units, to (S, B)."""
    return log_prob.sum(-1).expand(num_draws, num_windows)


def _mean(scores: dict[str, Tensor]) -> dict[str, Any]:
    return {name: values.mean(-1) for name, values in scores.items()}
