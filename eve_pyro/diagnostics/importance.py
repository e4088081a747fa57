"""How far a guide is from the posterior, by importance sampling: k-hat, effective draws, bounds on log p(y | x)."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from eve_pyro.diagnostics.draws import posterior_draws, window_labels
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import Guide, Model, Rows

CONSTANT = 1e-3  # nats: weights whose largest differ by less are constant, and what is left is rounding
FEWEST = 25  # draws that a Pareto tail can be fitted to
UNDERFLOW = -700.0  # nats: weights this far below the largest are 0 to a double, and arviz fits k-hat 0.05 to them


def importance_table(
    model: Model,
    guide: Guide,
    windows: Rows,
    num_draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Weigh draws z_s ~ q(z | x, y) by w_s = p(y | z_s) p(z_s) / q(z_s), p(z) the model's prior: one row a window.

    Columns: ``window`` (of ``Windows`` also ``series``, and ``origin``, the last timestamp seen); ``khat``; ``ess`` =
    1 / sum of squared normalised weights, of ``num_draws``; and in nats ``elbo`` = mean log w (at beta 1), ``bound`` =
    log mean w, at most log p(y | x) in expectation and tighter than the ELBO (Burda et al. 2016, IWAE), and ``gap`` =
    bound - elbo, which approaches KL(q || p(z | x, y)) from below as draws are added. ``elbo_se``, ``bound_se`` and
    ``gap_se`` are Monte-Carlo standard errors (delta method), to be trusted where k-hat is.

    k-hat is the shape of the generalised Pareto distribution that fits the largest weights (Vehtari et al. 2024, PSIS,
    JMLR 25; Yao et al. 2018 for variational posteriors); ``ess`` is of the smoothed weights. Below 0.5 the weights have
    a variance and averages converge as usual; to 0.7 they are still usable; above 0.7 no feasible number of draws
    helps, and q is not to be relied on as the joint posterior; above 1 the weights have no mean that draws can find.
    Weights that are constant, which only the exact posterior has, give -inf.

    What it sees: scales too small (a Gaussian c times too narrow in any direction has k = 1 - c^2 in the limit);
    correlation left out by the best independent normals (k = |rho| for two units); locations off by about two
    deviations (a mere shift has k = 0 in the limit, and finite draws show more). What it does not: scales too wide
    (bounded weights), correlation left out with the margins right (k = |rho| / (1 + |rho|) for two units): ``ess`` and
    ``gap`` see both; and, as they too, modes that q never visits. It judges all units of a window together: with
    hundreds of units, errors that do not matter in any one of them add up, so that k-hat > 0.7 is common for posteriors
    whose margins and forecasts are good; look by unit then, with ``sbc``.

    Memory grows with ``num_draws * batch_size``. Raises ValueError for fewer than 25 draws, no windows, windows without
    a future, and a guide that gives points or does not sample the model's sites.
    """
    _check_draws(num_draws)
    figures = [
        _figures(log_w) for log_w, _, _ in _weighed(model, guide, windows, num_draws, batch_size, seed, progress)
    ]
    columns = {name: np.concatenate([figure[name] for figure in figures]) for name in figures[0]}
    return window_labels(windows).assign(**columns)


class Comparison(NamedTuple):
    """``table``: one row an estimator and pair; ``windows``: one row a pair and window. See ``compare_guides``."""

    table: pd.DataFrame
    windows: pd.DataFrame


def compare_guides(
    pairs: Mapping[str, tuple[Model, Guide]],
    windows: Rows,
    num_draws: int = 1000,
    num_windows: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare pairs by the expected log predictive density of windows left out, sum_b log p(y_b | x_b), with k-hat.

    The latents belong to their windows and parameters stay as trained, so leaving a window out leaves only its own
    latents without data: its leave-one-out density is its marginal likelihood log p(y_b | x_b). Two estimates of that
    one figure, both from draws of q(z | x, y):

    - ``evidence``: log mean_s p(y | z_s) p(z_s) / q(z_s), the ``bound`` of ``importance_table``;
    - ``loo``: PSIS-LOO for approximate posteriors (Vehtari et al. 2017; Magnusson et al. 2019), sum_s r_s p(y | z_s) /
      sum_s r_s with r = p(z) / q(z) smoothed. Under the exact posterior r is 1 / p(y | z), the harmonic mean: its
      weights have to carry the posterior back to the prior, so it needs few latents, weak data, and its k-hat read.

    Where their difference exceeds ``mc_se``, believe ``evidence``; where both k-hats are bad, neither. Pairs of one
    model differ by what their guides can estimate, not by what they forecast.

    ``table`` has, for each ``estimator`` and ``pair``, the columns of ``arviz_stats.compare`` (``rank``, ``elpd``,
    ``p``, ``elpd_diff``, stacking ``weight``, ``se``, ``dse``, ``warning``), elpd in nats summed over windows, and
    ``mc_se``, the Monte-Carlo error of elpd; ``khat_max``; ``khat_bad``, the share of windows above arviz's limit
    min(1 - 1 / log10 S, 0.7); ``windows``, how many were looked at, of ``total``. ``se`` and ``dse`` take windows as
    independent, which overlapping ones are not. ``windows`` has ``pair``, the labels of ``importance_table`` (positions
    among the windows looked at), and ``evidence``, ``evidence_se``, ``evidence_khat``, ``loo``, ``loo_se``,
    ``loo_khat``.

    About ``num_windows`` windows are looked at, evenly spaced. Raises ValueError for fewer than two pairs, and as
    ``importance_table`` does.
    """
    if len(pairs) < 2:
        raise ValueError(f"a comparison needs at least two pairs, not {len(pairs)}")
    _check_draws(num_draws)
    shown, labels = windows.at_most(num_windows), []
    estimates: dict[str, dict[str, Any]] = {"evidence": {}, "loo": {}}
    for name, (model, guide) in pairs.items():
        parts = list(_weighed(model, guide, shown, num_draws, batch_size, seed, progress))
        log_weights, log_ratio, log_lik = (np.concatenate([part[i] for part in parts]) for i in range(3))
        found = {"evidence": _evidence(log_weights, log_lik), "loo": _loo(log_ratio, log_lik)}
        columns = {}
        for estimator, estimate in found.items():
            estimates[estimator][name] = estimate
            columns[estimator] = estimate.elpd.elpd_i.to_numpy()
            columns[f"{estimator}_se"] = estimate.mc_se
            columns[f"{estimator}_khat"] = estimate.elpd.pareto_k.to_numpy()
        rows = window_labels(shown).assign(**columns)
        rows.insert(0, "pair", name)
        labels.append(rows)
    tables = [_ranked(estimator, found) for estimator, found in estimates.items()]
    table = pd.concat(tables, ignore_index=True).assign(windows=len(shown), total=len(windows))
    return Comparison(table, pd.concat(labels, ignore_index=True))


def smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pareto-smoothed log weights (B, S), normalised, and k-hat (B,), of ``log_weights`` (B, S).

    k-hat is -inf where the largest weights are one value, and inf where one weight is all that a double can hold.
    """
    array_stats = import_module("arviz_stats.base").array_stats
    draws = log_weights.shape[1]
    tail = int(min(draws / 5, 3 * math.sqrt(draws)))
    ordered = np.sort(log_weights, axis=1)
    result = log_weights - np.logaddexp.reduce(log_weights, axis=1)[:, None]
    khat = np.full(len(log_weights), -math.inf)
    varies = ordered[:, -1] - ordered[:, -tail] > CONSTANT
    if varies.any():
        with np.errstate(all="ignore"):  # weights further apart than a double can hold
            # psislw takes the negated log ratio: what it was written for is the log likelihood of PSIS-LOO.
            smooth, shape = array_stats.psislw(-log_weights[varies], axis=-1)
        quarter = ordered[varies, -tail + tail // 4] - ordered[varies, -1]  # the fit scales by it
        fitted = np.isfinite(shape) & (quarter > UNDERFLOW)
        khat[varies] = np.where(fitted, shape, math.inf)
        result[varies] = np.where(fitted[:, None], smooth, result[varies])
    return result, khat


class _Estimate(NamedTuple):
    elpd: Any  # arviz_stats.ELPDData with its pointwise values
    mc_se: np.ndarray


def _check_draws(num_draws: int) -> None:
    if num_draws < FEWEST:
        raise ValueError(f"k-hat needs at least {FEWEST} draws to fit a tail to, not {num_draws}")


def _weighed(
    model: Model, guide: Guide, windows: Rows, num_draws: int, batch_size: int, seed: int, progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, batch by batch, log w, log p(z) / q(z) and log p(y | z), each (B, S)."""
    check_futures(windows)

    def array(values: Tensor) -> np.ndarray:
        return values.mT.cpu().numpy()

    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device_of(model), progress, "weighing"):
            draws = posterior_draws(model, guide, context, future, num_draws)
            log_weights, log_lik = draws.log_weights, draws.log_likelihood
            yield array(log_weights), array(log_weights - log_lik), array(log_lik)


def _figures(log_weights: np.ndarray) -> dict[str, np.ndarray]:
    root = math.sqrt(log_weights.shape[1])
    smooth, khat = smoothed(log_weights)
    elbo, bound = log_weights.mean(1), _log_mean(log_weights)
    relative = np.exp(log_weights - bound[:, None])  # w / mean w
    away = relative - 1 - (log_weights - elbo[:, None])  # what a draw adds to bound - elbo
    return {
        "khat": khat,
        "ess": np.exp(-np.logaddexp.reduce(2 * smooth, axis=1)),
        "elbo": elbo,
        "elbo_se": log_weights.std(1, ddof=1) / root,
        "bound": bound,
        "bound_se": relative.std(1, ddof=1) / root,
        "gap": bound - elbo,
        "gap_se": away.std(1, ddof=1) / root,
    }


def _log_mean(values: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.logaddexp.reduce(values, axis=1) - math.log(values.shape[1])
    return mean


def _evidence(log_weights: np.ndarray, log_lik: np.ndarray) -> _Estimate:
    import xarray as xr

    (windows, draws), bound, (_, khat) = log_weights.shape, _log_mean(log_weights), smoothed(log_weights)
    limit = min(1 - 1 / math.log10(draws), 0.7)
    relative = np.exp(log_weights - bound[:, None])
    elpd = import_module("arviz_stats").ELPDData(
        kind="loo",
        elpd=bound.sum(),
        se=math.sqrt(windows * bound.var()),
        p=(_log_mean(log_lik) - bound).sum(),
        n_samples=draws,
        n_data_points=windows,
        scale="log",
        warning=bool((khat > limit).any()),
        good_k=limit,
        elpd_i=xr.DataArray(bound, dims="window"),
        pareto_k=xr.DataArray(khat, dims="window"),
        approx_posterior=True,
    )
    return _Estimate(elpd, relative.std(1, ddof=1) / math.sqrt(draws))


def _loo(log_ratio: np.ndarray, log_lik: np.ndarray) -> _Estimate:
    import xarray as xr

    weights, khat = smoothed(log_ratio)
    dims = ["chain", "draw", "window"]
    data = xr.DataTree.from_dict({"log_likelihood": xr.Dataset({"y": (dims, log_lik.T[None])})})
    coords = data["log_likelihood"].coords
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of k-hats above the limit: they are in the table
        elpd = import_module("arviz_stats").loo(
            data,
            pointwise=True,
            reff=1.0,
            log_weights=xr.DataArray(weights.T[None], dims=dims, coords=coords),
            pareto_k=xr.DataArray(khat, dims="window"),
        )
    part = weights + log_lik
    above = np.exp(part - np.logaddexp.reduce(part, axis=1)[:, None])
    return _Estimate(elpd, np.sqrt(np.square(above - np.exp(weights)).sum(1)))  # a ratio of means, delta method


def _ranked(estimator: str, found: Mapping[str, _Estimate]) -> pd.DataFrame:
    elpds = {name: estimate.elpd for name, estimate in found.items()}
    # Stacking takes exp(elpd_i), which underflows on long horizons: what all pairs have in common changes no weight.
    best = np.max([elpd.elpd_i.to_numpy() for elpd in elpds.values()], axis=0)
    moved = {name: replace(elpd, elpd_i=elpd.elpd_i - best) for name, elpd in elpds.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of order statistics, and of how arviz calls pandas
        table = import_module("arviz_stats").compare(moved)
    khats = {name: elpd.pareto_k.to_numpy() for name, elpd in elpds.items()}
    order = list(table.index)
    table = table.assign(
        mc_se=[float(np.sqrt(np.square(found[name].mc_se).sum())) for name in order],
        khat_max=[float(khats[name].max()) for name in order],
        khat_bad=[float((khats[name] > elpds[name].good_k).mean()) for name in order],
    )
    table.insert(0, "pair", order)
    table.insert(0, "estimator", estimator)
    return table
