"""Pictures, in one look: colour-blind safe (Okabe and Ito), units on the axes, readable at notebook width.

Every function returns a matplotlib ``Figure`` made without pyplot: nothing global changes, nothing must be closed.
ArviZ's own pictures, which go through pyplot, take the trees of ``to_datatree`` as they are.
"""

from eve_pyro.plots.calibration import coverage_curves, pit_histogram
from eve_pyro.plots.comparisons import accuracy_chart, difference_bars, regime_scatter
from eve_pyro.plots.fidelity import khat_chart, rank_histograms
from eve_pyro.plots.forecasts import SHOWN_PAST, fan_chart
from eve_pyro.plots.interventions import intervention_bars, traverse_fan
from eve_pyro.plots.posteriors import prior_posterior, unit_forest, unit_trace
from eve_pyro.plots.risk import risk_curves
from eve_pyro.plots.search import early_signals, importance_bars, pareto_scatter
from eve_pyro.plots.style import BLUE, GREEN, GREY, INK, ORANGE, REGIME_COLOURS, STATE_COLOURS
from eve_pyro.plots.training import census_map, training_curves, unit_bars

__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "ORANGE", "REGIME_COLOURS", "SHOWN_PAST", "STATE_COLOURS", "accuracy_chart",
    "census_map", "coverage_curves", "difference_bars", "early_signals", "fan_chart", "importance_bars",
    "intervention_bars", "khat_chart", "pareto_scatter", "pit_histogram", "prior_posterior", "rank_histograms",
    "regime_scatter", "risk_curves", "training_curves", "traverse_fan", "unit_bars", "unit_forest", "unit_trace",
]  # fmt: skip
