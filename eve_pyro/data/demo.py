"""The demo's data: daily weather in Seattle, 2012 to 2015, from the vega_datasets package. No network."""

from importlib.resources import files

import pandas as pd

from eve_pyro.data.panel import Panel


def seattle_weather() -> Panel:
    """Return 1,461 days of highest and lowest temperature (deg C) and wind (m/s).

    The package also has the rain, which is mostly zero: no series for a head of normals.
    """
    with files("vega_datasets").joinpath("_data", "seattle-weather.csv").open(encoding="utf-8") as file:
        return Panel.from_wide(pd.read_csv(file)[["date", "temp_max", "temp_min", "wind"]])
