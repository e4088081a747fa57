"""The local ELBO: every unit pays for its own KL."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import PyroModule
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from eve_pyro.distributions.blocks import block_lengths, block_means, block_size
from eve_pyro.infer.predictive import forecast_latents, mixture_log_prob, observation, values
from eve_pyro.infer.programs import refuse_clashes
from eve_pyro.infer.terms import ELBOTerms, UnitTerms, by_unit, measure_units
from eve_pyro.metrics import log_score
from eve_pyro.protocols import OBSERVED, Blockwise, Integrable, Latents

Objective = Literal["elbo", "mixture", "predictive", "composite"]
Beta = float | Tensor | Mapping[str, Tensor]
Penalty = Callable[[ELBOTerms], Tensor]
FORECASTING = ("predictive", "composite")  # the objectives that weigh the ELBO, by alpha, against forecasts
PREDICTIVE = "_PREDICTIVE"


class LocalELBO(TraceMeanField_ELBO):
    r"""Pyro's mean-field ELBO with a beta for every unit, other likelihood terms, penalties, and its parts kept apart.

    loss = sum over windows of  -L + sum_n beta_n KL_n + sum of penalties,  in nats, where L is

    - ``elbo``: the mean over draws of log p(y | z_s);
    - ``mixture``: log of the mean over draws of p(y | z_s);
    - ``predictive``: alpha * (the ELBO above) + (1 - alpha) * log p(y) under the marginals at forecast time, in closed
      form where the likelihood can integrate its units out, else as the mixture over ``num_particles`` draws from the
      prior (or from a guide that needs no future). The alpha scales the KL as well;
    - ``composite``: alike, with a composite likelihood C in place of the marginals' density, which scores the means
      over blocks too, the horizon and from 13 steps on its quarters, rounded up. With c_b the share of its steps'
      variance that the mean of block b holds, in the mean over windows and without a gradient, and w_b = c_b times the
      part that b's steps are of all blocks',
      C = (log p(y) under the marginals + H sum_b w_b log p(mean of y over b)) / (1 + c), c = sum_b w_b. The ELBO weighs
      alpha * (1 - c), C the rest: the more steps err together, the less a path's density, which looks at differences
      between steps first, teaches of what they have in common. Where the likelihood is not ``Blockwise``, or has no
      closed form, it is ``predictive``. On composite likelihoods: Varin, Reid & Firth, Statistica Sinica 2011.

    At ``beta=1`` with ``elbo`` and no penalties this is ``TraceMeanField_ELBO``. ``beta`` is a number, a tensor over
    units, or a mapping from site to such a tensor (sites left out pay beta 1); assign ``elbo.beta`` between steps to
    change it. After each evaluation ``elbo.terms`` holds what was measured.

    Use it as ``LocalELBO()(model, guide)`` with a torch optimizer or as ``SVI(model, guide, optim, loss=LocalELBO())``;
    there modules that are no PyroModules are registered as "model" and "guide". Plates are windows (dim -2) and units
    (dim -1); others are refused. Source: arXiv 2602.18250, with the objectives named above.

    Raises ValueError for an unknown objective, alpha outside [0, 1], no particle, and, at the first evaluation, for
    sites it would get wrong (see ``measure_units``) and parameters that SVI would silently not train.
    """

    terms: ELBOTerms

    def __init__(
        self,
        objective: Objective = "elbo",
        alpha: float = 0.5,
        beta: Beta = 1.0,
        num_particles: int = 1,
        penalties: Mapping[str, Penalty] | None = None,
        sample_kl: bool = False,
    ) -> None:
        if objective not in get_args(Objective):
            raise ValueError(f"the objective is one of {', '.join(get_args(Objective))}, not {objective!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha weighs the ELBO against the predictive term and lies in [0, 1], not {alpha}")
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, not {num_particles}")
        super().__init__(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=2)
        self.objective, self.alpha, self.beta = objective, alpha, beta
        self.penalties, self.sample_kl = dict(penalties or {}), sample_kl

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss and leave its gradients on the parameters, as SVI asks for it."""
        with poutine.trace(param_only=True) as capture:
            refuse_clashes(model, guide)
            loss = super().loss_and_grads(_registered("model", model), _registered("guide", guide), *args, **kwargs)
        _check_trained(capture.trace, {"model": model, "guide": guide})
        return loss

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        # Past the parent's own check, which only warns where _check_sites refuses.
        model_trace, guide_trace = super(TraceMeanField_ELBO, self)._get_trace(model, guide, args, kwargs)
        _check_plates(model_trace, guide_trace)
        if self.objective != "elbo":
            observation(model_trace)
        if self.objective in FORECASTING:
            value, common = self._predictive(model, guide, model_trace, *args, **kwargs)
            model_trace.add_node(PREDICTIVE, name=PREDICTIVE, type="predictive", value=value, common=common)
        return model_trace, guide_trace

    def _predictive(
        self, model: Any, guide: Any, model_trace: Trace, context: Tensor, future: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return log p(y | x) at forecast time, (B,), scaled and masked as y is, and of a composite one its c."""
        observed: Any = model_trace.nodes[OBSERVED]
        fn: Any = observed["fn"]
        with poutine.block(hide_types=["sample"]):  # param sites still reach whoever collects them
            at_forecast = poutine.trace(guide).get_trace(context)
            latents = forecast_latents(model_trace, at_forecast)
            exact: Any = fn.marginal(latents) if isinstance(fn, Integrable) else None
            if exact is None and (held := getattr(fn, "held", None)):
                raise ValueError(
                    f"held {held} learn from marginals in closed form, which these latents do not leave: hold nothing"
                )
            if exact is None:
                fn = observation(poutine.trace(poutine.replay(model, trace=at_forecast)).get_trace(context))
        log_prob = mixture_log_prob(exact or fn, observed["value"])
        common = None
        if self.objective == "composite" and exact is not None and isinstance(fn, Blockwise):
            log_prob, common = _composite(log_prob, exact, fn, latents, observed)
        scaled = scale_and_mask(log_prob[:, None], scale=observed["scale"], mask=observed["mask"])
        return by_unit(scaled).sum((0, 2)), common

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[float, Tensor]:
        forecast: Any = model_trace.nodes.get(PREDICTIVE, {})
        predictive, common = forecast.get("value"), forecast.get("common")
        log_likelihood = self._log_likelihood(model_trace)
        units = measure_units(model_trace, guide_trace, self.sample_kl)
        paid, alpha = self._paid(units), 1.0 if predictive is None else self.alpha
        if common is not None:
            alpha = alpha * (1 - common)
        terms = ELBOTerms(log_likelihood, units, paid / len(log_likelihood), predictive, common, alpha)
        terms.penalties.update({name: penalty(terms) for name, penalty in self.penalties.items()})
        self.terms = terms.detach()
        loss = -log_likelihood.sum() + paid
        if predictive is not None:
            loss = alpha * loss - (1 - alpha) * predictive.sum()
        loss = loss + len(log_likelihood) * sum(terms.penalties.values())
        loss = loss * self.num_particles  # the estimator divides by the particles, which are averaged already
        return loss.item(), loss

    def _paid(self, units: Mapping[str, UnitTerms]) -> Tensor:
        """Return the sum of beta_n KL_n over units and windows, in nats."""
        unknown = set(self.beta) - set(units) if isinstance(self.beta, Mapping) else set()
        if unknown:
            raise ValueError(f"beta names {sorted(unknown)[0]!r}, the latent sites are {', '.join(units)}")
        costs = [(self.beta_of(site, each.kl) * each.kl).sum() for site, each in units.items()]
        return sum(costs, start=torch.zeros(()))

    def _log_likelihood(self, model_trace: Trace) -> Tensor:
        observed = [
            by_unit(site["log_prob"]).sum(-1)  # (S, B)
            for site in model_trace.nodes.values()
            if site["type"] == "sample" and site["is_observed"]
        ]
        if not observed:
            raise ValueError("the model observes nothing: pass obs=future to its site 'y'")
        windows = max(each.shape[1] for each in observed)  # what stands outside the windows counts once, not B times
        observed = [each if each.shape[1] == windows else each.expand(-1, windows) / windows for each in observed]
        log_prob: Tensor = sum(observed[1:], start=observed[0])
        if self.objective == "mixture":
            return -log_score(log_prob)
        return log_prob.mean(0)

    def beta_of(self, site: str, kl: Tensor) -> Tensor:
        """Return the betas of a site's units, broadcastable to ``kl`` (B, N)."""
        beta = self.beta.get(site, 1.0) if isinstance(self.beta, Mapping) else self.beta
        beta = torch.as_tensor(beta, dtype=kl.dtype, device=kl.device)
        if beta.ndim > 1 or (beta.ndim == 1 and beta.shape[0] not in (1, kl.shape[-1])):
            raise ValueError(
                f"beta for site {site!r} is a number or {kl.shape[-1]} values, not of shape {tuple(beta.shape)}"
            )
        if not torch.isfinite(beta).all() or (beta < 0).any():
            raise ValueError(f"beta for site {site!r} must be finite and not negative")
        return beta


def _composite(
    log_prob: Tensor, single: TorchDistribution, fn: Blockwise, latents: Latents, observed: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the composite log density (B,) of steps, whose own is ``log_prob``, and blocks, and c, see LocalELBO.

    Without blocks it is ``log_prob``, and c None. What is masked has no word in c.
    """
    value: Tensor = observed["value"]
    horizon = value.shape[-1]
    if (size := block_size(horizon)) is None or (means := fn.blocks(latents, size)) is None:
        return log_prob, None
    lengths = block_lengths(horizon, size).to(value)
    with torch.no_grad():
        shares = (_spread(means).square() / block_means(_spread(single).square(), size)).clamp(max=1.0)
        mask = torch.as_tensor(True if observed["mask"] is None else observed["mask"], device=value.device)
        shares, live = torch.broadcast_tensors(shares, mask.unsqueeze(-1))
        total = torch.where(live, shares, 0.0).flatten(0, -2).sum(0)
        weights = total / live[..., 0].sum().clamp(min=1) * lengths / lengths.sum()
        common = weights.sum()
    blocks = mixture_log_prob(means, block_means(value, size), horizon * weights)
    return (log_prob + blocks) / (1 + common), common


def _spread(fn: TorchDistribution) -> Tensor:
    """Return the scales of independent values, or their deviations where the family has no ``scale``."""
    single: Any = values(fn) or fn
    return single.scale if hasattr(single, "scale") else single.stddev


def _check_plates(*traces: Trace) -> None:
    """Refuse plates beyond windows and units: they would be taken for particles."""
    for trace in traces:
        sites: Any = [site for site in trace.nodes.values() if site["type"] == "sample"]
        for site in sites:
            for frame in site["cond_indep_stack"]:
                if frame.dim is not None and frame.dim < -2 and frame.name != "num_particles_vectorized":
                    raise ValueError(
                        f"site {site['name']!r} sits in plate {frame.name!r} at dim {frame.dim}; the local ELBO knows "
                        "windows at dim -2 and units at dim -1: make further axes event dims"
                    )


def _registered(role: str, program: Any) -> Any:
    """Return ``program`` with the parameters of a plain module registered, so that SVI finds them."""
    if not isinstance(program, nn.Module) or isinstance(program, PyroModule):
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        pyro.module(role, program)
        return program(*args, **kwargs)

    return run


def _check_trained(captured: Trace, programs: Mapping[str, Any]) -> None:
    """Refuse what SVI would do silently: leave parameters as they are because the store does not hold them."""
    sites: Any = captured.nodes.values()
    held = {id(site["value"].unconstrained()) for site in sites}
    for role, program in programs.items():
        if isinstance(program, nn.Module) and not isinstance(program, PyroModule):
            lost = [name for name, p in program.named_parameters() if p.requires_grad and id(p) not in held]
            if lost:
                raise ValueError(
                    f"SVI would not train {len(lost)} parameters of the {role} ({role}.{lost[0]}, ...): the param "
                    "store holds others of these names. Call pyro.clear_param_store() before a second pair, or "
                    "train with LocalELBO()(model, guide) and a torch optimizer"
                )
    if not held:
        raise ValueError(
            "SVI would train nothing: neither model nor guide has a parameter in the param store. Call "
            "pyro.module(...) or pyro.param(...) inside them, or pass modules"
        )
