"""Sets by name, and the large ones in datasetsforecast's layout, as many series as they have and few rows."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED

from eve_pyro.bench.sets import checksum_of, default_contexts, default_horizons, find_set, load_set
from eve_pyro.data import make_windows

SIZES = {"ECL": 321, "Traffic": 862, "Weather": 21}
ROWS, CONTEXT, HORIZON = 120, 24, 6


def write(path, series, rows=ROWS):
    values = np.sin(np.arange(rows)[None] / 5 + np.arange(series)[:, None]).round(4)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([f"{i}" for i in range(series)], rows),
            "ds": np.tile(pd.date_range("2016-07-01", periods=rows, freq="h").astype(str), series),
            "y": values.ravel(),
        }
    )
    path.parent.mkdir(parents=True)
    frame.to_csv(path, index=False)


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("place", ["{name}/df_y.csv", "longhorizon/datasets/{lower}/M/df_y.csv"])
def test_large_sets_load_and_their_windows_are_views(tmp_path, name, place):
    write(tmp_path / place.format(name=name, lower=name.lower()), SIZES[name])
    path = find_set(tmp_path, name)
    source = load_set(path, name)
    assert (len(source.panel), source.checksum) == (SIZES[name], checksum_of(path))
    splits = make_windows(source.panel, CONTEXT, HORIZON)
    counts = [len(part) // SIZES[name] for part in splits]
    assert counts == [84 - CONTEXT - HORIZON + 1, 12 - HORIZON + 1, 24 - HORIZON + 1]  # of 70, 10 and 20 %
    assert all(part.flat.data_ptr() == splits.train.flat.data_ptr() for part in splits)  # all windows share one copy
    assert splits.train.flat.numel() == SIZES[name] * ROWS
    first = splits.train[:1].context
    torch.testing.assert_close(first[0, 0], splits.train.flat[:CONTEXT])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_sets_of_the_field_are_found_as_csv():
    source = load_set(find_set(SHARED, "exchange_rate"), "exchange_rate")
    assert len(source.panel) == 8
    assert default_horizons("national_illness") == (24, 36, 48, 60)
    assert (default_horizons("ETTh1"), default_contexts("ETTh1")) == ((96, 192, 336, 720), (96, 336, 512))


def test_a_missing_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasetsforecast", None)
    with pytest.raises(
        ValueError, match=r"no data set 'ECL': looked for .*ECL/df_y.csv; pip install 'eve_pyro\[sets\]'"
    ):
        find_set(tmp_path, "ECL")


@pytest.fixture
def package(monkeypatch):
    """Stand in for datasetsforecast, its download being what the test says."""
    package, module = ModuleType("datasetsforecast"), ModuleType("datasetsforecast.long_horizon")
    module.LongHorizon = type("LongHorizon", (), {})
    monkeypatch.setitem(sys.modules, "datasetsforecast", package)
    monkeypatch.setitem(sys.modules, "datasetsforecast.long_horizon", module)
    return module.LongHorizon


def test_a_missing_set_is_downloaded_where_the_package_is(tmp_path, package):
    package.download = staticmethod(lambda folder: write(tmp_path / "longhorizon/datasets/weather/M/df_y.csv", 21))
    assert find_set(tmp_path, "Weather").name == "df_y.csv"


def test_a_download_that_fails_is_said(tmp_path, package):
    def fail(folder):
        raise ConnectionError("no network")

    package.download = staticmethod(fail)
    with pytest.raises(ValueError, match=r"cannot download the long-horizon sets .* no network"):
        find_set(tmp_path, "ECL")
