"""Forecasts to look at, how the training went, and the census of the units."""

import pandas as pd

from eve_pyro import plots
from eve_pyro.data import Windows
from eve_pyro.diagnostics.census import STATES, last_figures
from eve_pyro.infer.forecast import forecast
from eve_pyro.report.blocks import Block, Note, Pager, Row, Section, Table, Text, percent, picture, short
from eve_pyro.report.record import Record

SHOWN_SERIES = 12
SHOWN_LAYERS = 3
MEANINGS = {
    "living": "inside its band, and none of the others",
    "too_low": "energy below its band",
    "too_high": "energy above its band",
    "dead": "energy and KL below 1e-4",
    "saturated": "energy above four times its band",
    "collapsed": "a posterior as narrow as it can be",
    "drifting": "energy moving without a gain in score",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def fans(record: Record) -> Section:
    """Show two test windows of every series, or of some of many, with the twin's band."""
    test = record.windows.test
    count = len(test.panel)
    series = [round(i * (count - 1) / max(1, min(count, SHOWN_SERIES) - 1)) for i in range(min(count, SHOWN_SERIES))]
    pages = []
    for page, number in enumerate(series):
        shown = _two_of(test, number)
        drawn = {key: forecast(pair.model, pair.guide, shown) for key, pair in record.pairs.items()}
        name = test.panel.names[number]
        alt = f"Forecasts of {name}: the truth, the median and 50 and 90 % bands of two test windows."
        caption = (
            "Bands hold 50 and 90 % of the forecast; thin lines are paths drawn whole, each a future that could be."
        )
        pages.append((name, picture(plots.fan_chart(drawn["eve"], drawn.get("twin")), f"fan{page}", alt, caption)))
    told = "Two test windows of each series, a third and two thirds of the way through."
    if len(record.pairs) > 1:
        told += " The dashed lines are the twin's 90 % band."
    blocks: list[Block] = [Text(told), Pager("Series", pages)]
    if len(series) < count:
        blocks.append(Note(f"{len(series)} of {count:,} series are shown."))
    return Section("forecasts", "Forecasts", blocks)


def curves(record: Record) -> Section:
    """Show loss and validation score by epoch."""
    rule = "The last epoch is kept" if record.run.config.training.monitor == "last" else "An epoch is kept by its score"
    caption = f"The loss is the negative of the local ELBO, a value. {rule}."
    alt = "Training and validation loss, and validation CRPS, by epoch."
    blocks: list[Block] = [picture(plots.training_curves(record.histories), "curves", alt, caption)]
    if len(record.histories) > 1:
        blocks.append(Note("The losses of EVE and its twin are of different objectives: compare their scores."))
    return Section("training", "Training", blocks)


def census(record: Record) -> Section:
    """Show which states the units are in, what they carry, and how they came there."""
    told = (
        "A unit pays KL, in nats, for what its posterior says beyond its prior. Its energy is the squared shift from "
        "the prior, and a band of energies says how alive a unit should be. "
    )
    regime = record.run.config.control.regime
    steered = f"were steered by {regime}" if regime != "off" else "were left alone: the bands are a yardstick"
    told += f"The units of this run {steered}."
    if record.volatility is not None:
        told += " No band holds the volatility unit, which makes a window calm or wild as a whole."
    blocks: list[Block] = [Text(told)]
    layers = last_figures(record.census).groupby("site", sort=False)
    blocks += [_states(str(site), layer) for site, layer in layers]
    caption = "Each bar is a unit, averaged over test windows, the one with the most KL first."
    blocks.append(picture(plots.unit_bars(record.units), "units", "KL and energy of every unit.", caption))
    sites = record.census["site"].unique()
    for number, site in enumerate(sites[:SHOWN_LAYERS]):
        layer = record.census[(record.census["site"] == site) & (record.census["split"] == "val")]
        caption = (
            f"{site} through training, on validation windows: energies and KLs by unit, the share of units in each "
            "state, and what a unit says or pays."
        )
        alt = f"Heat maps of energy and KL by unit and step of {site}, and the share of units in each state."
        blocks.append(picture(plots.census_map(layer), f"census{number}", alt, caption))
    if len(sites) > SHOWN_LAYERS:
        blocks.append(Note(f"The pictures of the other {len(sites) - SHOWN_LAYERS} layers are in the run's figures/."))
    if record.units["sampled"].any():
        blocks.append(Note("The KL has no closed form under this guide: its figures are estimates from draws."))
    return Section("census", "The census of the units", blocks)


def _states(site: str, layer: pd.DataFrame) -> Table:
    """Return one layer's states and sums, a column a split."""
    states = [
        Row(state.replace("_", " "), [percent(share, 1) for share in layer[state]], words=MEANINGS[state])
        for state in STATES
        if (layer[state] > 0).any()
    ]
    kl = Row("KL", [short(value) for value in layer["kl"]], words="nats a window, all units together")
    active = Row("active", [percent(share, 1) for share in layer["active"]], words="units with more than 0.01 nats")
    energy = Row(
        "energy", [short(value) for value in layer["energy"]], words="squared prior deviations, mean over units"
    )
    count = int(layer["units"].max())
    head = [f"{site}, {count} unit{'s' * (count > 1)}", *(SPLITS[split] for split in layer["split"])]
    return Table(f"States of the units of {site}", head, [*states, active, kl, energy])


def _two_of(windows: Windows, series: int) -> Windows:
    positions = (windows.series == series).nonzero()[:, 0]
    return windows.select([int(positions[len(positions) * part // 3]) for part in (1, 2)])
