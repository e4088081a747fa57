"""Data on its way in: panels, splits, windows."""

from eve_pyro.data.longhorizon import Split, standard_split
from eve_pyro.data.panel import Panel
from eve_pyro.data.windows import Scaler, Splits, Windows, latest_windows, make_windows

__all__ = ["Panel", "Scaler", "Split", "Splits", "Windows", "latest_windows", "make_windows", "standard_split"]
