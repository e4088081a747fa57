"""What one pair says of one batch of windows: draws, densities and KLs, each with the names of its axes."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from eve_pyro.infer.predictive import latent_sites, observation, predict, vectorized
from eve_pyro.infer.terms import measure_units
from eve_pyro.protocols import OBSERVED, Batch

POSTERIOR = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats")
PRIOR = ("prior", "prior_predictive")
FORECAST = ("predictions",)
OBSERVED_DATA, CONSTANT_DATA = "observed_data", "constant_data"
GROUPS = (*POSTERIOR, *PRIOR, *FORECAST, OBSERVED_DATA, CONSTANT_DATA)

Key = tuple[str, str]  # a group and a variable in it


class Pair(NamedTuple):
    """A model and its guide: one chain."""

    model: Any
    guide: Any


class Named(NamedTuple):
    """Values and the names of their axes."""

    dims: tuple[str, ...]
    values: Tensor


Values = dict[Key, Named]
DRAWN = ("draw", "window")


def name_of(site: str) -> str:
    """Return a site's name as a variable: files take a slash for a folder."""
    return site.replace("/", ".")


def layer_of(site: str) -> str:
    """Return the name of the layer that a site belongs to: ``eve`` for ``eve.z``."""
    return name_of(site).removesuffix(".z")


def prefixes(counts: Mapping[str, int]) -> dict[str, str]:
    """Return what the axes of each site begin with, for sites of so many units: ``<layer>_``, but nothing for the one
    site of several units, or the only site.

    Raises ValueError for two sites of one layer.
    """
    layers = [layer_of(site) for site in counts]
    twice = next((layer for layer in layers if layers.count(layer) > 1), None)
    if twice is not None:
        raise ValueError(f"two sites would both be called {twice!r}: rename one of {', '.join(counts)}")
    rivals = [site for site, count in counts.items() if count > 1] or list(counts)
    return {site: "" if rivals == [site] else f"{layer}_" for site, layer in zip(counts, layers, strict=True)}


def units_in(sites: Mapping[str, Any]) -> dict[str, int]:
    """Return how many units each site has, 1 where it stands in no units plate."""
    return {name: site["fn"].batch_shape[-1] for name, site in sites.items()}


def posterior_values(pair: Pair, batch: Batch, num_draws: int, groups: Collection[str]) -> Values:
    """Return draws from q(z | context, future), and what follows from them.

    Raises ValueError for a model that does not observe the future, and for a guide that leaves a latent site out.
    """
    context, future = batch
    guide_trace = _traced(vectorized(pair.guide, num_draws), context, future)
    replayed = poutine.replay(vectorized(pair.model, num_draws), trace=guide_trace)
    model_trace = _traced(replayed, context, future)
    fn, latents = _checked(model_trace, guide_trace)
    shape = num_draws, len(context)
    values: Values = {}
    if "posterior" in groups:
        values |= _latents("posterior", latents, shape)
    if "posterior_predictive" in groups:
        values["posterior_predictive", OBSERVED] = _paths(fn.sample(), shape)
    if {"log_likelihood", "sample_stats"} & set(groups):
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()  # log densities, and what else LocalELBO's checks ask for
        log_likelihood = _log_prob([model_trace.nodes[OBSERVED]], shape)
        if "log_likelihood" in groups:
            values["log_likelihood", OBSERVED] = Named(DRAWN, log_likelihood)
        if "sample_stats" in groups:
            values |= _statistics(model_trace, guide_trace, latents, log_likelihood)
    return values


def prior_values(pair: Pair, batch: Batch, num_draws: int, groups: Collection[str]) -> Values:
    """Return draws from the model's prior p(z | context), and of y given them."""
    trace = poutine.trace(vectorized(pair.model, num_draws)).get_trace(batch.context)
    observation(trace)
    shape = num_draws, len(batch.context)
    values = _latents("prior", latent_sites(trace), shape) if "prior" in groups else {}
    if "prior_predictive" in groups:
        site: Any = trace.nodes[OBSERVED]
        values["prior_predictive", OBSERVED] = _paths(site["value"], shape)
    return values


def forecast_values(pair: Pair, batch: Batch, num_draws: int, groups: Collection[str]) -> Values:
    """Return joint paths of the forecast, which knows the context alone."""
    paths = predict(pair.model, pair.guide, batch.context, num_draws).paths
    return {("predictions", OBSERVED): Named((*DRAWN, "horizon"), paths)}


FAMILIES: dict[tuple[str, ...], Callable[[Pair, Batch, int, Collection[str]], Values]] = {
    POSTERIOR: posterior_values,
    PRIOR: prior_values,
    FORECAST: forecast_values,
}


def unit_counts(pair: Pair, context: Tensor) -> dict[str, int]:
    """Return how many units each latent site of the model has.

    Raises ValueError for a model without latent sites, and for a site outside the windows plate.
    """
    sites = latent_sites(poutine.trace(pair.model).get_trace(context))
    if not sites:
        raise ValueError("the model has no latent site: there is nothing to draw")
    for name, site in sites.items():
        _check_windows_plate("model", name, site)
    return units_in(sites)


def _traced(program: Any, *args: Tensor) -> Trace:
    return poutine.util.prune_subsample_sites(poutine.trace(program).get_trace(*args))


def _checked(model_trace: Trace, guide_trace: Trace) -> tuple[Any, Mapping[str, Any]]:
    """Return the likelihood and the latent sites of a pair of traces that hold a posterior."""
    fn, observed = observation(model_trace), dict(model_trace.nodes)[OBSERVED]
    if not observed["is_observed"]:
        raise ValueError(
            f"the model does not observe the future: pass obs=future.unsqueeze(-2) to its site {OBSERVED!r}"
        )
    latents, own = latent_sites(model_trace), latent_sites(guide_trace)
    for name in latents:
        if name not in own:
            raise ValueError(
                f"the guide, given the future, does not sample the model's site {name!r}, so that it has no "
                "posterior: sample it there, or leave out the groups " + ", ".join(POSTERIOR)
            )
    for name, site in own.items():
        _check_windows_plate("guide", name, site)
    return fn, latents


def _check_windows_plate(role: str, name: str, site: Any) -> None:
    if -2 not in {frame.dim for frame in site["cond_indep_stack"]}:
        raise ValueError(
            f"the {role}'s site {name!r} stands outside the windows plate at dim -2, so that each batch of windows "
            "would draw it anew: sample it in that plate, or make it a parameter"
        )


def _latents(group: str, sites: Mapping[str, Any], shape: tuple[int, int]) -> Values:
    """Return the draws of every site: dims draw, window, unit and, where longer than 1, those of its event."""
    prefix, values = prefixes(units_in(sites)), {}
    for name, site in sites.items():
        value, rank = site["value"], site["fn"].event_dim
        value = value.broadcast_to(*shape, *value.shape[value.ndim - rank - 1 :])  # (S, B, N, *event)
        known = {0: (), 1: ("latent",), 2: ("step", "latent")}
        event = zip(known.get(rank, [f"event_{axis}" for axis in range(rank)]), value.shape[3:], strict=True)
        dims = *DRAWN, *(f"{prefix[name]}{dim}" for dim in ("unit", *(dim for dim, size in event if size > 1)))
        longer = [size for size in value.shape[3:] if size > 1]
        values[group, name_of(name)] = Named(dims, value.reshape(*value.shape[:3], *longer))
    return values


def _paths(value: Tensor, shape: tuple[int, int]) -> Named:
    """Return y, (..., B, 1, H), as (S, B, H)."""
    return Named((*DRAWN, "horizon"), value.squeeze(-2).broadcast_to(*shape, value.shape[-1]))


def _log_prob(sites: Iterable[Any], shape: tuple[int, int]) -> Tensor:
    """Return the joint log density of sites, (S, B), in nats: masked as they are, but never scaled."""
    total = torch.zeros(shape, dtype=torch.float64)
    for site in sites:
        log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        total = total + log_prob.cpu().double().sum(-1)
    return total


def _statistics(model_trace: Trace, guide_trace: Trace, latents: Mapping[str, Any], log_likelihood: Tensor) -> Values:
    """Return the log weights, KLs (averaged over the draws) and energies (and over the windows)."""
    values: Values = {}
    proposals = latent_sites(guide_trace)
    auxiliary = any(site["infer"].get("is_auxiliary") for site in proposals.values())  # their Deltas are no points
    if auxiliary or not any(isinstance(proposals[name]["fn"], dist.Delta) for name in latents):
        shape = log_likelihood.shape[0], log_likelihood.shape[1]
        log_weight = log_likelihood + _log_prob(latents.values(), shape) - _log_prob(proposals.values(), shape)
        values["sample_stats", "log_weight"] = Named(DRAWN, log_weight)
    prefix = prefixes(units_in(latents))
    for name, terms in measure_units(model_trace, guide_trace, sample_kl=True).items():
        start = prefix[name]
        values["sample_stats", f"{start}kl"] = Named(("window", f"{start}unit"), terms.kl)
        values["sample_stats", f"{start}energy"] = Named((f"{start}unit",), terms.energy)
    return values
