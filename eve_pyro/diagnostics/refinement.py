"""The amortization gap: what each window's posterior gains when it is refined by itself."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from eve_pyro.diagnostics.draws import Draws, posterior_draws, window_labels
from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.predictive import latent_sites
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.infer.terms import by_unit, measure_units
from eve_pyro.protocols import Batch, Guide, Model, Rows


class Refinement(NamedTuple):
    """``windows``: one row a window; ``units``: one row a unit. See ``amortization_gap``."""

    windows: pd.DataFrame
    units: pd.DataFrame


def amortization_gap(
    model: Model,
    guide: Guide,
    windows: Rows,
    steps: int = 300,
    learning_rate: float = 0.1,
    num_particles: int = 8,
    num_draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Refinement:
    """Refine every window's posterior by itself and say how much better it gets (Cremer et al. 2018).

    From the moments of the guide's answer, each latent gets a normal q' of its own (a log-normal where it is positive),
    a location and a scale for each window, and ``steps`` of Adam maximise E_q' [log p(y | z) + log p(z) - log q'(z)]
    over them with the model frozen; steps are in posterior deviations and shrink to zero, gradients are
    reparameterised without the score term (Roeder et al. 2017). A location further than about
    ``steps * learning_rate / 2`` deviations away is not reached.

    ``windows`` has the labels of ``importance_table`` and, in nats: ``elbo`` of the guide and ``refined`` of q', both
    at beta 1 and from ``num_draws`` draws; ``gap`` = refined - elbo, the amortization gap, with its Monte-Carlo error
    ``gap_se``; ``bound``, log mean w under q', the best estimate of log p(y | x) here: bound - refined is the
    approximation gap, what no independent normals can close, seen from below.

    ``units``, averages over windows: ``site, unit``; ``shift``, the root mean square move of the location in refined
    deviations; ``scale_ratio``, refined over the guide's (geometric mean); ``kl`` and ``refined_kl``, KL(q || p) in
    nats a window, shared out as in ``JointUnits``; ``sampled``, whether one of them comes from draws.

    What it sees: scales and locations that are off, in any window. What it does not: correlation left out, for q' is
    independent too. A guide whose units or path steps are correlated is measured against the best independent one, so
    its gap may be negative; a posterior that depends on draws below it starts from its moments over those draws.

    Raises ValueError for a latent that is neither real-valued nor positive, fewer than 2 draws, no step or particle,
    and as ``importance_table`` and ``measure_units`` do.
    """
    if num_draws < 2 or steps < 1 or num_particles < 1:
        raise ValueError(
            f"refining needs 2 draws, 1 step and 1 particle at least, not {num_draws}, {steps} and {num_particles}"
        )
    check_futures(windows)
    figures, units, device = [], [], device_of(model)
    with evaluating(model, guide, seed):
        batches = batches_of(windows, batch_size, device, progress, "refining")
        for number, batch in enumerate(batches):
            torch.manual_seed(seed + number)
            before = posterior_draws(model, guide, *batch, num_draws)
            weights = before.log_weights  # first of all, since it refuses guides that have no density
            free = _refined(model, before, batch, steps, learning_rate, num_particles)
            torch.manual_seed(seed + number)  # from the same random numbers, the difference is less noisy
            after = posterior_draws(model, free, *batch, num_draws)
            figures.append(_window_figures(weights, after.log_weights))
            units.append({site: len(batch.future) * each for site, each in _unit_figures(before, after).items()})
    rows = torch.cat(figures, 1).T.cpu().numpy()
    table = window_labels(windows).assign(
        **dict(zip(("elbo", "refined", "gap", "gap_se", "bound"), rows.T, strict=True))
    )
    return Refinement(table, _unit_table(units, len(windows)))


class FreeNormals:
    """A guide for one batch of windows: an independent normal for every latent, with parameters of its own.

    Positive latents have log-normals: their logarithms are normal. It starts at the ``moments`` of a guide;
    ``parameters`` are displacements from there, (B, N, *event) each, in deviations for locations and as logarithms for
    scales.
    """

    def __init__(self, start: Draws) -> None:
        sites = latent_sites(start.model_trace)
        self.positive = {name for name, site in sites.items() if not _is_real(site["fn"].support)}
        self.moments = {name: _moments(start.source, name) for name in sites}
        self.moments |= {name: _log_moments(*self.moments[name]) for name in self.positive}
        self.frames = {name: _frames(site) for name, site in latent_sites(start.model_trace).items()}
        self.shifts = {name: torch.zeros_like(loc, requires_grad=True) for name, (loc, _) in self.moments.items()}
        self.stretches = {name: torch.zeros_like(loc, requires_grad=True) for name, (loc, _) in self.moments.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [*self.shifts.values(), *self.stretches.values()]

    def posterior(self, name: str) -> Any:
        """Return q' of a site, batch (B, N)."""
        loc, scale = self.moments[name]
        loc, scale = loc + scale * self.shifts[name], scale * self.stretches[name].exp()
        family = dist.LogNormal if name in self.positive else dist.Normal
        return family(loc, scale, validate_args=False).to_event(loc.ndim - 2)

    def fixed(self) -> dict[str, Any]:
        """Return q' of every site, cut off from its parameters."""
        with torch.no_grad():
            return {name: self.posterior(name) for name in self.moments}

    def __call__(self, context: Tensor, future: Tensor | None = None) -> None:
        """Sample every site in the model's own plates."""
        plates = {
            name: pyro.plate(name, size, dim=dim) for name, size, dim in {f for fs in self.frames.values() for f in fs}
        }
        for site, frames in self.frames.items():
            with ExitStack() as stack:
                for name, _, _ in frames:
                    stack.enter_context(plates[name])
                pyro.sample(site, self.posterior(site))


def _refined(
    model: Model, start: Draws, batch: Batch, steps: int, learning_rate: float, num_particles: int
) -> FreeNormals:
    """Return the best independent normals that Adam finds from ``start``."""
    for name, site in latent_sites(start.model_trace).items():
        if not (_is_real(site["fn"].support) or _is_positive(site["fn"].support)):
            raise ValueError(
                f"site {name!r} is neither real-valued nor positive ({site['fn'].support}): normals cannot refine it"
            )
    free = FreeNormals(start)
    optimizer = torch.optim.Adam(free.parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        with torch.enable_grad():
            draws = posterior_draws(model, free, *batch, num_particles)
            density = draws.log_likelihood + draws.log_prior
            for name, q in free.fixed().items():
                density = density - by_unit(q.log_prob(draws.latents[name])).sum(-1)
            loss = -density.mean(0).sum()
            gradients = torch.autograd.grad(loss, free.parameters)  # the model's own parameters keep theirs
        for parameter, gradient in zip(free.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    return free


def _moments(source: Trace, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of a guide's site, (B, N, *event), over the draws that it may depend on."""
    site: Any = source.nodes[name]
    fn, value = site["fn"], site["value"]
    try:
        loc, variance = fn.mean.expand_as(value), fn.variance.expand_as(value)
    except NotImplementedError:
        loc, variance = value, torch.zeros_like(value)
    variance = variance.mean(0) + loc.var(0, correction=0)
    return loc.mean(0), variance.sqrt()


def _frames(site: Any) -> list[tuple[str, int, int]]:
    return [(f.name, f.size, f.dim) for f in site["cond_indep_stack"] if f.vectorized and f.dim >= -2]


def _log_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return location and scale of the log-normal with a ``mean`` and a ``deviation``."""
    variance = (deviation / mean).square().log1p()
    return mean.log() - 0.5 * variance, variance.sqrt()


def _is_real(support: Any) -> bool:
    return _of_values(support) is constraints.real


def _is_positive(support: Any) -> bool:
    return _of_values(support) in (constraints.positive, constraints.nonnegative)


def _of_values(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _window_figures(before: Tensor, after: Tensor) -> Tensor:
    """Return elbo, refined, gap, its error and the bound, (5, B), from log weights (S, B)."""
    gain, count = after - before, len(after)
    bound = after.logsumexp(0) - torch.tensor(float(count)).log()
    return torch.stack([before.mean(0), after.mean(0), gain.mean(0), gain.std(0) / count**0.5, bound])


def _unit_figures(before: Draws, after: Draws) -> dict[str, Tensor]:
    """Return squared shift, log ratio of scales, KL before and after and whether it is sampled, (5, N), by site."""
    for draws in (before, after):
        draws.source.compute_score_parts()
    was, now = (measure_units(draws.model_trace, draws.source, sample_kl=True) for draws in (before, after))
    figures = {}
    for site in now:
        (loc, scale), (new_loc, new_scale) = _moments(before.source, site), _moments(after.source, site)
        shift, ratio = ((new_loc - loc) / new_scale).square(), (new_scale / scale).log()
        shift, ratio = (each.flatten(2).mean(-1).mean(0) if each.ndim > 2 else each.mean(0) for each in (shift, ratio))
        sampled = torch.full_like(shift, was[site].sampled or now[site].sampled)
        figures[site] = torch.stack([shift, ratio, was[site].kl.mean(0), now[site].kl.mean(0), sampled]).double().cpu()
    return figures


def _unit_table(parts: list[dict[str, Tensor]], count: int) -> pd.DataFrame:
    tables = []
    for site in parts[0]:
        total: Any = sum(part[site] for part in parts) / count
        columns = {
            "site": site,
            "unit": range(total.shape[1]),
            "shift": total[0].sqrt(),
            "scale_ratio": total[1].exp(),
            "kl": total[2],
            "refined_kl": total[3],
            "sampled": total[4] > 0,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
