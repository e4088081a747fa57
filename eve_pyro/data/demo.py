"""The demo's data: daily weather in Seattle, 2012 to 2015, from the vega_datasets package. No network."""

from importlib.resources import files

import numpy as np
import pandas as pd

from eve_pyro.data.panel import Panel


def seattle_weather() -> Panel:
    """Return 1,461 days of log1p precipitation (mm), highest and lowest temperature (deg C) and wind (m/s).

    Rain is mostly zero with a long tail; its logarithm is what a normal head can follow.
    """
    with files("vega_datasets").joinpath("_data", "seattle-weather.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame["precipitation"] = np.log1p(frame["precipitation"])
    frame = frame.rename(columns={"precipitation": "log_precipitation"})
    return Panel.from_wide(frame[["date", "log_precipitation", "temp_max", "temp_min", "wind"]])
