"""Whether to believe it: calibration of the forecasts, fidelity of the posterior."""

import math

from eve_pyro import plots
from eve_pyro.diagnostics.calibration import calibration_table, pit_values
from eve_pyro.diagnostics.importance import importance_table
from eve_pyro.diagnostics.refinement import amortization_gap
from eve_pyro.diagnostics.simulation import LEVEL, sbc
from eve_pyro.report.blocks import Block, Note, Section, Text, percent, picture
from eve_pyro.report.record import WORK, Record, spread

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DRAWS = 500  # behind k-hat
REFINED, STEPS = 16, 150  # windows whose posterior is refined, and by how many steps
MOST_RANKED = 2048  # latents that are ranked one by one
SIMULATED = 100  # windows at least, for ranks


def calibration(record: Record) -> Section:
    """Show PIT values and coverage, by level and by step of the horizon."""
    found = [
        (pit_values(model, guide, record.test), calibration_table(model, guide, record.test, LEVELS))
        for model, guide in ((pair.model, pair.guide) for pair in record.pairs.values())
    ]
    pits, tables = zip(*found, strict=True)
    mean = tables[0].groupby("level")["coverage"].mean()
    nine = tables[0][tables[0]["level"] == 0.9]
    worst = nine.loc[(nine["coverage"] - 0.9).abs().idxmax()]
    told = (
        f"Intervals meant to hold 50, 80 and 95 % of the truths hold {percent(mean[0.5])}, {percent(mean[0.8])} and "
        f"{percent(mean[0.95])}. The 90 % interval is farthest off at step {worst['step']:.0f}, where it holds "
        f"{percent(worst['coverage'])}."
    )
    caption = (
        "Where truths fall in their forecasts. Flat is calibrated; a hump says that forecasts are too wide, horns too "
        "narrow, a slope that they lie too low or too high."
    )
    pit = picture(plots.pit_histogram(*pits), "pit", "Histogram of PIT values over the band of chance.", caption)
    caption = (
        "By level: above the line intervals are too wide, below it too narrow. By step: each line should keep to its "
        "dotted one."
    )
    alt = "Coverage of central intervals by level and by step of the horizon."
    coverage = picture(plots.coverage_curves(*tables), "coverage", alt, caption)
    note = f"From {record.sample(record.test)}. Windows overlap, so their truths are not independent."
    return Section("calibration", "Calibration", [Text(told), pit, coverage, Note(note)])


def fidelity(record: Record) -> Section:
    """Show how far the guide is from the model's posterior, as far as it has a density to weigh."""
    told = (
        "Forecasts may be good while the posterior of the units is not. Here the guide's draws are weighed by how "
        "likely the model finds them: the more even the weights, the nearer the guide is to the exact posterior."
    )
    blocks: list[Block] = [Text(told)]
    for part in (_weights, _refinement, _ranks):
        try:
            blocks += part(record)
        except ValueError as error:  # a diagnostic says what it cannot be asked
            blocks.append(Note(f"Left out: {error}."))
            break
    return Section("fidelity", "Fidelity of the posterior", blocks)


def _weights(record: Record) -> list[Block]:
    """Return k-hat, effective draws and the gap to the bound."""
    windows, pair = record.weighed(DRAWS), record.eve
    batch = max(1, min(16, WORK // (DRAWS * record.num_latents)))
    table = importance_table(pair.model, pair.guide, windows, DRAWS, batch)
    bad, worth = float((table["khat"] > 0.7).mean()), float(table["ess"].median())
    gap = round(table["gap"].mean(), 4) + 0.0  # rounding errors are none
    told = (
        f"k-hat is above 0.7 in {percent(bad)} of the windows, {DRAWS} draws for the median window are worth "
        f"{worth:.3g} of the exact posterior, and the ELBO lies {gap:.3g} nats a window below the "
        "bound that the weights give. "
    )
    if bad < 0.05 and worth > DRAWS / 2:
        told += "The guide is close to the posterior of all units together."
    else:
        told += "As the posterior of all units together the guide is not to be relied on in every window."
    if record.run.config.guide.guide == "context":
        told += (
            " It does not read the future, and is what forecasts draw from rather than a posterior: that shows here."
        )
    caption = (
        "k-hat below 0.5: averages over draws can be corrected by their weights; to 0.7, still usable; above, no "
        "number of draws helps. The gap, bound less ELBO, approaches KL(q || posterior) from below."
    )
    chart = picture(plots.khat_chart(table), "khat", "k-hat and gap of every window.", caption)
    return [Text(told), chart, Note(f"From {DRAWS} draws for each of {record.sample(windows)}.")]


def _refinement(record: Record) -> list[Block]:
    """Return what single windows gain when their posterior is refined by itself."""
    windows, pair = spread(record.test, REFINED), record.eve
    found = amortization_gap(pair.model, pair.guide, windows, steps=STEPS, num_draws=200, batch_size=REFINED).windows
    gap, error = found["gap"].mean(), math.sqrt(found["gap_se"].pow(2).sum()) / len(found)
    told = (
        f"Refined for each window by itself, the posterior gains {gap:.3g} ± {2 * error:.2g} nats a "
        "window, the price of one guide for all windows (amortization)"
    )
    if gap < 0:  # what is refined are independent units
        told = (
            f"Independent units, refined for each window by itself, lie {-gap:.3g} ± {2 * error:.2g} nats a window "
            "below the guide: that much it gains where units hang together"
        )
    return [Text(f"{told}; from {record.sample(windows)}.")]


def _ranks(record: Record) -> list[Block]:
    """Return simulation-based calibration, unless there are very many units."""
    if record.num_latents > MOST_RANKED:
        return [Note(f"Simulation-based calibration is left out: {record.num_latents:,} latents take long to rank.")]
    windows, pair = record.weighed(200), record.eve
    found = sbc(pair.model, pair.guide, windows, repeats=-(-SIMULATED // len(windows)))
    off = found.table[found.table["p_holm"] < LEVEL]["quantity"]
    latents, all_latents = ((each == "latent").sum() for each in (off, found.table["quantity"]))
    told = "On data that the model itself made up, the truth ranks among the guide's draws as it should."
    if len(off):
        told = (
            f"On data that the model itself made up, the truth's rank among the guide's draws is off for {latents} of "
            f"{all_latents} latents and for {len(off) - latents} of {len(found.table) - all_latents} quantities that "
            "all units share, at 5 % for all tests together. A guide that learned from real futures alone may be off "
            "on made-up ones."
        )
    caption = (
        "Flat is right; a hump says that the posterior is too wide, horns too narrow, a slope that it lies to one side."
    )
    alt = "Histograms of the truth's rank, by latent and for the quantities that all units share."
    return [Text(told), picture(plots.rank_histograms(found), "ranks", alt, caption)]
