"""How the field scores forecasts: the long-horizon protocol and ProbTS's, exactly as published."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from eve_pyro import metrics
from eve_pyro.bench.rivals import LEVELS
from eve_pyro.data import Windows
from eve_pyro.infer.predictive import predict, quantile
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.infer.scores import evaluate
from eve_pyro.naive import naive_scores, repeat_last, seasonal_naive
from eve_pyro.protocols import Guide, Model

Protocol = Literal["longhorizon", "probts"]
PROBTS_STEP = 96  # steps between ProbTS's test windows, whatever the horizon
ROUNDING = 1e-6  # of a series' size: what standardising and back leaves of a zero
NAIVE = {"repeat_last": repeat_last, "seasonal_naive": seasonal_naive}
QuantilesOf = Callable[[Tensor], Tensor]


def scored_windows(windows: Windows, protocol: Protocol) -> Windows:
    """Return the windows a protocol scores: all of them, or ProbTS's, one in 96 from each series' first on."""
    if protocol == "longhorizon":
        return windows
    return windows.select(torch.nonzero(_order(windows) % PROBTS_STEP == 0)[:, 0])


def model_scores(
    model: Model, guide: Guide, test: Windows, protocol: Protocol, num_draws: int, seed: int, progress: bool
) -> dict[str, float]:
    """Score a trained pair on the test windows of a protocol: ``evaluate``'s scores, for ProbTS ``crps_probts`` too."""
    chosen = scored_windows(test, protocol)
    scores = evaluate(model, guide, chosen, num_draws, seed=seed, progress=progress)
    if protocol == "probts":
        with evaluating(model, guide, seed):
            scores["crps_probts"] = crps_probts(
                chosen, lambda context: _quantiles(model, guide, context.to(device_of(model)), num_draws)
            )
    return scores


def validation_crps(model: Model, guide: Guide, validation: Windows, count: int) -> float:
    """Return the CRPS of about ``count`` validation windows, evenly spaced, which is what ``fit`` scores an epoch by.

    The forecast has a closed form: the few draws are for the other scores.
    """
    return evaluate(model, guide, validation.at_most(count), num_draws=2)["crps"]


def naive_row(name: str, test: Windows, protocol: Protocol) -> dict[str, Any]:
    """Score a naive forecast alike; what a point has no score in is left out."""
    chosen = scored_windows(test, protocol)
    scores: dict[str, Any] = naive_scores(chosen)[name]
    if protocol == "probts":
        scores["crps_probts"] = crps_probts(chosen, lambda context: NAIVE[name](chosen, context))
    return scores


def crps_probts(windows: Windows, quantiles_of: QuantilesOf, batch_size: int = 256) -> float:
    """Return the CRPS of ProbTS: the mean over window times of their normalised quantile loss, in original units.

    One window time holds the windows of all series that begin then: for each of 19 levels twice the pinball loss
    summed over series and horizon, averaged over levels, and divided by the sum of abs(y). ``quantiles_of`` maps a
    context (B, T, L) to quantiles (19, B, H), or to a point forecast (1, B, H), in the scale of the training rows.
    Raises ValueError where a window time has no y but zeros, to which no loss is relative.
    """
    mean, deviation = windows.scale()
    time, size = sizes_probts(windows, batch_size)
    loss = torch.zeros_like(size)
    for begin in range(0, len(windows), batch_size):
        rows = slice(begin, begin + batch_size)
        context, future = windows[rows]
        quantiles = mean[rows] + deviation[rows] * quantiles_of(context).cpu().expand(len(LEVELS), *future.shape)
        pinball = 2 * metrics.pinball(quantiles, mean[rows] + deviation[rows] * future, LEVELS).mean(0)
        loss.index_add_(0, time[rows], pinball.sum(-1).double())
    return float((loss / size).mean())


def sizes_probts(windows: Windows, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Return which window time each window has, (N,), and the sum of abs(y) of each, in original units, (times,).

    Raises ValueError where such a sum is 0.
    """
    mean, deviation = windows.scale()
    _, time = torch.unique(_order(windows), return_inverse=True)
    size = torch.zeros(int(time.max()) + 1, dtype=torch.float64)
    for begin in range(0, len(windows), batch_size):
        rows = slice(begin, begin + batch_size)
        truth = (mean[rows] + deviation[rows] * windows[rows][1]).abs()
        zero = truth < ROUNDING * (mean[rows].abs() + deviation[rows])
        size.index_add_(0, time[rows], truth.masked_fill(zero, 0.0).sum(-1).double())
    if empty := int((size == 0).sum()):
        raise ValueError(
            f"ProbTS's CRPS is relative to abs(y), which is 0 all through {empty} of {len(size)} test windows: "
            "score them by the protocol longhorizon"
        )
    return time, size


def _quantiles(model: Model, guide: Guide, context: Tensor, num_draws: int) -> Tensor:
    prediction = predict(model, guide, context, num_draws)
    return torch.stack([quantile(prediction, level) for level in LEVELS])


def _order(windows: Windows) -> Tensor:
    """Return how many steps after its series' first window each window begins, (N,)."""
    first = torch.full((len(windows.panel),), int(windows.start.max()))
    first = first.scatter_reduce(0, windows.series, windows.start, "amin")
    return windows.start - first[windows.series]
