"""Forecasters whose neurons are distributions: EVE as a Pyro program, trained unit by unit with a local ELBO."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eve_pyro.builder import Built, build
    from eve_pyro.config import Config, load_recipe
    from eve_pyro.control.steering import Steering
    from eve_pyro.data import (
        Panel,
        Scaler,
        Split,
        Splits,
        Table,
        TableSplits,
        Windows,
        latest_windows,
        load_table,
        make_table,
        make_windows,
        standard_split,
    )
    from eve_pyro.data.demo import seattle_weather
    from eve_pyro.diagnostics.calibration import calibration_table, pit_values
    from eve_pyro.diagnostics.importance import compare_guides, importance_table
    from eve_pyro.diagnostics.intervened import Intervened
    from eve_pyro.diagnostics.interventions import knock_out, knock_out_groups, rank_agreement, traverse
    from eve_pyro.diagnostics.refinement import amortization_gap
    from eve_pyro.diagnostics.restarts import restart_agreement
    from eve_pyro.diagnostics.risk import risk_coverage, risk_table, shift_detection, window_signals
    from eve_pyro.diagnostics.simulation import sbc
    from eve_pyro.infer.fit import Fit, fit
    from eve_pyro.infer.forecast import Forecast, forecast
    from eve_pyro.infer.local_elbo import LocalELBO
    from eve_pyro.infer.scores import evaluate, window_scores
    from eve_pyro.infer.terms import ELBOTerms, UnitTerms
    from eve_pyro.infer.training import Training
    from eve_pyro.infer.units import unit_table
    from eve_pyro.naive import naive_scores
    from eve_pyro.neuron import EveLayer
    from eve_pyro.posterior import datatree_size, stack_observed, to_datatree, to_inferencedata
    from eve_pyro.runs import load_run, save_run
    from eve_pyro.testing import check_guide, check_model

_HOMES = {
    "builder": ("Built", "build"),
    "config": ("Config", "load_recipe"),
    "control.steering": ("Steering",),
    "data": (
        "Panel",
        "Scaler",
        "Split",
        "Splits",
        "Table",
        "TableSplits",
        "Windows",
        "latest_windows",
        "load_table",
        "make_table",
        "make_windows",
        "standard_split",
    ),
    "data.demo": ("seattle_weather",),
    "diagnostics.calibration": ("calibration_table", "pit_values"),
    "diagnostics.importance": ("compare_guides", "importance_table"),
    "diagnostics.intervened": ("Intervened",),
    "diagnostics.interventions": ("knock_out", "knock_out_groups", "rank_agreement", "traverse"),
    "diagnostics.refinement": ("amortization_gap",),
    "diagnostics.restarts": ("restart_agreement",),
    "diagnostics.risk": ("risk_coverage", "risk_table", "shift_detection", "window_signals"),
    "diagnostics.simulation": ("sbc",),
    "infer.fit": ("Fit", "fit"),
    "infer.forecast": ("Forecast", "forecast"),
    "infer.local_elbo": ("LocalELBO",),
    "infer.scores": ("evaluate", "window_scores"),
    "infer.terms": ("ELBOTerms", "UnitTerms"),
    "infer.training": ("Training",),
    "infer.units": ("unit_table",),
    "naive": ("naive_scores",),
    "neuron": ("EveLayer",),
    "posterior": ("datatree_size", "stack_observed", "to_datatree", "to_inferencedata"),
    "runs": ("load_run", "save_run"),
    "testing": ("check_guide", "check_model"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Built", "Config", "ELBOTerms", "EveLayer", "Fit", "Forecast", "Intervened", "LocalELBO", "Panel", "Scaler",
    "Split", "Splits", "Steering", "Table", "TableSplits", "Training", "UnitTerms", "Windows", "amortization_gap",
    "build", "calibration_table", "check_guide", "check_model", "compare_guides", "datatree_size", "evaluate",
    "fit", "forecast", "importance_table", "knock_out", "knock_out_groups", "latest_windows", "load_recipe",
    "load_run", "load_table", "make_table", "make_windows", "naive_scores", "pit_values", "rank_agreement",
    "restart_agreement", "risk_coverage", "risk_table", "save_run", "sbc", "seattle_weather", "shift_detection",
    "stack_observed", "standard_split", "to_datatree", "to_inferencedata", "traverse", "unit_table",
    "window_scores", "window_signals",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds, and ``--help`` should not."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
