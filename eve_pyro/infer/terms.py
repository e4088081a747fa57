"""What the local ELBO measures of one pair of traces, unit by unit."""

from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import check_fully_reparametrized
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from eve_pyro.infer.predictive import latent_sites


@dataclass(frozen=True)
class UnitTerms:
    """One latent site: ``kl`` (B, N) in nats; ``energy`` (N,), the squared shift of the posterior's location from the
    prior's in prior deviations, averaged over windows and latent dimensions; ``scale`` (N,), the posterior's deviation,
    averaged alike. ``sampled`` says that the KL is a one-draw-a-particle estimate and not the closed form. ``path``
    (B, N, T, K) holds the shifts themselves, in prior deviations, where the site's event is a path of T > 1 steps.
    """

    kl: Tensor
    energy: Tensor
    scale: Tensor
    sampled: bool = False
    path: Tensor | None = None

    def detach(self) -> "UnitTerms":
        """Return the same figures cut off from the graph."""
        path = None if self.path is None else self.path.detach()
        return UnitTerms(self.kl.detach(), self.energy.detach(), self.scale.detach(), self.sampled, path)


@dataclass(frozen=True)
class ELBOTerms:
    """The parts of the objective: ``log_likelihood`` and ``predictive`` (B,), in nats per window; ``units`` by site;
    what they ``paid``, each KL at its beta, and ``penalties`` by name, scalars in nats per window; ``common``, of a
    composite objective, the share of the values' variance that means over blocks hold; ``alpha``, what log likelihood
    and KL weigh beside ``predictive``, see ``LocalELBO``.
    """

    log_likelihood: Tensor
    units: dict[str, UnitTerms]
    paid: Tensor
    predictive: Tensor | None = None
    common: Tensor | None = None
    alpha: Tensor | float = 1.0
    penalties: dict[str, Tensor] = field(default_factory=dict)

    def share(self, name: str) -> Tensor:
        """Return a penalty's share of the loss, in [0, 1]: of the absolute values of its parts, as it weighs them."""
        penalty = self.penalties[name]
        whole = self.alpha * (self.log_likelihood.mean().abs() + self.paid) + sum(self.penalties.values())
        if self.predictive is not None:
            whole = whole + (1 - self.alpha) * self.predictive.mean().abs()
        return penalty / whole

    @property
    def sampled_sites(self) -> tuple[str, ...]:
        """Names of the sites whose KL had no closed form and was estimated from the draws."""
        return tuple(name for name, units in self.units.items() if units.sampled)

    def detach(self) -> "ELBOTerms":
        """Return the same figures cut off from the graph."""
        return ELBOTerms(
            log_likelihood=self.log_likelihood.detach(),
            units={name: units.detach() for name, units in self.units.items()},
            paid=self.paid.detach(),
            predictive=None if self.predictive is None else self.predictive.detach(),
            common=self.common,
            alpha=self.alpha,
            penalties={name: value.detach() for name, value in self.penalties.items()},
        )


def measure_units(model_trace: Trace, guide_trace: Trace, sample_kl: bool) -> dict[str, UnitTerms]:
    """Measure every latent site of a pair of traces.

    Raises ValueError, by name, for sites that a guide misses, adds or cannot differentiate, for sites in another order
    than the model's (the mean-field condition), and, unless ``sample_kl``, for a KL without a closed form.
    """
    latents = latent_sites(model_trace)
    auxiliary = check_sites(latents, guide_trace)
    units = {}
    for name, site in latents.items():
        units[name] = _measure(name, site, guide_trace.nodes[name], auxiliary.get(name), sample_kl)
    return units


def check_sites(latents: dict[str, Any], guide_trace: Trace) -> dict[str, Any]:
    """Check that the guide's sites are the model's, in order; return auxiliary guide sites by the site they serve."""
    guide_sites: dict[str, Any] = {
        name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]
    }
    auxiliary = {name: site for name, site in guide_sites.items() if site["infer"].get("is_auxiliary")}
    own = [name for name in guide_sites if name not in auxiliary]
    for name in latents:
        if name not in guide_sites:
            raise ValueError(
                f"the guide does not sample the model's site {name!r}: add it, or condition the model on it"
            )
    for name in own:
        if name not in latents:
            raise ValueError(f"the guide samples {name!r}, which is no latent site of the model: remove or rename it")
    for name, site in guide_sites.items():
        try:
            check_fully_reparametrized(site)
        except NotImplementedError:
            raise ValueError(
                f"the guide's site {name!r} ({_family(site['fn'])}) has no reparameterised draws, which the local "
                "ELBO needs; use Trace_ELBO or TraceGraph_ELBO for it"
            ) from None
    if own != list(latents):
        raise ValueError(
            f"the guide samples its sites in another order ({', '.join(own)}) than the model ({', '.join(latents)}): "
            "the mean-field condition may fail; sample them in the model's order"
        )
    served = {}
    for name, site in auxiliary.items():
        target = max((latent for latent in latents if name.startswith(f"{latent}_")), key=len, default=None)
        if target is None or target in served:
            raise ValueError(
                f"the guide's auxiliary site {name!r} does not serve one latent site alone, named '<site>_...': of the "
                "autoguides, AutoNormal does"
            )
        served[target] = site
    return served


def _measure(name: str, model_site: Any, guide_site: Any, auxiliary: Any, sample_kl: bool) -> UnitTerms:
    p, q = model_site["fn"], auxiliary["fn"] if auxiliary else guide_site["fn"]
    kl = None if auxiliary else _closed_form_kl(q, p)
    sampled = kl is None
    if kl is not None:
        kl = scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"])
    elif sample_kl:
        kl = guide_site["log_prob"] - model_site["log_prob"]
        kl = kl + _shared_out(auxiliary["log_prob"], kl) if auxiliary else kl
    else:
        through = f" through the auxiliary site {auxiliary['name']!r}" if auxiliary else ""
        raise ValueError(
            f"KL(q || p) of site {name!r} has no closed form: q is {_family(q)}{through}, p is {_family(p)}; pass "
            "sample_kl=True to estimate it from the draws"
        )
    shift, scale = _shift_and_scale(q, p, guide_site["value"])
    event = tuple(range(-len(p.event_shape), 0))
    path = None
    if len(event) == 2 and p.event_shape[0] > 1:
        path = shift.reshape(-1, *shift.shape[-4:]).mean(0)
    energy = by_unit(_mean(shift.square(), event)).mean((0, 1))
    return UnitTerms(by_unit(kl).mean(0), energy, by_unit(_mean(scale, event)).mean((0, 1)), sampled, path)


def _shared_out(log_prob: Tensor, by_unit: Tensor) -> Tensor:
    """Return an auxiliary site's log density by unit: that of all units together in even shares, which add up."""
    return log_prob if log_prob.shape == by_unit.shape else log_prob / by_unit.shape[-1]


def _mean(values: Tensor, event: tuple[int, ...]) -> Tensor:
    return values.mean(event) if event else values


def _closed_form_kl(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    try:
        return torch.distributions.kl_divergence(q, p)
    except NotImplementedError:
        return None


def _shift_and_scale(q: TorchDistribution, p: TorchDistribution, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return (E q - E p) / deviation of p, and the deviation of q, each with the site's event dims.

    The draw itself stands in for the location of a posterior that has no mean in closed form, and its deviation is 0.
    A posterior of all units together has their figures in its event.
    """
    try:
        loc, scale = q.mean, q.stddev
        if loc.shape != value.shape and loc.numel() == value.numel():
            loc, scale = loc.reshape(value.shape), scale.reshape(value.shape)
    except NotImplementedError:
        loc, scale = value, torch.zeros_like(value)
    try:
        return (loc - p.mean) / p.stddev, scale
    except NotImplementedError:  # a prior without moments: no energy to speak of
        return torch.full_like(loc, torch.nan), scale


def by_unit(values: Tensor) -> Tensor:
    """Reshape a site's batch, (S, B, N) or with leading axes missing, to exactly (S, B, N)."""
    return values.reshape(-1, *(1, 1, *values.shape)[-2:])


def _family(fn: TorchDistribution) -> str:
    return type(fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn).__name__
