"""What a model and a guide foretell: joint paths, marginals, and the closed forms where there are some."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import transforms as T

from eve_pyro import metrics
from eve_pyro.distributions.mixture import EqualMixture, stacked
from eve_pyro.distributions.quantiles import Quantiles
from eve_pyro.metrics import log_score
from eve_pyro.protocols import OBSERVED, Guide, Integrable, Latents, Model

Program = Callable[..., Any]
BISECTIONS = 20  # brackets a quantile to a millionth of the spread of the components


@dataclass(frozen=True)
class Predictive:
    """The forecast of B windows.

    ``paths`` (S, B, H) are joint draws. ``components`` are distributions with batch (C, B, H) and equal weights: one
    (C = 1) where the marginal is ``exact``, else one a draw; None where the family is not one of ours. ``joint``
    has batch (B, 1) and event (H,), or is None where the units cannot be integrated out. ``values`` are the components
    of any family, with batch (..., B, 1, H), or None where the values of a path are no distributions of their own.
    """

    paths: Tensor
    components: TorchDistribution | None
    joint: TorchDistribution | None
    values: TorchDistribution | None = None

    @property
    def exact(self) -> bool:
        """Whether the marginals are closed form and not a mixture over draws."""
        return self.joint is not None and self.components is not None

    def log_prob(self, truth: Tensor) -> Tensor | None:
        """Return the log density of every value of ``truth`` (B, H) under each component, (C, B, H), if it has one."""
        return None if self.values is None else self.values.log_prob(truth.unsqueeze(-2)).reshape(-1, *truth.shape)


def vectorized(program: Program, num_draws: int) -> Program:
    """Return ``program`` under an outermost plate of ``num_draws`` draws, left of windows and units."""
    return pyro.plate("draws", num_draws, dim=-3)(program) if num_draws > 1 else program


def forecast_trace(model: Model, guide: Guide, context: Tensor, num_draws: int = 1) -> tuple[Trace, Trace]:
    """Return the traces of ``guide(context)`` and of ``model(context)`` replayed against it, as at forecast time."""
    guide_trace = poutine.trace(vectorized(guide, num_draws)).get_trace(context)
    replayed = poutine.replay(vectorized(model, num_draws), trace=guide_trace)
    return poutine.trace(replayed).get_trace(context), guide_trace


def latent_sites(model_trace: Trace) -> dict[str, Any]:
    """Return the unobserved sample sites of a model's trace, the observation and plates left out."""
    return {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and name != OBSERVED
        and not poutine.util.site_is_subsample(site)
    }


def forecast_latents(model_trace: Trace, guide_trace: Trace) -> Latents:
    """Return the distribution each latent has at forecast time: the guide's where it has one, else the prior's.

    None stands for a Delta that passes on an auxiliary draw, as autoguides make them: it is no point. Raises ValueError
    for a site of the guide that the model has not, under whatever name it was meant.
    """
    own: dict[str, Any] = dict(guide_trace.nodes)
    refuse_added_sites(model_trace, guide_trace)
    auxiliary = any(site["type"] == "sample" and site["infer"].get("is_auxiliary") for site in own.values())
    latents = {name: own.get(name, site)["fn"] for name, site in latent_sites(model_trace).items()}
    return {name: None if auxiliary and isinstance(fn, dist.Delta) else fn for name, fn in latents.items()}


def refuse_added_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ValueError where ``guide(context)`` samples what is no latent site of the model: it would do nothing."""
    latents = latent_sites(model_trace)
    for name, site in latent_sites(guide_trace).items():
        if name not in latents and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"without a future the guide samples {name!r}, which is no latent site of the model ({[*latents]}): "
                "remove or rename it"
            )


def marginal(fn: TorchDistribution, latents: Latents) -> TorchDistribution | None:
    """Return p(y_h | x) of likelihood ``fn`` with ``latents`` integrated out, or None without a closed form."""
    if isinstance(fn, Integrable):
        return fn.marginal(latents)
    return fn if _all_points(latents) else None


def joint(fn: TorchDistribution, latents: Latents) -> TorchDistribution | None:
    """Return p(y | x) of likelihood ``fn`` with ``latents`` integrated out, or None without a closed form."""
    if isinstance(fn, Integrable):
        return fn.joint(latents)
    return fn if _all_points(latents) else None


def values(fn: TorchDistribution) -> TorchDistribution | None:
    """Return the marginals of ``fn``'s values given the latents, as a batch; None for families not known here.

    Known are independent values of any family, moved one by one or not, multivariate normals, mixtures of normals
    or of Student's t (the members come leftmost) and quantiles, which are returned as they are.
    """
    if isinstance(fn, Quantiles):
        return fn
    if isinstance(fn, Integrable):
        fn = fn.conditional()
    if isinstance(fn, torch.distributions.Independent):
        return fn.base_dist
    if isinstance(fn, torch.distributions.TransformedDistribution):
        single, moves = values(fn.base_dist), [_one_by_one(transform) for transform in fn.transforms]
        return None if single is None or None in moves else dist.TransformedDistribution(single, moves)
    if isinstance(fn, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return dist.Normal(fn.mean, fn.stddev, validate_args=False)
    if isinstance(fn, EqualMixture):
        return stacked([values(member) for member in fn.members])
    return None


def is_categorical(fn: TorchDistribution | None) -> bool:
    """Return whether ``fn``, as ``values`` returns it, gives numbers of classes, whose distances mean nothing."""
    return isinstance(fn, torch.distributions.Categorical)


def _one_by_one(transform: T.Transform) -> T.Transform | None:
    """Return what ``transform`` does to single values, or None where they hear of one another."""
    if isinstance(transform, T.AffineTransform):
        return T.AffineTransform(transform.loc, transform.scale)
    return transform if transform.domain.event_dim == 0 else None


def mixture_log_prob(fn: TorchDistribution, truth: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Return sum_h w_h log mean_s p(y_h | z_s), (B,), for ``fn`` with batch (S, B, 1): log densities of its marginals.

    Where the values of ``fn`` do not separate, the mixture is over whole paths: log mean_s p(y | z_s).
    """
    single = values(fn)
    log_prob = fn.log_prob(truth)[..., None] if single is None else single.log_prob(truth)  # (S, B, 1, H)
    log_prob = log_prob.reshape(-1, *log_prob.shape[-3:])
    return -(weights * log_score(log_prob)).sum((-1, -2))


@torch.no_grad()
def predict(model: Model, guide: Guide, context: Tensor, num_draws: int = 100) -> Predictive:
    """Forecast B windows from ``context`` (B, T, L), in the scale of the context.

    Where the units integrate out in closed form, paths come from the joint distribution itself; else each of the
    ``num_draws`` paths has draws of the units of its own.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, not {num_draws}")
    model_trace, guide_trace = forecast_trace(model, guide, context)
    fn: Any = observation(model_trace)
    latents = forecast_latents(model_trace, guide_trace)
    whole, single = joint(fn, latents), marginal(fn, latents)
    if whole is not None and single is not None:
        paths = whole.sample(torch.Size([num_draws])).squeeze(-2).to(context.dtype)  # (S, B, 1, H) -> (S, B, H)
        return Predictive(paths, _components(single, context.shape[0]), whole, values(single))
    if num_draws > 1:
        model_trace, _ = forecast_trace(model, guide, context, num_draws)
    site: Any = model_trace.nodes[OBSERVED]
    shape = (num_draws, context.shape[0], site["value"].shape[-1])
    paths, fn = site["value"].reshape(shape).to(context.dtype), site["fn"]  # numbers of classes are no floats
    return Predictive(paths, _components(fn, context.shape[0]), None, values(fn))


def _all_points(latents: Latents) -> bool:
    return all(isinstance(fn, dist.Delta) for fn in latents.values())


def observation(model_trace: Trace) -> Any:
    """Return the likelihood of ``y``; ValueError unless it is sampled in the windows plate with event (H,)."""
    if OBSERVED not in model_trace.nodes:
        raise ValueError(f"the model samples no site {OBSERVED!r} to forecast")
    site: Any = model_trace.nodes[OBSERVED]
    fn, dims = site["fn"], {frame.dim for frame in site["cond_indep_stack"]}
    if len(fn.event_shape) != 1 or -2 not in dims or fn.batch_shape[-1:] != (1,):
        raise ValueError(
            f"site {OBSERVED!r} needs batch (windows, 1) and event (horizon,), not {tuple(fn.batch_shape)} and "
            f"{tuple(fn.event_shape)}: sample it in the windows plate at dim -2, with .to_event(1) and "
            "obs=future.unsqueeze(-2)"
        )
    return fn


def _components(fn: TorchDistribution, num_windows: int) -> TorchDistribution | None:
    """Return the values of ``fn``, batch (..., B, 1, H), with batch (C, B, H); None for families not listed here."""
    single = values(fn)
    if not isinstance(single, dist.Normal | dist.StudentT):
        return None

    def flat(parameter: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(single.batch_shape, (num_windows, 1, 1))
        return parameter.expand(shape).reshape(-1, num_windows, shape[-1])

    if isinstance(single, dist.StudentT):
        return dist.StudentT(flat(single.df), flat(single.loc), flat(single.scale), validate_args=False)
    return dist.Normal(flat(single.loc), flat(single.scale), validate_args=False)


def moments(prediction: Predictive) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of every value, each (B, H): exact for normals and mixtures, else from the paths."""
    components, paths = prediction.components, prediction.paths
    if components is None:
        return paths.mean(0), paths.std(0)
    variance = components.variance.mean(0) + components.mean.var(0, correction=0)
    return components.mean.mean(0), variance.sqrt()


def quantile(prediction: Predictive, level: float) -> Tensor:
    """Return the quantile at ``level`` in (0, 1), (B, H): exact for normals and Student's t, by bisection for mixtures.

    A forecast of quantiles is interpolated. Other families are read off the paths, so their resolution is the number of
    draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"a quantile's level lies between 0 and 1, not {level}")
    components = prediction.components
    if isinstance(prediction.values, Quantiles):
        return prediction.values.at(level).squeeze(-2)
    if components is None:
        return prediction.paths.quantile(level, dim=0)
    each = _icdf(components, level)
    low, high = each.min(0).values, each.max(0).values  # the mixture's quantile lies between its components'
    if each.shape[0] == 1:
        return low
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        below = cdf(components, middle).mean(0) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def cdf(components: TorchDistribution, value: Tensor) -> Tensor:
    """Return the CDF of each of a prediction's components, (C, B, H)."""
    if isinstance(components, dist.StudentT):
        z = (value - components.loc) / components.scale
        return metrics.student_t_cdf(components.df.expand_as(z), z)
    return components.cdf(value)


def _icdf(components: TorchDistribution, level: float) -> Tensor:
    if isinstance(components, dist.StudentT):
        return components.loc + components.scale * metrics.student_t_icdf(components.df, level)
    return components.icdf(torch.as_tensor(level, dtype=components.mean.dtype, device=components.mean.device))
