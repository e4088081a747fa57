"""An intervention is a guide: it forecasts as another guide does, with some units set.

``Intervened(model, guide, {"eve.z": [3]})`` is ``guide`` with unit 3 knocked out, and whatever takes a guide takes it:
``forecast``, ``evaluate``, ``predict``. The do-operator is Pearl's (Causality, 2nd ed., ch. 3): a unit is set, what is
above it follows, and what is below or beside it does not learn of it.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import block_messengers
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import get_plates
from pyro.poutine.trace_struct import Trace
from torch import Size, Tensor, nn
from torch.distributions import constraints

from eve_pyro.distributions import AR1
from eve_pyro.distributions.flow import FlowUnits
from eve_pyro.distributions.joint import JointUnits
from eve_pyro.infer.predictive import forecast_latents, latent_sites
from eve_pyro.protocols import Guide, Model

Units = Mapping[str, Sequence[int]]
Target = float | Literal["prior"]
HELD = 1e-6  # prior deviations: what is left of the spread of a unit that is set, so that covariances have a root
DEPENDENT = (JointUnits, FlowUnits)  # their log density by unit is a share of the joint one


class Intervened(nn.Module):
    """``guide`` with some units set: do(z_n = prior mean + ``to`` prior deviations); for 0 the unit is knocked out.

    ``units`` names units by site, {"eve.z": [0, 3]}. With ``to="prior"`` they are drawn from the prior, which changes
    guides that forecast from a posterior. Sites above see what was set. Closed forms stay closed for independent
    normals, AR(1) paths and points. Nest it to set units to different values. It is made for evaluation: parameters of
    plain functions do not show through it.

    Raises ValueError for another ``to``; and, when called, for sites and units the model has not, naming those it has,
    for a prior without the mean and deviation to set units by, and for units that ``to`` takes out of their support.
    """

    model: Model

    def __init__(self, model: Model, guide: Guide, units: Units, to: Target = 0.0) -> None:
        super().__init__()
        if isinstance(to, str) and to != "prior":
            raise ValueError(f"units are set to a number of prior deviations or to 'prior', not {to!r}")
        object.__setattr__(self, "model", model)  # a reference: its parameters stay the model's
        self.guide, self.units, self.target = guide, units, to

    def forward(self, context: Tensor, future: Tensor | None = None) -> None:
        """Sample the guide's sites, and those intervened on, for ``context`` (B, T, L) and ``future`` (B, H)."""
        given = (context,) if future is None else (context, future)
        settled, around = Trace(), {frame.name for frame in get_plates()}
        plates: dict[str, Any] = {}
        model_trace, guide_trace = self._traces(settled, *given)
        check_units(self.units, unit_counts(model_trace))
        names = list(latent_sites(model_trace))
        wanted = [number for number, name in enumerate(names) if name in guide_trace or name in self.units]
        for number, name in enumerate(names[: max(wanted, default=-1) + 1]):
            if number:  # what lies below is settled by now
                model_trace, guide_trace = self._traces(settled, *given)
            site: Any = model_trace.nodes[name]
            fn = self._distribution(name, model_trace, guide_trace, proposal=future is not None)
            frames = [frame for frame in site["cond_indep_stack"] if frame.name not in around]
            plates |= {f.name: pyro.plate(f.name, f.size, dim=f.dim) for f in frames if f.name not in plates}
            with ExitStack() as inside:
                for frame in frames:
                    inside.enter_context(plates[frame.name])
                value = pyro.sample(name, fn)
            settled.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})

    def _traces(self, settled: Trace, *given: Tensor) -> tuple[Trace, Trace]:
        """Run the pair with the ``settled`` sites: no handler around sees it, and no random number is used up."""
        around = block_messengers(lambda messenger: not isinstance(messenger, PlateMessenger))
        with torch.random.fork_rng(), around:
            torch.manual_seed(int(torch.randint(2**62, ())))  # what is drawn here must not be drawn again outside
            guide_trace = poutine.trace(poutine.replay(self.guide, trace=settled)).get_trace(*given)
            replayed = poutine.replay(poutine.replay(self.model, trace=guide_trace), trace=settled)
            return poutine.trace(replayed).get_trace(given[0]), guide_trace

    def _distribution(self, name: str, model_trace: Trace, guide_trace: Trace, proposal: bool) -> TorchDistribution:
        """Return what the site is drawn from: the guide's distribution, or else the prior, after the intervention."""
        fn = forecast_latents(model_trace, guide_trace)[name]
        if fn is None:  # an autoguide's draw in the guise of a point
            drawn: Any = guide_trace.nodes[name]["fn"]
            fn = EditedUnits(drawn, drawn, torch.zeros(1, dtype=torch.bool))
        if name not in self.units:
            return fn
        if proposal and isinstance(fn, DEPENDENT):  # what is left of it has no density here; a proposal may be anything
            fn = dist.Normal(fn.mean, fn.stddev, validate_args=False).to_event(2)
        prior: Any = model_trace.nodes[name]["fn"]
        return edited(fn, prior, self.units[name], self.target)


def unit_counts(model_trace: Trace) -> dict[str, int]:
    """Return how many units each latent site of a model's trace has; sites outside the windows plate have none."""
    shapes = {name: site["fn"].batch_shape for name, site in latent_sites(model_trace).items()}
    return {name: shape[-1] for name, shape in shapes.items() if len(shape) > 1}


def check_units(units: Units, counts: Mapping[str, int]) -> None:
    """Raise ValueError for sites and units that are not there, naming those that are."""
    for site, chosen in units.items():
        if site not in counts:
            raise ValueError(f"the model has no units at a site {site!r}; its sites are {', '.join(counts)}")
        unknown = [unit for unit in chosen if not 0 <= unit < counts[site]]
        if unknown:
            raise ValueError(f"site {site!r} has units 0 to {counts[site] - 1}, and no unit {unknown[0]}")


def lower_bound(prior: TorchDistribution) -> float:
    """Return where the support of a prior begins, -inf if it has no beginning."""
    support: Any = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return float(getattr(support, "lower_bound", -math.inf))


def edited(fn: TorchDistribution, prior: TorchDistribution, units: Sequence[int], to: Target) -> TorchDistribution:
    """Return ``fn``, batch (..., B, N), with some units set to ``to`` deviations of ``prior``, or drawn from it.

    Independent normals, AR(1) paths and points stay what they are, so that closed forms find them.
    """
    chosen = torch.zeros(fn.batch_shape[-1], dtype=torch.bool)
    chosen[list(units)] = True
    mine, shape = _Gaussian.of(fn), (-1, *[1] * fn.event_dim)
    alone = len(chosen) == 1 and mine is None  # a volatility unit: what it is drawn from must be told to closed forms
    if alone and not chosen.any():
        return fn
    if to == "prior":
        if alone:
            return prior
        other, instead = _Gaussian.of(prior), prior
    else:
        target, deviation = _set_to(prior, to)
        instead = dist.Delta(target, event_dim=fn.event_dim)
        if isinstance(fn, dist.Delta):
            return dist.Delta(
                torch.where(chosen.reshape(shape).to(target.device), target, fn.v), event_dim=fn.event_dim
            )
        if alone:
            return HeldPoint(target.expand(fn.shape()), fn)
        other = mine and _Gaussian(target, HELD * deviation, mine.phi, torch.ones(shape[1:], dtype=torch.bool))
    if mine is None or other is None:
        return EditedUnits(fn, instead, chosen)
    chosen = chosen.reshape(shape).to(mine.loc.device)
    loc, scale = torch.where(chosen, other.loc, mine.loc), torch.where(chosen, other.scale, mine.scale)
    held = torch.where(chosen, other.held.to(chosen.device), mine.held.to(chosen.device))
    if mine.phi is None and other.phi is None:
        return HeldNormal(loc, scale, held).to_event(fn.event_dim)
    theirs, own = (loc.new_zeros(()) if each.phi is None else each.phi for each in (other, mine))
    return HeldAR1(loc, torch.where(chosen, theirs, own), scale, held)


class _Gaussian(NamedTuple):
    """Normals or AR(1) paths: ``loc``, ``scale`` and ``held`` broadcast to (..., B, N, *event), as does ``phi``."""

    loc: Tensor
    scale: Tensor
    phi: Tensor | None
    held: Tensor

    @classmethod
    def of(cls, fn: TorchDistribution) -> "_Gaussian | None":
        """Return what ``fn`` is made of, or None for anything else."""
        base: Any = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
        held = getattr(base, "held", torch.zeros([1] * fn.event_dim, dtype=torch.bool))
        if isinstance(base, torch.distributions.Normal):
            return cls(base.loc, base.scale, None, held)
        if isinstance(base, AR1) and base.innovation is None:
            return cls(base.loc, base.scale, base.phi, held)
        return None


def _set_to(prior: TorchDistribution, to: float) -> tuple[Tensor, Tensor]:
    """Return where units are set to, and the prior's deviation, each (..., B, N, *event)."""
    try:
        mean, deviation = prior.mean, prior.stddev
    except NotImplementedError:
        mean = deviation = torch.full((), torch.nan)
    if not (torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
        raise ValueError(
            f"a prior of {type(prior).__name__} has no mean and deviation to set units by: draw them with to='prior'"
        )
    target, lowest = mean + to * deviation, lower_bound(prior)
    if (target <= lowest).any():
        raise ValueError(
            f"a unit set to {to:g} deviations of its {_family(prior)} prior would lie at {float(target.min()):.3g}: "
            f"its values lie above {lowest:g}"
        )
    return target, deviation


def _family(fn: TorchDistribution) -> str:
    return type(fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn).__name__


class HeldPoint(dist.Delta):
    """Units that are all held, which draw from ``base`` all the same, so that what follows has its random numbers."""

    def __init__(self, value: Tensor, base: TorchDistribution) -> None:
        self.base = base
        super().__init__(value, event_dim=base.event_dim, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HeldPoint":
        """Return the points expanded."""
        return HeldPoint(self.v.expand(*batch_shape, *self.event_shape), self.base.expand(batch_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return the points."""
        self.base.sample(sample_shape)
        return super().rsample(sample_shape)


class HeldNormal(dist.Normal):
    """Normals some of which are held, with next to no spread; as points, those add nothing to the log density."""

    def __init__(self, loc: Tensor, scale: Tensor, held: Tensor) -> None:
        self.held = held
        super().__init__(loc, scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HeldNormal":
        """Return the normals expanded."""
        return HeldNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.held)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, 0 where a value is held."""
        return super().log_prob(value).masked_fill(self.held, 0.0)


class HeldAR1(AR1):
    """AR(1) paths some units of which are held, with next to no spread; those add nothing to the log density."""

    def __init__(self, loc: Tensor, phi: Tensor, scale: Tensor, held: Tensor) -> None:
        self.held = held
        super().__init__(loc, phi, scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HeldAR1":
        """Return the paths expanded."""
        return HeldAR1(self.loc.expand(*batch_shape, *self.event_shape), self.phi, self.scale, self.held)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density by unit, 0 where one is held."""
        return super().log_prob(value).masked_fill(self.held[..., 0, 0], 0.0)


class EditedUnits(TorchDistribution):
    """Units drawn from ``base``, batch (..., N), but for the ``chosen`` (N,), which are drawn from ``other``."""

    arg_constraints: ClassVar = {}

    def __init__(self, base: TorchDistribution, other: TorchDistribution, chosen: Tensor) -> None:
        self.base, self.other, self.chosen = base, other, chosen
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of ``base``."""
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "EditedUnits":
        """Return the units expanded."""
        return EditedUnits(self.base.expand(batch_shape), self.other.expand(batch_shape), self.chosen)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw from both, so that the random numbers of ``base`` do not depend on who is chosen."""
        value = self.base.sample(sample_shape)
        chosen = self.chosen.to(value.device).reshape(-1, *[1] * self.event_dim)
        return torch.where(chosen, self.other.sample(sample_shape), value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density by unit; NaN where it does not separate into units."""
        if isinstance(self.base, DEPENDENT):
            return torch.full(self.batch_shape, torch.nan, dtype=value.dtype, device=value.device)
        chosen = self.chosen.to(value.device)
        return torch.where(chosen, self.other.log_prob(value), self.base.log_prob(value))
