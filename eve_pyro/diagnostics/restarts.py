"""Whether restarts agree: units matched between them, and r_hat over seeds, of units and of what has no labels."""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from eve_pyro.diagnostics.draws import posterior_draws
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.predictive import predict
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import Guide, Model, Rows


class Agreement(NamedTuple):
    """``units``: one row a unit of the first restart; ``matches``: one row a unit and further restart; ``label_free``:
    one row a quantity. See ``restart_agreement``.
    """

    units: pd.DataFrame
    matches: pd.DataFrame
    label_free: pd.DataFrame


def restart_agreement(
    pairs: Mapping[str, tuple[Model, Guide]],
    windows: Rows,
    num_draws: int = 200,
    num_windows: int = 50,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Agreement:
    """Say how well pairs of one architecture, trained from different seeds, agree on what their units infer.

    Units have no names: a restart may hold them in another order and with another sign. What a unit is known by is its
    posterior mean over windows, of the sum of its latent dimensions (event (T, K), as the next layer reads it; other
    events count in full); each further restart is matched to the first by the assignment with the largest sum of
    absolute correlations (Hungarian method, Kuhn 1955), and its draws are flipped where the correlation is negative.
    Units of one sign, as a volatility unit's are, have no other sign to take and are matched by what correlates most.

    ``units``: ``site, unit``; ``correlation``, the smallest absolute one among its matches; ``r_hat`` (rank-normalised
    and split, Vehtari et al. 2021) with the restarts as chains and ``num_draws`` draws of q(z | x, y) in each, the
    median over windows, and ``r_hat_max``. ``matches``: ``site, unit, restart, partner, sign, correlation``.

    ``label_free``: ``quantity``, ``r_hat`` and ``r_hat_max`` alike for the ``log_likelihood`` log p(y | z) under q and
    the ``forecast_mean`` over the horizon, draws as draws; and ``log_evidence``, log mean w (see ``importance_table``),
    one figure a window, so with windows as draws, plainly (r_hat_max is then r_hat); ``between``, the deviation between
    restarts of a window's mean, averaged over windows as a root mean square, in nats or in the scale of the series.

    r_hat near 1 (below about 1.05 for 200 draws) says that restarts cannot be told apart. A Gaussian linear readout
    leaves units free to rotate among one another, which no matching undoes: where units disagree and the label-free
    quantities agree, restarts have found the same forecaster in other coordinates.

    About ``num_windows`` windows are looked at. Raises ValueError for one pair, for pairs with different sites or
    numbers of units, for fewer than 4 draws or windows, and for guides that give points.
    """
    if len(pairs) < 2:
        raise ValueError("agreement needs two chains: pass pairs from at least two seeds")
    shown = windows.at_most(num_windows)
    if min(num_draws, len(shown)) < 4:
        raise ValueError(f"r_hat needs at least 4 draws and 4 windows, not {num_draws} and {len(shown)}")
    found = [
        _restart(*pair, shown, num_draws, batch_size, seed + number, progress)  # draws in common would look like
        for number, pair in enumerate(pairs.values())  # agreement, hence a seed for each
    ]
    first, tables, matches = found[0], [], []
    for name, restart in zip(pairs, found, strict=True):
        _check_alike(next(iter(pairs)), first, name, restart)
    for site in first.units:
        rows, chains = [], [first.units[site]]
        for name, restart in zip(list(pairs)[1:], found[1:], strict=True):
            match = _match(first.units[site], restart.units[site])
            chains.append(restart.units[site][:, :, match["partner"]] * match["sign"].to_numpy()[:, None])
            rows.append(match.assign(restart=name))
        together = pd.concat(rows, ignore_index=True)
        r_hat = _r_hat(np.stack(chains))  # (B, N, T)
        columns = {
            "unit": range(r_hat.shape[1]),
            "correlation": together.groupby("unit")["correlation"].min(),
            "r_hat": np.median(r_hat, axis=(0, 2)),
            "r_hat_max": r_hat.max(axis=(0, 2)),
        }
        tables.append(pd.DataFrame(columns).assign(site=site))
        matches.append(together.assign(site=site))
    return Agreement(
        pd.concat(tables, ignore_index=True)[["site", "unit", "correlation", "r_hat", "r_hat_max"]],
        pd.concat(matches, ignore_index=True)[["site", "unit", "restart", "partner", "sign", "correlation"]],
        _label_free(found),
    )


class _Restart(NamedTuple):
    units: dict[str, np.ndarray]  # (S, B, N, T), by site
    log_likelihood: np.ndarray  # (S, B)
    forecast_mean: np.ndarray  # (S, B)
    log_evidence: np.ndarray  # (B,)


def _restart(
    model: Model, guide: Guide, windows: Rows, num_draws: int, batch_size: int, seed: int, progress: bool
) -> _Restart:
    check_futures(windows)
    parts: list[Any] = []
    device = device_of(model)
    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device, progress, "drawing"):
            draws = posterior_draws(model, guide, context, future, num_draws)
            units = {
                site: (z.sum(-1) if z.ndim == 5 else z.reshape(*z.shape[:3], -1)).cpu().numpy()
                for site, z in draws.latents.items()
            }
            evidence = draws.log_weights.logsumexp(0) - math.log(num_draws)
            paths = predict(model, guide, context, num_draws).paths.mean(-1)
            parts.append((units, *(each.cpu().numpy() for each in (draws.log_likelihood, paths, evidence))))
    sites = {site: np.concatenate([part[0][site] for part in parts], axis=1) for site in parts[0][0]}
    return _Restart(sites, *(np.concatenate([part[i] for part in parts], axis=-1) for i in (1, 2, 3)))


def _check_alike(first_name: str, first: _Restart, name: str, other: _Restart) -> None:
    shapes = [{site: values.shape[2:] for site, values in restart.units.items()} for restart in (first, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"restarts {first_name!r} and {name!r} are no two of one architecture: their sites have units and steps "
            f"{shapes[0]} and {shapes[1]}"
        )


def _match(first: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    """Match the units of two restarts, draws (S, B, N, T) each, by what they are known by."""
    from scipy.optimize import linear_sum_assignment  # adds filters to everybody's warnings: not on import

    known = [np.moveaxis(draws.mean(0), 1, 0).reshape(draws.shape[2], -1) for draws in (first, other)]  # (N, B T)
    away = [each - each.mean(1, keepdims=True) for each in known]
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in away]
    unit = [np.divide(a, n, out=np.zeros_like(a), where=n > 0) for a, n in zip(away, norms, strict=True)]
    correlation = unit[0] @ unit[1].T  # 0 for a unit that never moves
    flips = (first < 0).any()
    rows, partner = linear_sum_assignment(-np.abs(correlation) if flips else -correlation)
    chosen = correlation[rows, partner]
    sign = np.where(flips & (chosen < 0), -1, 1)
    return pd.DataFrame({"unit": rows, "partner": partner, "sign": sign, "correlation": sign * chosen})


def _r_hat(chains: np.ndarray, method: str = "rank") -> np.ndarray:
    """Return r_hat over ``chains`` (M, S, ...); 1 where all of them stand at one value, as drawn classes may."""
    chains = np.moveaxis(chains, (0, 1), (-2, -1))
    array_stats = import_module("arviz_stats.base").array_stats
    with np.errstate(divide="ignore", invalid="ignore"):
        r_hat: np.ndarray = np.asarray(array_stats.rhat(chains, chain_axis=-2, draw_axis=-1, method=method))
    return np.where(np.ptp(chains, axis=(-2, -1)) == 0, 1.0, r_hat)


def _label_free(found: list[_Restart]) -> pd.DataFrame:
    rows = []
    for quantity in ("log_likelihood", "forecast_mean", "log_evidence"):
        chains = np.stack([getattr(restart, quantity) for restart in found])  # (M, S, B), or (M, B) over windows
        means = chains.mean(1) if chains.ndim == 3 else chains
        # Windows come in the order of time: a trend along them is no disagreement, so their chains are not split.
        r_hat = np.atleast_1d(_r_hat(chains) if chains.ndim == 3 else _r_hat(chains, "identity"))
        between = math.sqrt(means.var(0, ddof=1).mean())
        rows.append((quantity, float(np.median(r_hat)), float(r_hat.max()), between))
    return pd.DataFrame(rows, columns=["quantity", "r_hat", "r_hat_max", "between"])
