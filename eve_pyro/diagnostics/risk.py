"""Internal uncertainty at work: whether a window's signals foretell its error, and whether they notice a shift.

``window_signals`` measures, ``risk_table`` ranks the signals of any number of rivals by how well they sort the windows
by error, and ``shift_detection`` asks which of them tell perturbed windows from the others. Scores and signals are in
the scale of the training rows, KL and log scores in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from torch import Tensor

from eve_pyro.data.rows import Selectable
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.predictive import Predictive, latent_sites, moments, predict
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.infer.scores import window_scores
from eve_pyro.infer.terms import by_unit, check_sites, measure_units
from eve_pyro.protocols import Batch, Guide, Model, Rows

BEFORE = ("scale", "path_spread", "kl_before", "energy_before")
AFTER = ("kl_after", "energy_after", "joint_log_score")
ERRORS = ("mse", "crps", "energy_score", "joint_log_score")
SHIFTS = ("phase", "amplitude", "level", "noise")
Floats = NDArray[np.float64]


def window_signals(
    model: Model, guide: Guide, windows: Rows, num_draws: int = 100, batch_size: int = 256, seed: int = 0
) -> pd.DataFrame:
    """Return one row a window: what the pair says of its own uncertainty, and the errors it made.

    Known when forecasting: ``scale``, the predictive deviation averaged over the horizon; ``path_spread``, the
    deviation of the horizon's mean, in which dependence shows; and, for a guide that samples all its sites without a
    future, ``kl_before`` and ``energy_before``. Known only once the future is: ``kl_after`` and ``energy_after``, of
    the posterior given context and future, and the errors ``mse, crps, energy_score, joint_log_score`` (nats a value).
    KL (nats; sampled with one draw where it has no closed form, and given one draw of what lies below) and energy
    (squared prior deviations, see ``UnitTerms``) are summed over units; a model without units has neither.

    Raises ValueError for no windows and windows without a future.
    """
    check_futures(windows)
    device, parts = device_of(model), []
    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device):
            prediction = predict(model, guide, context, num_draws)
            found = {"scale": moments(prediction)[1].mean(-1), "path_spread": path_spread(prediction)}
            found |= _divergence("before", model, guide, context) | _divergence("after", model, guide, context, future)
            parts.append(pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()}))
    scores = window_scores(model, guide, windows, num_draws, batch_size, seed)
    return pd.concat(parts, ignore_index=True).assign(
        **{name: scores[name].numpy() for name in ERRORS if name in scores}
    )


def path_spread(prediction: Predictive) -> Tensor:
    """Return the deviation of the horizon's mean, (B,): exact where the joint distribution is, else from the paths."""
    whole: Any = prediction.joint
    if hasattr(whole, "covariance_matrix"):
        variance = whole.covariance_matrix.sum((-1, -2))
    elif isinstance(whole, torch.distributions.Independent):
        variance = whole.variance.sum(-1)
    else:
        return prediction.paths.mean(-1).std(0)
    return variance[..., 0].sqrt() / prediction.paths.shape[-1]


def disagreement(
    pairs: Sequence[tuple[Model, Guide]], windows: Rows, num_draws: int = 100, batch_size: int = 256, seed: int = 0
) -> Tensor:
    """Return how far the means of an ensemble's members lie apart: their deviation, averaged over the horizon, (N,).

    Raises ValueError for fewer than two members.
    """
    if len(pairs) < 2:
        raise ValueError(f"an ensemble has at least 2 members to disagree, not {len(pairs)}")
    means = []
    for model, guide in pairs:
        with evaluating(model, guide, seed):
            contexts = (context.to(device_of(model)) for context, _ in windows.batches(batch_size))
            parts = [moments(predict(model, guide, context, num_draws))[0].cpu() for context in contexts]
        means.append(torch.cat(parts))
    return torch.stack(means).std(0).mean(-1)


class RiskCoverage(NamedTuple):
    """Selective prediction: ``risk`` (N,), the mean error of the share ``coverage`` (N,) of windows that are kept.

    ``aurc`` is the mean of ``risk``; ``oracle`` that of the order by error itself, ``random`` that of any order.
    """

    coverage: Floats
    risk: Floats
    aurc: float
    oracle: float
    random: float

    @property
    def excess(self) -> float:
        """How far ``aurc`` lies above the oracle's."""
        return self.aurc - self.oracle

    @property
    def gain(self) -> float:
        """What share of the way from random to oracle is gone: 1 for the oracle, 0 for chance; NaN for equal errors."""
        span = self.random - self.oracle
        return (self.random - self.aurc) / span if span > 0 else float("nan")


def risk_coverage(error: ArrayLike | Tensor, signal: ArrayLike | Tensor) -> RiskCoverage:
    """Keep the k windows with the lowest ``signal`` (N,), for every k, and return their mean ``error`` (N,).

    Windows with equal signals are kept in no particular order: the risk is its expectation. Source: Geifman et al. 2019
    (AURC and its excess). Raises ValueError unless both are as many finite numbers, and at least one.
    """
    losses = _numbers("the error", error)
    signals = _numbers("the signal", signal, len(losses))
    risk = _risk(losses, signals)
    coverage = np.arange(1, len(losses) + 1) / len(losses)
    return RiskCoverage(coverage, risk, float(risk.mean()), float(_risk(losses, losses).mean()), float(losses.mean()))


def risk_table(signals: Mapping[str, ArrayLike | Tensor], error: ArrayLike | Tensor) -> pd.DataFrame:
    """Return one row a signal (N,), the best first: how well each foretells the ``error`` (N,) of the same windows.

    Columns ``signal, spearman, aurc, excess_aurc, gain``, see ``RiskCoverage``; Spearman's correlation is NaN for a
    constant. Any rival's signal can be handed in. Raises ValueError as ``risk_coverage`` does, naming the signal.
    """
    losses, rows = _numbers("the error", error), []
    for name, signal in signals.items():
        values = _numbers(f"signal {name!r}", signal, len(losses))
        curve = risk_coverage(losses, values)
        spearman = pd.DataFrame({"error": losses, "signal": values}).corr(method="spearman").iloc[0, 1]
        rows.append((name, spearman, curve.aurc, curve.excess, curve.gain))
    columns = ["signal", "spearman", "aurc", "excess_aurc", "gain"]
    return pd.DataFrame(rows, columns=columns).sort_values("aurc", ignore_index=True)


def auroc(shifted: ArrayLike | Tensor, others: ArrayLike | Tensor) -> float:
    """Return the chance that a signal of a shifted window exceeds that of another, ties counting half (Mann-Whitney).

    Raises ValueError unless both are finite numbers, at least one each.
    """
    from scipy.stats import rankdata  # adds filters to everybody's warnings: not on import

    above, below = _numbers("the signal of shifted windows", shifted), _numbers("the signal of the others", others)
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


@dataclass(frozen=True)
class Shifted(Selectable):
    """Perturbed windows, held in memory: ``context`` (N, 1, L) and ``future`` (N, H)."""

    context: Tensor
    future: Tensor

    def __len__(self) -> int:
        return len(self.context)

    def _gather(self, rows: slice | Tensor) -> Batch:
        return Batch(self.context[rows], self.future[rows])

    def _take(self, rows: slice | Tensor) -> Self:
        return type(self)(self.context[rows], self.future[rows])


def inject(windows: Rows, kind: str, size: float, onset: float = 0.5, seed: int = 0) -> Shifted:
    """Return ``windows`` whose world changes when the share ``onset`` of the context has passed, futures included.

    From there on ``phase`` delays the series by ``size`` steps, ``amplitude`` stretches what lies off the context's
    mean by 1 + ``size``, ``level`` adds ``size``, and ``noise`` adds white noise of deviation ``size``, both in
    deviations of the training rows. At ``onset=1`` the future alone is changed.

    Raises ValueError for another kind, an onset outside [0, 1], a delay that is no whole number of steps or longer than
    what came before, and for contexts of several windows.
    """
    context, future = windows[:]
    if kind not in SHIFTS or not 0 <= onset <= 1:
        raise ValueError(f"a shift is one of {', '.join(SHIFTS)} with an onset in [0, 1], not {kind!r} at {onset}")
    if context.shape[1] != 1:
        raise ValueError(f"shifts are injected into a single context, not into {context.shape[1]} successive ones")
    length = context.shape[-1]
    start = round(onset * length)
    whole = torch.cat([context[:, 0], future], -1)
    tail = whole[:, start:]
    if kind == "phase":
        if size != round(size) or not 0 <= size <= start:
            raise ValueError(f"a phase shifts by 0 to {start} whole steps, those before its onset, not by {size:g}")
        tail = whole[:, start - round(size) : whole.shape[1] - round(size)]
    elif kind == "amplitude":
        mean = context.mean(-1)
        tail = mean + (1 + size) * (tail - mean)
    elif kind == "level":
        tail = tail + size
    else:
        tail = tail + size * torch.randn(tail.shape, generator=torch.Generator().manual_seed(seed))
    whole = torch.cat([whole[:, :start], tail], -1)
    return Shifted(whole[:, None, :length], whole[:, length:])


def shift_detection(
    model: Model,
    guide: Guide,
    windows: Rows,
    shifts: Mapping[str, float],
    onset: float = 0.5,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well each signal tells ``windows`` after a shift from those without, one row a kind and signal.

    ``shifts`` maps kinds to sizes, see ``inject``. Columns ``kind, size, signal, when, auroc``: ``when`` is "before"
    for signals known when forecasting and "after" for those that need the future, among them the surprise,
    ``joint_log_score``. An AUROC of 0.5 is chance; below it, the shift lowers the signal. Raises ValueError as
    ``inject`` does.
    """
    drawing = {"num_draws": num_draws, "batch_size": batch_size, "seed": seed}
    usual = window_signals(model, guide, windows, **drawing).dropna(axis="columns")
    rows = []
    for kind, size in shifts.items():
        changed = window_signals(model, guide, inject(windows, kind, size, onset, seed), **drawing)
        for when, names in (("before", BEFORE), ("after", AFTER)):
            for name in names:
                if name in usual:
                    rows.append((kind, size, name, when, auroc(changed[name], usual[name])))
    return pd.DataFrame(rows, columns=["kind", "size", "signal", "when", "auroc"])


def _divergence(when: str, model: Model, guide: Guide, *given: Tensor) -> dict[str, Tensor]:
    """Return KL(q || p) and energy by window, (B,), summed over units; nothing where the guide leaves sites out."""
    guide_trace = poutine.util.prune_subsample_sites(poutine.trace(guide).get_trace(*given))
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*given)
    latents = latent_sites(model_trace)
    if not latents or any(name not in guide_trace for name in latents):
        return {}
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    units = measure_units(model_trace, guide_trace, sample_kl=True)
    auxiliary, count = check_sites(latents, guide_trace), len(given[0])
    energy = torch.zeros(count, device=given[0].device)
    for name, site in latents.items():
        drawn: Any = auxiliary.get(name, guide_trace.nodes[name])
        energy = energy + _energy(drawn, site).expand(count)
    kl = sum((each.kl.sum(-1).expand(count) for each in units.values()), torch.zeros_like(energy))
    return {f"kl_{when}": kl, f"energy_{when}": energy}


def _energy(drawn: Any, site: Any) -> Tensor:
    """Return one site's squared shift in prior deviations by window, averaged over latents and summed over units."""
    q, p = drawn["fn"], site["fn"]
    try:
        loc = q.mean
    except NotImplementedError:  # the draw stands in for a location without a closed form
        loc = drawn["value"]
    try:
        square = ((loc - p.mean) / p.stddev).square()
    except NotImplementedError:  # a prior without moments
        square = torch.full_like(loc, torch.nan)
    event = tuple(range(-p.event_dim, 0))
    return by_unit(square.mean(event) if event else square)[0].sum(-1)


def _risk(losses: Floats, signals: Floats) -> Floats:
    """Return the mean loss of the k lowest signals, for k from 1 to N, in expectation over the order of ties."""
    _, place, counts = np.unique(signals, return_inverse=True, return_counts=True)
    tied = np.repeat(np.bincount(place, losses) / counts, counts)
    risk: Floats = np.cumsum(tied) / np.arange(1, len(losses) + 1)
    return risk


def _numbers(name: str, values: ArrayLike | Tensor, count: int | None = None) -> Floats:
    """Return the values as an array; ValueError unless they are one finite number a window, ``count`` if given."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != (count or len(array)) or not len(array) or not np.isfinite(array).all():
        wanted = "one finite number a window" if count is None else f"{count} finite numbers, as many as the errors"
        missing = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} must be {wanted}, not of shape {array.shape} with {missing} not finite")
    return array
