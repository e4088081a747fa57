"""The units that matter, and whether the forecaster knows when it will be wrong."""

import pandas as pd

from eve_pyro import plots
from eve_pyro.data import Windows
from eve_pyro.diagnostics.interventions import COSTS, as_group, knock_out, knock_out_groups, rank_agreement, traverse
from eve_pyro.diagnostics.risk import RiskCoverage, risk_coverage, risk_table, window_signals
from eve_pyro.posterior import to_datatree
from eve_pyro.report.blocks import Block, Note, Row, Section, Table, Text, percent, picture, short
from eve_pyro.report.record import Record, spread

GROUP, TRACED = 10, 3
FEW_WINDOWS, FEW_UNITS, FEW_DRAWS = 64, 24, 20  # where every unit takes a forecast of its own
VALUES = 2**22  # of the horizon by unit and window, in memory at once
HEADS = ["cost in CRPS", "cost in energy score", "cost in joint log score"]
SIGNALS = {
    "scale": "predictive deviation",
    "path_spread": "deviation of the horizon's mean",
    "kl_before": "KL before the future is known",
}
NAMES = {"eve": "EVE", "twin": "twin"}


def units(record: Record) -> Section:
    """Show what it costs to knock units out: each, the dearest ten, ten at random; and what the dearest one does."""
    told = "A unit is knocked out by holding it at its prior's mean; what the scores then lose is what it is worth."
    try:
        blocks = _worth(record)
    except ValueError as error:  # a diagnostic says what it cannot be asked
        blocks = [Note(f"Left out: {error}.")]
    return Section("units", "The units that matter", [Text(told), *blocks])


def _worth(record: Record) -> list[Block]:
    most = len(record.test) if record.exact else FEW_WINDOWS
    ranking, windows = spread(record.windows.validation, most), spread(record.test, most)
    ranked, costs = _costs(record, ranking), _costs(record, windows)
    if costs["joint_log_score_cost"].isna().all():
        return [Note("Left out: forecasts come from a posterior whose units hang together, without a density each.")]
    caption = "What the joint log score loses without each unit, beside the KL that the unit pays."
    alt = "Cost of knocking out each of the dearest units beside its KL."
    note = (
        f"Units are ranked on {record.sample(ranking, 'validation')} and costs measured on {record.sample(windows)}, "
        "so that no unit is dear by luck alone."
    )
    if not record.exact:
        note += (
            f" There is no closed form: costs come from {FEW_DRAWS} draws, for the {len(costs)} of {len(record.units)} "
            "units with the most KL, and small ones are noise."
        )
    costs = _held(record, costs)
    bars = picture(plots.intervention_bars(costs), "costs", alt, caption)
    return [_groups(record, ranked, windows), bars, _agreement(costs), *_of_the_dearest(record, ranked), Note(note)]


def _costs(record: Record, windows: Windows) -> pd.DataFrame:
    """Return the cost of every unit, or of those with the most KL where each takes a forecast of its own."""
    chosen = None if record.exact else as_group(record.units.nlargest(FEW_UNITS, "kl"))
    batch = max(1, min(64, VALUES // (len(record.units) * windows.horizon)))
    draws = 50 if record.exact else FEW_DRAWS
    return knock_out(record.eve.model, record.eve.guide, windows, chosen, num_draws=draws, batch_size=batch)


def _groups(record: Record, ranked: pd.DataFrame, windows: Windows) -> Table:
    units, ranked = (_held(record, table) for table in (record.units, ranked))
    size = max(1, min(GROUP, len(units) // 2))
    top, names = ranked.head(size), ["site", "unit"]
    others = units.merge(top[names], on=names, how="left", indicator=True).query("_merge == 'left_only'")
    groups = {f"the dearest {size}": as_group(top)}
    if len(others):
        drawn = others.sample(min(size, len(others)), random_state=0)
        groups[f"{len(drawn)} of the others, at random"] = as_group(drawn)
    if record.volatility is not None:
        groups["the volatility unit"] = {record.volatility: [0]}
    draws = 50 if record.exact else FEW_DRAWS
    found = knock_out_groups(record.eve.model, record.eve.guide, windows, groups, num_draws=draws)
    rows = [Row(row["group"], [short(row[cost]) for cost in (*COSTS, "kl")]) for row in found.to_dict("records")]
    return Table("Cost of knocking out groups of units", ["knocked out together", *HEADS, "KL (nats)"], rows)


def _held(record: Record, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table without the volatility unit's."""
    return table[table["site"] != record.volatility]


def _agreement(costs: pd.DataFrame) -> Table:
    found = rank_agreement(costs)
    rows = [
        Row(name, [f"{value:.2f}" for value in found[column]]) for column, name in (("kl", "KL"), ("energy", "energy"))
    ]
    return Table("Rank agreement of costs with KL and energy", ["rank correlation with", *HEADS], rows)


def _of_the_dearest(record: Record, ranked: pd.DataFrame) -> list[Block]:
    """Show where the dearest units stand in every window, and what the first of them does to a forecast."""
    model, guide, ranked = record.eve.model, record.eve.guide, _held(record, ranked)
    site = str(ranked["site"].iloc[0])
    top = ranked.loc[ranked["site"] == site, "unit"].tolist()[:TRACED]
    layer = site.removesuffix(".z")
    names = [f"{layer}[{unit}]" for unit in top]
    tree = to_datatree(model, guide, record.test, groups=("posterior",), sites=[site], units=names)
    caption = f"Where the dearest units of {site} stand: posterior mean and 90 % interval, window by window."
    trace = picture(plots.unit_trace(tree, names), "trace", f"Posterior of {', '.join(names)} by window.", caption)
    window = record.test.select([len(record.test) // 2])
    found = traverse(model, guide, window, site, top[0])
    caption = (
        f"{names[0]}, the dearest of them, taken from -3 to 3 of its prior's deviations: the forecast of one window."
    )
    return [trace, picture(plots.traverse_fan(found), "traverse", f"Forecasts as {names[0]} is set.", caption)]


def knowing(record: Record) -> Section:
    """Show whether the forecasts' own spread foretells their errors, beside the twin's."""
    try:
        blocks = _foretold(record)
    except ValueError as error:  # a spread without bounds
        blocks = [Note(f"Left out: {error}.")]
    return Section("uncertainty", "Internal uncertainty", blocks)


def _foretold(record: Record) -> list[Block]:
    curves: dict[str, RiskCoverage] = {}
    tables = []
    for name, pair in record.pairs.items():
        found = window_signals(pair.model, pair.guide, record.test)
        wanted = SIGNALS if name == "eve" else ["scale"]
        known = {SIGNALS[key]: found[key] for key in wanted if key in found and found[key].std() > 0}
        tables.append(risk_table(known, found["crps"]).assign(pair=NAMES[name]))
        curves[NAMES[name]] = risk_coverage(found["crps"], found["scale"])
    caption = "The mean error of the windows kept, the surest first: it should rise to the right."
    alt = "Mean CRPS against the share of windows kept, by predictive deviation."
    chart = picture(plots.risk_curves(curves), "risk", alt, caption)
    note = f"From {record.sample(record.test)}. A gain of 1 is the order by the errors themselves, 0 is chance."
    if record.run.twin is None:
        note += " There is no twin to compare with."
    return [Text(_knows(curves)), chart, _signals(tables), Note(note)]


def _knows(curves: dict[str, RiskCoverage]) -> str:
    gain = curves["EVE"].gain
    verdict = "foretells where it will be wrong" if gain > 0.2 else "says little of where it will be wrong"
    told = f"A forecast's deviation {verdict} (a gain of {percent(gain)}). "
    halves = [
        f"{'its twin' if name == 'twin' else name}'s mean CRPS is {curve.risk[(len(curve.risk) - 1) // 2]:.3f}, and "
        f"{curve.random:.3f} over all"
        for name, curve in curves.items()
    ]
    return f"{told}Over the half of the windows with the smallest deviation, {'; '.join(halves)}."


def _signals(tables: list[pd.DataFrame]) -> Table:
    rows = [
        Row(f"{row['pair']}: {row['signal']}", [f"{row['spearman']:.2f}", f"{row['aurc']:.4f}", f"{row['gain']:+.2f}"])
        for row in pd.concat(tables).to_dict("records")
    ]
    return Table(
        "Signals that may foretell errors", ["signal", "rank correlation", "area under the curve", "gain"], rows
    )
