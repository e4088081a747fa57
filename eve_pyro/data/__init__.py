"""Data on its way in: panels, splits, windows."""

from eve_pyro.data.longhorizon import Split, standard_split
from eve_pyro.data.panel import Panel
from eve_pyro.data.tabular import Table, TableSplits, load_table, make_table
from eve_pyro.data.windows import Scaler, Splits, Windows, latest_windows, make_windows

__all__ = [
    "Panel", "Scaler", "Split", "Splits", "Table", "TableSplits", "Windows", "latest_windows", "load_table",
    "make_table", "make_windows", "standard_split",
]  # fmt: skip
