"""What the units are worth: the cost of knocking them out, in scores, and the forecast as one of them runs its axis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from eve_pyro import metrics
from eve_pyro.diagnostics.factor_costs import Tails, unit_costs
from eve_pyro.diagnostics.intervened import Intervened, Target, Units, check_units, edited, lower_bound, unit_counts
from eve_pyro.distributions.factor import FactorNormal
from eve_pyro.distributions.volatile import VolatileFactor
from eve_pyro.infer.batches import check_futures
from eve_pyro.infer.predictive import forecast_latents, forecast_trace, joint, moments, observation, predict
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.infer.scores import crps_of, joint_score
from eve_pyro.infer.units import unit_table
from eve_pyro.protocols import Guide, Model, Rows

COSTS = ["crps_cost", "energy_score_cost", "joint_log_score_cost"]


def knock_out(
    model: Model,
    guide: Guide,
    windows: Rows,
    units: Units | None = None,
    to: Target = 0.0,
    num_draws: int = 50,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what it costs to set each unit by itself: one row a unit, the dearest in joint log score first.

    Columns: ``site, unit``; ``crps_cost``, ``energy_score_cost`` (in the scale of the training rows) and
    ``joint_log_score_cost`` (nats a value), the score after the intervention less that before, averaged over
    ``windows``; ``kl`` (nats a window) and ``energy``, see ``unit_table``. A cost above 0 says that the unit helps.
    ``units`` by site, all by default; ``to`` as for ``Intervened``: 0 knocks out, 1.5 clamps, "prior" swaps.

    Under a factor readout CRPS and joint log score are exact: Normal(f, C) becomes Normal(f + W s, C + W D W') for unit
    n's loadings W, the shift s and the change D of its covariance, which needs no factorisation a unit. With a
    volatility unit they are Student's t for s = 0, and normal once that unit itself is knocked out. Energy scores,
    and all scores of models without a closed form, come from ``num_draws`` draws whose random numbers are the same with
    and without the intervention, and joint log scores then from importance sampling, see ``evaluate``; that takes one
    forecast a unit and batch. NaN where a guide that forecasts from its posterior has dependent units.

    Raises ValueError for no windows, windows without a future and no units, and for sites, units and targets as
    ``Intervened`` does.
    """
    check_futures(windows)
    counts = _counts(model, guide, windows, seed)
    units = {site: range(count) for site, count in counts.items()} if units is None else units
    check_units(units, counts)
    units = {site: chosen for site, chosen in units.items() if len(chosen)}
    if not units:
        raise ValueError("no unit is named to intervene on")
    totals = {site: torch.zeros(len(chosen), len(COSTS), dtype=torch.float64) for site, chosen in units.items()}
    with evaluating(model, guide, seed):
        for number, batch in enumerate(windows.batches(batch_size)):
            context, future = (each.to(device_of(model)) for each in batch)
            traces = forecast_trace(model, guide, context)
            for site, chosen in units.items():
                costs = _exact_costs(*traces, site, chosen, to, future, num_draws)
                if costs is None:
                    alone = [{site: [unit]} for unit in chosen]
                    costs = _drawn_costs(model, guide, context, future, alone, to, num_draws, seed + number)
                totals[site] += costs.double().sum(-1).cpu()
    rows = [
        pd.DataFrame((total / len(windows)).numpy(), columns=COSTS).assign(site=site, unit=list(units[site]))
        for site, total in totals.items()
    ]
    told = unit_table(model, guide, windows, seed=seed)[["site", "unit", "kl", "energy"]]
    table = pd.concat(rows).merge(told, on=["site", "unit"], how="left")
    return table.sort_values(COSTS[::-1], ascending=False, ignore_index=True)[["site", "unit", *COSTS, "kl", "energy"]]


def knock_out_groups(
    model: Model,
    guide: Guide,
    windows: Rows,
    groups: Mapping[str, Units],
    to: Target = 0.0,
    num_draws: int = 50,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what it costs to set all units of a group at once: one row a group, in the order given.

    ``groups`` maps a name to units by site, ``{"top": {"eve.z": [3, 7]}}``; ``as_group`` makes them of rows of a unit
    table. Columns ``group, units`` (how many), the costs as for ``knock_out``, the ``kl`` of the group (nats a window)
    and its mean ``energy``. Raises ValueError as ``knock_out`` does.
    """
    check_futures(windows)
    if not groups:
        raise ValueError("no group is named to intervene on")
    counts = _counts(model, guide, windows, seed)
    for units in groups.values():
        check_units(units, counts)
    totals = torch.zeros(len(groups), len(COSTS), dtype=torch.float64)
    with evaluating(model, guide, seed):
        for number, batch in enumerate(windows.batches(batch_size)):
            context, future = (each.to(device_of(model)) for each in batch)
            args = list(groups.values()), to, num_draws, seed + number
            totals += _drawn_costs(model, guide, context, future, *args).double().sum(-1).cpu()
    table = pd.DataFrame((totals / len(windows)).numpy(), columns=COSTS).assign(group=list(groups))
    told = unit_table(model, guide, windows, seed=seed).set_index(["site", "unit"])
    members = [told.loc[[(site, unit) for site in units for unit in units[site]]] for units in groups.values()]
    table = table.assign(
        units=[len(rows) for rows in members],
        kl=[rows["kl"].sum() for rows in members],
        energy=[rows["energy"].mean() for rows in members],
    )
    return table[["group", "units", *COSTS, "kl", "energy"]]


def as_group(rows: pd.DataFrame) -> dict[str, list[int]]:
    """Return the units of some rows of a unit table, by site: ``as_group(table.nlargest(10, "kl"))``."""
    return {str(site): part["unit"].tolist() for site, part in rows.groupby("site")}


def rank_agreement(costs: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlation of every cost (rows) with ``kl`` and ``energy`` (columns); NaN for a constant."""
    return costs[[*COSTS, "kl", "energy"]].corr(method="spearman").loc[COSTS, ["kl", "energy"]]


class Traversal(NamedTuple):
    """The forecast as one unit runs along its axis: at ``values`` (V,), in prior deviations, the ``mean`` and ``scale``
    of every value to come, each (V, N, H), in the scale of the training rows.
    """

    values: Tensor
    mean: Tensor
    scale: Tensor


def traverse(
    model: Model,
    guide: Guide,
    windows: Rows,
    site: str,
    unit: int,
    values: Sequence[float] | None = None,
    num_draws: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> Traversal:
    """Return the marginals of N windows as a unit is set to ``values``, by default -3 to 3 prior deviations, of which a
    volatility unit takes those that leave it above 0.

    Exact where the forecast is, else from ``num_draws`` draws whose random numbers all values share. Raises ValueError
    for no windows, no values, and as ``Intervened`` does.
    """
    model_trace, _ = _first(model, guide, windows, seed)
    check_units({site: [unit]}, unit_counts(model_trace))
    values = _axis(model_trace.nodes[site]["fn"]) if values is None else values
    if not len(values):
        raise ValueError("no value is named to set the unit to")
    found: list[tuple[Tensor, Tensor]] = []
    for value in values:
        changed, parts = Intervened(model, guide, {site: [unit]}, value), []
        with evaluating(model, changed, seed):
            for context, _ in windows.batches(batch_size):
                parts.append(moments(predict(model, changed, context.to(device_of(model)), num_draws)))
        mean, scale = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
        found.append((mean, scale))
    means, scales = zip(*found, strict=True)
    return Traversal(torch.tensor(values), torch.stack(means), torch.stack(scales))


def _first(model: Model, guide: Guide, windows: Rows, seed: int) -> tuple[Trace, Trace]:
    """Return the traces of a forecast of the first window."""
    if not len(windows):
        raise ValueError("there are no windows to intervene on")
    context = next(windows.batches(1)).context.to(device_of(model))
    with evaluating(model, guide, seed):
        return forecast_trace(model, guide, context)


def _counts(model: Model, guide: Guide, windows: Rows, seed: int) -> dict[str, int]:
    """Return how many units every site has."""
    return unit_counts(_first(model, guide, windows, seed)[0])


def _axis(prior: Any) -> list[float]:
    """Return deviations from -3 to 3, but for those that leave the support of a site's prior."""
    values, lowest = np.linspace(-3.0, 3.0, 13).tolist(), lower_bound(prior)
    if lowest == -math.inf:
        return values
    return [value for value in values if (prior.mean + value * prior.stddev > lowest).all()]


def _drawn_costs(
    model: Model, guide: Guide, context: Tensor, future: Tensor, groups: Sequence[Units], to: Target, *drawing: int
) -> Tensor:
    """Return what each intervention costs by window, (I, 3, B), one forecast an intervention."""
    nobody: dict[str, Sequence[int]] = {site: [] for units in groups for site in units}
    before = _scores(model, Intervened(model, guide, nobody, to), context, future, *drawing)
    changed = (Intervened(model, guide, {**nobody, **units}, to) for units in groups)
    return torch.stack([_scores(model, each, context, future, *drawing) - before for each in changed])


def _scores(model: Model, guide: Guide, context: Tensor, future: Tensor, num_draws: int, seed: int) -> Tensor:
    """Return CRPS, energy score and joint log score by window, (3, B)."""
    torch.manual_seed(seed)
    prediction = predict(model, guide, context, num_draws)
    crps = crps_of(prediction, future)
    whole = joint_score(model, guide, context, future, prediction, num_draws)["joint_log_score"]
    return torch.stack([crps.mean(-1), metrics.energy_score(prediction.paths, future), whole])


def _exact_costs(
    model_trace: Trace,
    guide_trace: Trace,
    site: str,
    chosen: Sequence[int],
    to: Target,
    future: Tensor,
    num_draws: int,
) -> Tensor | None:
    """Return what each unit of a factor readout costs by window, (U, 3, B); None where there is no closed form."""
    fn, latents, tails = observation(model_trace), forecast_latents(model_trace, guide_trace), None
    if joint(fn, latents) is None:
        return None
    if isinstance(fn, VolatileFactor):
        fn, wild = fn.given(latents[fn.site])
        tails = None if wild is None else Tails(*(each[..., 0].double() for each in wild))
    if not isinstance(fn, FactorNormal) or fn.site != site:
        return None
    prior: Any = model_trace.nodes[site]["fn"]
    old: Any = latents[site]
    new = prior if to == "prior" else edited(old, prior, range(old.batch_shape[-1]), to)
    return unit_costs(fn, old, new, list(chosen), future, num_draws, tails)
