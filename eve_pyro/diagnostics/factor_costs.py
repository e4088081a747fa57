"""What each unit of a factor normal is worth, for all units at once: no unit costs a factorisation of its own."""

from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.linalg import cholesky, solve_triangular
from torch.nn import functional as F

from eve_pyro import metrics
from eve_pyro.distributions.factor import FactorNormal
from eve_pyro.distributions.paths import path_moments

CHUNK = 16  # units whose paths are in memory at once


class Activity(NamedTuple):
    """Independent Gaussian activity of N units over P path steps: ``mean`` (B, N, P), ``covariance`` (B, N, P, P)."""

    mean: Tensor
    covariance: Tensor


class Tails(NamedTuple):
    """A volatility unit integrated out: deviations become Student's t of ``df``, times ``stretch``, each (B, 1)."""

    df: Tensor
    stretch: Tensor


class Linear(NamedTuple):
    """y = loc + sum_n W_n a_n + noise: ``loc`` and ``noise`` (B, H), ``loadings`` W (B, H, N, P)."""

    loc: Tensor
    noise: Tensor
    loadings: Tensor


def unit_costs(
    fn: FactorNormal,
    old: TorchDistribution,
    new: TorchDistribution,
    chosen: list[int],
    future: Tensor,
    num_draws: int,
    tails: Tails | None = None,
) -> Tensor | None:
    """Return what CRPS, energy score and joint log score lose where one of the ``chosen`` U units at a time leaves its
    distribution ``old`` for ``new``: (U, 3, B), in the scale of ``future`` (B, H), the last in nats a value.

    None where either is no Gaussian path, or has another mean than 0 under ``tails``. Energy scores come from
    ``num_draws`` draws, the same before and after.
    """
    before, after = _activity(fn, old), _activity(fn, new)
    if before is None or after is None or (tails and any(each.mean.count_nonzero() for each in (before, after))):
        return None
    linear = _linear(fn)
    flat = linear.loadings.flatten(-2)  # (B, H, N P)
    weighted = (linear.loadings.unsqueeze(-2) @ before.covariance.unsqueeze(1)).flatten(-3)
    covariance = weighted @ flat.mT + torch.diag_embed(linear.noise.square())
    mean = linear.loc + (flat @ before.mean.flatten(-2).unsqueeze(-1))[..., 0]
    future = future.double()

    loadings = linear.loadings[:, :, chosen]
    shift, change = (after.mean - before.mean)[:, chosen], (after.covariance - before.covariance)[:, chosen]
    costs = (
        _crps_costs(mean, covariance, loadings, shift, change, future, tails),
        _energy_costs(linear, before, after, chosen, future, num_draws, tails),
        _log_score_costs(future - mean, covariance, loadings, shift, change, tails),
    )
    return torch.stack(costs, 2).permute(1, 2, 0)  # (B, U) each -> (U, 3, B)


def _activity(fn: FactorNormal, units: TorchDistribution) -> Activity | None:
    """Return the moments of the activity that ``fn`` reads, in double precision."""
    found = path_moments(units)
    if found is None:
        return None
    (loc, covariance), steps, weight = found, fn.activity.shape[-2], fn.pool_weight
    mean = weight * loc.double().sum(-1)[..., -steps:]
    return Activity(mean, weight**2 * covariance.double().sum(-3)[..., -steps:, -steps:])


def _linear(fn: FactorNormal) -> Linear:
    """Return the factor normal as a linear function of the activity, in double precision."""
    noise = (fn.scale * fn.noise)[..., 0, :].double()  # (B, H)
    weights = noise.unsqueeze(-1) * fn.loadings * fn.gain[..., fn.patch, :]  # (B, H, N)
    own = F.one_hot(fn.patch, fn.gain.shape[-2]).to(weights)  # a step reads its own patch alone
    return Linear(fn.loc[..., 0, :].double(), noise, weights.unsqueeze(-1) * own.unsqueeze(-2))


def _crps_costs(
    mean: Tensor,
    covariance: Tensor,
    loadings: Tensor,
    shift: Tensor,
    change: Tensor,
    future: Tensor,
    tails: Tails | None,
) -> Tensor:
    """Return (B, U): every marginal moves by W s and its variance changes by diag(W D W')."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    moved = (loadings * shift.unsqueeze(1)).sum(-1).mT  # (B, U, H)
    added = ((loadings.unsqueeze(-2) @ change.unsqueeze(1)).squeeze(-2) * loadings).sum(-1).mT
    before = _crps(mean.unsqueeze(1), variance.sqrt().unsqueeze(1), future.unsqueeze(1), tails)
    after = _crps(mean.unsqueeze(1) + moved, (variance.unsqueeze(1) + added).sqrt(), future.unsqueeze(1), tails)
    return (after - before).mean(-1)


def _crps(loc: Tensor, scale: Tensor, truth: Tensor, tails: Tails | None) -> Tensor:
    """Return the CRPS of values, each (B, U, H)."""
    if tails is None:
        return metrics.crps_normal(loc, scale, truth)
    df, stretch = (each.unsqueeze(-1) for each in tails)
    return metrics.crps_student_t(df, loc, stretch * scale, truth)


def _log_score_costs(
    residual: Tensor, covariance: Tensor, loadings: Tensor, shift: Tensor, change: Tensor, tails: Tails | None
) -> Tensor:
    """Return (B, U), in nats a value, for y ~ Normal(f + W s, C + W D W') instead of Normal(f, C).

    With G = W' C^-1 W and v = W' C^-1 (r - W s), the log determinant grows by log det(I + D G) and the square Q is
    |r - W s|^2 - v' (I + D G)^-1 D v in the metric of C^-1 (determinant lemma, Woodbury's identity). Under ``tails``
    Q costs (df + H) log(1 + Q / (df stretch^2)).
    """
    root = cholesky(covariance)
    whitened = solve_triangular(root, loadings.flatten(-2), upper=False)
    whitened = whitened.unflatten(-1, loadings.shape[-2:]).movedim(1, -1)  # (B, U, P, H)
    gram = whitened @ whitened.mT  # G, (B, U, P, P)
    target = solve_triangular(root, residual.unsqueeze(-1), upper=False)
    pull = (whitened @ target.unsqueeze(1))[..., 0]  # W' C^-1 r, (B, U, P)
    carried = (gram @ shift.unsqueeze(-1))[..., 0]
    left = (pull - carried).unsqueeze(-1)  # v
    inner = torch.eye(gram.shape[-1]).to(gram) + change @ gram
    gained = (left * torch.linalg.solve(inner, change @ left)).sum((-2, -1))
    square = (shift * (carried - 2 * pull)).sum(-1) - gained
    if tails is not None:
        size, spread = residual.shape[-1], tails.df * tails.stretch.square()
        square = (tails.df + size) * (square / (spread + target.square().sum((-2, -1)).unsqueeze(-1))).log1p()
    return 0.5 * (torch.logdet(inner) + square) / residual.shape[-1]


def _energy_costs(
    linear: Linear,
    before: Activity,
    after: Activity,
    chosen: list[int],
    future: Tensor,
    num_draws: int,
    tails: Tails | None,
) -> Tensor:
    """Return (B, U), from paths whose draws of units, noise and volatility are the same before and after.

    A path p moves by W u. With r = W' p + W' W u / 2 the square of its distance to another path grows by
    2 (r_s - r_t) (u_s - u_t), and of that to the truth by 2 (r - W' y) u, so that no moved path is ever made.
    """
    shocks = torch.randn(num_draws, *before.mean.shape, 1).to(before.mean)
    activity, moved = (each.mean + (cholesky(each.covariance) @ shocks)[..., 0] for each in (before, after))
    noise = linear.noise * torch.randn(num_draws, *linear.noise.shape).to(linear.noise)
    if tails is not None:
        half = 0.5 * tails.df
        wild = tails.stretch * torch.distributions.Gamma(half, half).sample((num_draws,)).rsqrt()  # (S, B, 1)
        activity, moved, noise = activity * wild[..., None], moved * wild[..., None], noise * wild
    paths = linear.loc + torch.einsum("bhnp,sbnp->sbh", linear.loadings, activity) + noise
    first, second = torch.triu_indices(num_draws, num_draws, 1)
    spread = (paths[first] - paths[second]).square().sum(-1, keepdim=True)  # (S (S - 1) / 2, B, 1)
    error = (paths - future).square().sum(-1, keepdim=True)  # (S, B, 1)
    costs = []
    for units in torch.tensor(chosen).split(CHUNK):
        loadings, change = linear.loadings[:, :, units], (moved - activity)[:, :, units]
        gram = torch.einsum("bhup,bhuq->bupq", loadings, loadings)  # W' W
        reach = torch.einsum("bhup,sbh->sbup", loadings, paths)
        reach = reach + 0.5 * torch.einsum("bupq,sbuq->sbup", gram, change)  # r
        target = torch.einsum("bhup,bh->bup", loadings, future)
        apart = 2 * ((reach[first] - reach[second]) * (change[first] - change[second])).sum(-1)
        away = 2 * ((reach - target) * change).sum(-1)
        costs.append(_grown(error, away) - 0.5 * _grown(spread, apart))
    return torch.cat(costs, -1) / paths.shape[-1] ** 0.5


def _grown(square: Tensor, by: Tensor) -> Tensor:
    """Return by how much distances grow, averaged over the draws, where their squares grow."""
    return ((square + by).clamp(min=0).sqrt() - square.sqrt()).mean(0)
