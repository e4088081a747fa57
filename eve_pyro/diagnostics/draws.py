"""Draws of a guide's posterior, window by window, with the densities that diagnostics compare."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from eve_pyro.data import Windows
from eve_pyro.infer.predictive import latent_sites, observation, vectorized
from eve_pyro.infer.terms import by_unit
from eve_pyro.protocols import Guide, Model, Rows


@dataclass(frozen=True)
class Draws:
    """S draws z of every latent site for B windows: a model's trace, replayed against another that holds the draws."""

    model_trace: Trace
    source: Trace

    @property
    def latents(self) -> dict[str, Tensor]:
        """The draws by site, (S, B, N, *event)."""
        return {name: _padded(site["value"], site["fn"]) for name, site in latent_sites(self.model_trace).items()}

    @property
    def log_likelihood(self) -> Tensor:
        """log p(y | z), (S, B), in nats; what is observed outside the windows is about no window, and left out."""
        sites: Any = self.model_trace.nodes.values()
        return _sum([site for site in sites if site["type"] == "sample" and site["is_observed"] and _in_windows(site)])

    @property
    def log_prior(self) -> Tensor:
        """log p(z) of the model's own prior, (S, B), in nats."""
        return _sum(list(latent_sites(self.model_trace).values()))

    @property
    def log_source(self) -> Tensor:
        """log q(z) of what the draws come from, (S, B), in nats, auxiliary draws and their Jacobians included."""
        self.source.compute_log_prob()
        return _sum(list(_drawn(self.source).values()))

    @property
    def log_weights(self) -> Tensor:
        """log p(y | z) + log p(z) - log q(z), (S, B), in nats.

        Raises ValueError for a guide that gives points, which have no density, and for densities that are no numbers.
        """
        drawn = _drawn(self.source)
        if not any(site["infer"].get("is_auxiliary") for site in drawn.values()):  # else a Delta passes a draw on
            for name, site in latent_sites(self.model_trace).items():
                if _is_point(drawn[name]["fn"]) and not _is_point(site["fn"]):
                    raise ValueError(
                        f"the guide gives a point for site {name!r}, which has no density to weigh draws by: take a "
                        "guide that gives a distribution"
                    )
        log_weights = self.log_likelihood + self.log_prior - self.log_source
        if torch.isnan(log_weights).any() or torch.isinf(log_weights.amax(0)).any():
            raise ValueError(
                "no importance weights: log p(y, z) or log q(z) is not finite for some window; look for scales of 0 "
                "and futures that the likelihood cannot give"
            )
        return log_weights


def posterior_draws(model: Model, guide: Guide, context: Tensor, future: Tensor, num_draws: int) -> Draws:
    """Draw z ~ q(z | x, y) ``num_draws`` times for ``context`` (B, T, L) and ``future`` (B, H).

    Raises ValueError as ``densities`` does.
    """
    source = poutine.trace(vectorized(guide, num_draws)).get_trace(context, future)
    return densities(model, source, context, future, num_draws)


def densities(model: Model, source: Trace, context: Tensor, future: Tensor, num_draws: int) -> Draws:
    """Replay ``model`` against the draws in ``source``.

    Raises ValueError for no latents, for sites that only one of the two samples, and for latents outside the windows
    plate (dim -2): they belong to no window.
    """
    replayed = poutine.replay(vectorized(model, num_draws), trace=source)
    model_trace = poutine.util.prune_subsample_sites(poutine.trace(replayed).get_trace(context, future))
    source = poutine.util.prune_subsample_sites(source)
    observation(model_trace)
    latents, drawn = latent_sites(model_trace), _drawn(source)
    if not latents:
        raise ValueError("the model has no latent site: there is nothing to draw")
    for name, site in latents.items():
        if name not in drawn:
            raise ValueError(f"the guide does not sample the model's site {name!r} when it is given a future")
        if not _in_windows(site):
            raise ValueError(f"site {name!r} stands outside the windows plate (dim -2), and figures here are by window")
    for name, site in drawn.items():
        if name not in latents and not site["infer"].get("is_auxiliary"):
            raise ValueError(f"the guide samples {name!r}, which is no latent site of the model: remove or rename it")
    model_trace.compute_log_prob()
    return Draws(model_trace, source)


def window_labels(windows: Rows) -> pd.DataFrame:
    """Return ``window``, its position; of ``Windows`` also ``series`` and ``origin``, the last timestamp seen."""
    labels = pd.DataFrame({"window": np.arange(len(windows))})
    if not isinstance(windows, Windows):
        return labels
    series = np.array(windows.panel.names)[windows.series.numpy()]
    return labels.assign(series=series, origin=windows.origins())


def _drawn(trace: Trace) -> dict[str, Any]:
    """Return the sites that a guide draws, auxiliary ones included."""
    sites: dict[str, Any] = dict(trace.nodes)
    return {name: site for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}


def _in_windows(site: Any) -> bool:
    return any(frame.dim == -2 for frame in site["cond_indep_stack"])


def _is_point(fn: Any) -> bool:
    return isinstance(fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn, dist.Delta)


def _sum(sites: list[Any]) -> Tensor:
    """Sum log densities over sites and units, to (S, B), in double precision: they nearly cancel one another."""
    parts = [by_unit(site["log_prob"]).double().sum(-1) for site in sites]
    return sum(parts[1:], start=parts[0])


def _padded(value: Tensor, fn: Any) -> Tensor:
    """Return a site's value with all of the batch dims (S, B, N)."""
    return value.reshape(*[1] * (3 - len(fn.batch_shape)), *value.shape)
