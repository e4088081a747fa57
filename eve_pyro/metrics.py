"""Scores of probabilistic forecasts: pure functions of predictions (draws first) and truth, no state.

Every function returns one score an observation (or a path), not averaged further: ``truth`` has shape (...), draws have
(S, ...). Scores are in the scale of the data, log scores in nats; lower is better except for ``coverage``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mse(draws: Tensor, truth: Tensor) -> Tensor:
    """Squared error of the mean of ``draws`` (S, ...)."""
    return (draws.mean(0) - truth).square()


def mae(draws: Tensor, truth: Tensor) -> Tensor:
    """Absolute error of the median of ``draws`` (S, ...), the middle two averaged for an even S."""
    return (draws.quantile(0.5, dim=0) - truth).abs()


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """CRPS from draws (S, ...), unbiased for the distribution they come from (Gneiting & Raftery 2007, eq. 21).

    E|X - y| - E|X - X'| / 2, the second mean over distinct pairs. One draw is a point forecast: the absolute error.
    """
    error = (draws - truth).abs().mean(0)
    count = draws.shape[0]
    if count == 1:
        return error
    rank = 2 * torch.arange(1, count + 1, device=draws.device, dtype=draws.dtype) - count - 1
    ordered = (draws - draws.mean(0)).sort(0).values  # the ranks sum to zero: the mean cancels, but not its rounding
    return error - torch.tensordot(rank, ordered, dims=1) / (count * (count - 1))


def crps_normal(loc: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """CRPS of a normal, closed form (Gneiting et al. 2005, eq. 5)."""
    return _expected_distance(truth - loc, scale) - scale / math.sqrt(math.pi)


def crps_student_t(df: Tensor, loc: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """CRPS of Student's t, df > 1, closed form (Jordan, Krueger & Lerch 2019). Computed in float64 on the CPU."""
    z, df = ((truth - loc) / scale).cpu().double(), df.cpu().double()  # in this order: MPS has no float64
    density = torch.distributions.StudentT(df, validate_args=False).log_prob(z).exp()
    beta = torch.lgamma(df - 0.5) - 2 * torch.lgamma(0.5 * df) + torch.lgamma(0.5 * (df + 1)) * 2 - torch.lgamma(df)
    spread = 2 * df.sqrt() / (df - 1) * (beta - 0.5 * math.log(math.pi)).exp()
    unit = z * (2 * student_t_cdf(df, z) - 1) + 2 * density * (df + z.square()) / (df - 1) - spread
    return scale * unit.to(scale)


def student_t_cdf(df: Tensor, z: Tensor) -> Tensor:
    """CDF of the standard Student's t at ``z``. Torch has none: SciPy's, on the CPU."""
    from scipy import special  # adds filters to everybody's warnings: not on import

    return torch.as_tensor(special.stdtr(df.cpu().numpy(), z.cpu().numpy())).to(z)


def student_t_icdf(df: Tensor, level: float) -> Tensor:
    """Quantile of the standard Student's t at ``level``."""
    from scipy import special  # adds filters to everybody's warnings: not on import

    return torch.as_tensor(special.stdtrit(df.cpu().numpy(), level)).to(df)


def crps_normal_mixture(loc: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """CRPS of an equal mixture of normals, ``loc`` and ``scale`` (S, ...), closed form (Grimit et al. 2006, eq. 5)."""
    count = loc.shape[0]
    if count == 1:
        return crps_normal(loc[0], scale[0], truth)
    error = _expected_distance(truth - loc, scale).mean(0)
    spread = torch.zeros_like(error)
    variance = scale.square()
    for i in range(count):  # pairs i <= j, those with i < j counted twice
        pairs = _expected_distance(loc[i:] - loc[i], (variance[i:] + variance[i]).sqrt())
        spread += 2 * pairs.sum(0) - pairs[0]
    return error - spread / (2 * count**2)


def _expected_distance(shift: Tensor, scale: Tensor) -> Tensor:
    """E|X| for X ~ Normal(shift, scale^2)."""
    t = shift / scale
    return shift * torch.erf(t * math.sqrt(0.5)) + scale * math.sqrt(2 / math.pi) * torch.exp(-0.5 * t.square())


def energy_score(paths: Tensor, truth: Tensor) -> Tensor:
    """Energy score of joint ``paths`` (S, ..., H) for ``truth`` (..., H), divided by sqrt(H); unbiased as ``crps`` is.

    The division makes horizons comparable: it is the CRPS when H = 1. Source: Gneiting & Raftery 2007, eq. 22.
    """
    count, horizon = paths.shape[0], truth.shape[-1]
    error = (paths - truth).norm(dim=-1).mean(0)
    if count > 1:
        centred = paths - paths.mean(0)  # distances by matrix products lose their digits far from zero
        flat = centred.flatten(1, -2).transpose(0, 1) if paths.ndim > 2 else centred[None]  # (B, S, H)
        spread = torch.cdist(flat, flat).sum((-1, -2)) / (count * (count - 1))
        error = error - 0.5 * spread.reshape(error.shape)
    return error / math.sqrt(horizon)


def crps_mean(paths: Tensor, truth: Tensor) -> Tensor:
    """CRPS of the mean over the horizon, from joint ``paths`` (S, ..., H): a score of their dependence."""
    return crps(paths.mean(-1), truth.mean(-1))


def pinball(quantiles: Tensor, truth: Tensor, levels: Sequence[float]) -> Tensor:
    """Pinball loss of ``quantiles`` (Q, ...) at ``levels``, each in (0, 1); shape (Q, ...)."""
    if len(levels) != quantiles.shape[0]:
        raise ValueError(f"{quantiles.shape[0]} quantiles need as many levels, not {len(levels)}")
    level = torch.as_tensor(levels, dtype=truth.dtype, device=truth.device).reshape(-1, *[1] * truth.ndim)
    error = truth - quantiles
    return torch.maximum(level * error, (level - 1) * error)


def coverage(pit: Tensor, level: float = 0.9) -> Tensor:
    """Whether the central interval of ``level`` covers the truth, from its ``pit`` = F(y): 1.0 or 0.0."""
    return ((pit - 0.5).abs() <= level / 2).to(pit.dtype)


def log_score(log_prob: Tensor) -> Tensor:
    """Negative log density of an equal mixture, from the components' log densities at the truth (S, ...), in nats."""
    if log_prob.shape[0] == 1:
        return -log_prob[0]
    return math.log(log_prob.shape[0]) - log_prob.logsumexp(0)
