"""Panels, splits and windows: what comes in, what is refused, and that nothing of the future leaks."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED, make_panel

from eve_pyro.data import Panel, Scaler, Split, latest_windows, make_windows, standard_split
from eve_pyro.data.demo import seattle_weather
from eve_pyro.data.panel import season_length


def wide(rows=6, **columns):
    columns = columns or {"a": np.arange(rows, dtype=float)}
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=rows, freq="h"), **columns})


def long_of(frame):
    return frame.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})


def test_every_way_in_gives_the_same_panel(tmp_path):
    frame = wide(a=np.arange(6.0), b=np.arange(6.0) ** 2)
    frame.to_csv(tmp_path / "wide.csv", index=False)
    frame.to_parquet(tmp_path / "wide.parquet")
    long_of(frame).to_csv(tmp_path / "long.csv", index=False)
    panels = [
        Panel.from_wide(frame),
        Panel.from_long(long_of(frame)),
        *(Panel.from_file(tmp_path / name) for name in ("wide.csv", "wide.parquet", "long.csv")),
    ]
    for panel in panels:
        assert panel.names == ("a", "b")
        np.testing.assert_array_equal(np.stack(panel.values, 1), frame[["a", "b"]])
        assert all((index == frame["date"].to_numpy()).all() for index in panel.index)
    array = Panel.from_array(frame[["a", "b"]].to_numpy(), names=["a", "b"])
    np.testing.assert_array_equal(array.values[1], panels[0].values[1])


def test_names_of_series_stay_as_they_are_written_however_long_the_file(tmp_path):
    names, rows = [f"{number:03d}" for number in range(58)] + ["OT"], 4_600  # more than pandas types at once
    frame = pd.DataFrame({"unique_id": np.repeat(names, rows), "ds": np.tile(np.arange(rows), len(names)), "y": 1.5})
    frame.to_csv(tmp_path / "long.csv", index=False)
    assert list(Panel.from_file(tmp_path / "long.csv").names) == names


def test_series_of_different_lengths_live_in_one_panel():
    frame = pd.concat([long_of(wide(40)), long_of(wide(30)).assign(unique_id="short")])
    windows = make_windows(Panel.from_long(frame), 4, 2)
    assert sorted(set(windows.test.series.tolist())) == [0, 1]
    last = windows.test[[-1]]
    np.testing.assert_allclose(windows.test.scale()[1][-1] * last.future[0] + windows.test.scale()[0][-1], [28.0, 29.0])


BAD_FRAMES = {
    "column 'date', row 2: cannot read 'soon' as a date": lambda f: f.assign(
        date=f.date.astype(str).where(f.index != 2, "soon")
    ),
    "column 'date' is empty at row 1": lambda f: f.assign(date=f.date.where(f.index != 1)),
    "column 'a', row 3: 'x' is no number": lambda f: f.assign(a=f.a.astype(object).where(f.index != 3, "x")),
    r"series 'a': missing value at row 4 \(2024-01-01 04:00:00\)": lambda f: f.assign(a=f.a.where(f.index != 4)),
    "series 'a': infinite value at row 0": lambda f: f.assign(a=f.a.where(f.index != 0, np.inf)),
    "timestamp 2024-01-01 00:00:00 occurs twice": lambda f: f.assign(date=f.date.where(f.index != 1, f.date[0])),
    "time goes back at row 1": lambda f: f.iloc[[1, 0, 2, 3, 4, 5]],
    r"irregular step at row 3 \(2024-01-01 02:00:00 to 2024-01-01 04:00:00\)": lambda f: f.drop(index=3),
    "has only 2 rows": lambda f: f.head(2),
    "timestamps and at least one series": lambda f: f[["date"]],
}


@pytest.mark.parametrize("message", BAD_FRAMES)
def test_bad_frames_are_refused_with_the_place(message):
    with pytest.raises(ValueError, match=message):
        Panel.from_wide(BAD_FRAMES[message](wide()))


def test_bad_long_frames_name_the_column_or_series():
    with pytest.raises(ValueError, match="missing: ds"):
        Panel.from_long(long_of(wide()).drop(columns="ds"))
    frame = pd.concat([long_of(wide()), long_of(wide()).assign(unique_id="b", y=np.nan)])
    with pytest.raises(ValueError, match="series 'b': missing value at row 0"):
        Panel.from_long(frame)
    with pytest.raises(ValueError, match="occurs twice"):
        Panel.from_long(pd.concat([long_of(wide()), long_of(wide()).head(1)]))


def test_calendar_steps_are_regular_though_their_days_differ():
    frame = wide(24).assign(date=pd.date_range("2022-01-31", periods=24, freq="ME"))
    panel = Panel.from_wide(frame)
    assert list(panel.future_index(0, 2)) == [pd.Timestamp("2024-01-31"), pd.Timestamp("2024-02-29")]


@pytest.mark.parametrize(("name", "content"), [("gone.csv", None), ("empty.csv", ""), ("bytes.parquet", "no parquet")])
def test_files_that_cannot_be_read_are_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        Panel.from_file(tmp_path / name)


def test_dates_whose_order_would_be_a_guess_are_refused():
    frame = wide(4).assign(date=["01/01/2024", "01/02/2024", "01/03/2024", "01/04/2024"])
    with pytest.raises(ValueError, match="row 0: cannot read '01/01/2024' as a date; write 2024-01-31"):
        Panel.from_wide(frame)


@pytest.mark.parametrize(
    ("content", "message"),
    [("2024-01-01,1\n2024-01-02,2\n", "first row holds data"), ("a;b\n1;2\n", "separated by commas")],
)
def test_headers_are_looked_at(tmp_path, content, message):
    (tmp_path / "file.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        Panel.from_file(tmp_path / "file.csv")


def test_arrays_take_counting_for_time():
    panel = Panel.from_array(np.arange(8.0))
    assert panel.names == ("series0",)
    assert list(panel.future_index(0, 2)) == [8, 9]
    with pytest.raises(ValueError, match="as many names"):
        Panel.from_array(np.zeros((8, 2)), names=["a"])
    with pytest.raises(ValueError, match="twice"):
        Panel.from_array(np.random.default_rng(0).random((8, 2)), names=["a", "a"])


def test_splits_by_fraction_and_by_rows():
    assert Split().bounds(100) == (70, 80, 100)
    assert Split().bounds(7587) == (5310, 6070, 7587)
    assert standard_split("ETTh1").bounds(17420) == (8640, 11520, 14400)
    assert standard_split("ETTm2").bounds(69680) == (34560, 46080, 57600)
    assert standard_split("exchange_rate") == standard_split("etthouse") == Split()
    with pytest.raises(ValueError, match="needs 60 rows, the series has 50"):
        Split(rows=(20, 20, 20)).bounds(50)
    with pytest.raises(ValueError, match="fractions"):
        Split(validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="at least one row"):
        Split(rows=(0, 1, 1))


def test_a_window_belongs_to_the_split_that_holds_its_whole_future():
    """Against a loop over every row that a future may start at."""
    panel, length, horizon = make_panel(60, 2), 7, 3
    splits = make_windows(panel, length, horizon)
    train, validation, test = Split().bounds(60)
    scaled = [(v - v[:train].mean()) / v[:train].std() for v in panel.values]
    for part, (low, high) in zip(splits, ((0, train), (train, validation), (validation, test)), strict=True):
        origins = [t for t in range(length, 60) if t >= low and t + horizon <= high]
        expected = np.stack([v[t - length : t + horizon] for v in scaled for t in origins])
        np.testing.assert_allclose(
            torch.cat([part[:].context[:, 0], part[:].future], 1), expected, rtol=1e-5, atol=1e-6
        )


def test_scaling_looks_at_training_rows_only():
    panel = make_panel(100)
    before = make_windows(panel, 8, 2).train.scaler
    values = tuple(np.where(np.arange(100) < 70, v, 1e6 * np.arange(100)) for v in panel.values)
    assert make_windows(Panel(panel.names, values, panel.index), 8, 2).train.scaler == before


def test_windows_are_views_until_a_batch_is_gathered():
    train = make_windows(make_panel(200), 24, 6).train
    assert train.flat.numel() == 400  # the data once, not once a window
    batch = train[[3, 0, 5]]
    assert batch.context.shape == (3, 1, 24)
    assert batch.future.shape == (3, 6)
    torch.testing.assert_close(batch.context[1], train[:1].context[0])
    sizes = [len(part.future) for part in train.batches(100)]
    assert sum(sizes) == len(train)
    assert sizes[-1] < 100
    assert len(train.at_most(10)) <= 10
    assert set(train.at_most(10).series.tolist()) == {0, 1}


def test_windows_know_their_timestamps():
    panel = make_panel(100)
    test = make_windows(panel, 8, 3).test
    first = Split().bounds(100).validation
    for position, series in ((0, 0), (len(test) // 2, 1)):
        assert int(test.series[position]) == series
        assert (test.timestamps(position) == panel.index[series][first : first + 3]).all()
    latest = latest_windows(panel, 8, 3, test.scaler)
    assert list(latest.timestamps(1)) == list(pd.date_range("2024-01-01", periods=103, freq="D")[100:])
    mean, deviation = latest.scale()
    np.testing.assert_allclose((mean + deviation * latest[:].context[:, 0])[1], panel.values[1][-8:], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"context_length": 1}, "context needs at least 2"),
        ({"horizon": 20}, "series 's0' is too short: its validation rows"),
        ({"context_length": 95}, "series 's0' is too short: its training rows"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_windows(make_panel(100), **({"context_length": 8, "horizon": 3} | change))


def test_a_series_constant_in_training_is_refused():
    values = np.random.default_rng(0).random((100, 2))
    values[:70, 1] = 3.5
    with pytest.raises(ValueError, match=r"series 'b' is constant \(3.5\) on its 70 training rows"):
        make_windows(Panel.from_array(values, names=["a", "b"]), 8, 2)


@pytest.mark.parametrize("scale", [1e-13, 1e12])
def test_no_unit_of_the_data_makes_a_series_constant(scale):
    values = scale * np.random.default_rng(0).normal(size=(100, 1))
    train = make_windows(Panel.from_array(values), 8, 2).train
    assert float(train.flat[:70].std(correction=0)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("row", [85, 97])
def test_a_fill_value_outside_the_training_rows_is_refused(row):
    values = np.random.default_rng(0).random((100, 2))
    values[row, 1] = 9.97e36
    with pytest.raises(ValueError, match=rf"series 'b': 9.97e\+36 at row {row} .* fill it or cut it"):
        make_windows(Panel.from_array(values, names=["a", "b"]), 8, 2)


def test_series_are_called_what_the_file_calls_them(tmp_path):
    rows = [f"{name},{day},{day}" for name in ("NA", "null", "050") for day in range(40)]
    (tmp_path / "long.csv").write_text("\n".join(["unique_id,ds,y", *rows]))
    assert Panel.from_file(tmp_path / "long.csv").names == ("NA", "null", "050")
    (tmp_path / "long.csv").write_text("\n".join(["unique_id,ds,y", *rows, ",40,1"]))
    with pytest.raises(ValueError, match="column 'unique_id' is empty at row 120"):
        Panel.from_file(tmp_path / "long.csv")


def test_no_rows_cannot_be_taken():
    windows = make_windows(make_panel(100), 8, 2).test
    with pytest.raises(ValueError, match="at least 1 row or window is to be taken, not 0"):
        windows.at_most(0)


def test_new_data_must_bring_series_the_scaler_knows():
    scaler = Scaler.fit(make_panel(100, 1), Split())
    with pytest.raises(ValueError, match="series 's1' was not among the training series"):
        latest_windows(make_panel(100, 2), 8, 3, scaler)
    with pytest.raises(ValueError, match="series 's0' has 100 rows, fewer than the context of 101"):
        latest_windows(make_panel(100, 1), 101, 3, scaler)


@pytest.mark.parametrize(
    ("freq", "season"), [("h", 24), ("15min", 96), ("D", 7), ("W", 52), ("MS", 12), ("QS", 4), ("YS", None)]
)
def test_seasons(freq, season):
    assert season_length(pd.date_range("2020-01-01", periods=50, freq=freq)) == season
    assert season_length(pd.RangeIndex(50)) is None


def test_the_demo_is_four_years_of_days():
    panel = seattle_weather()
    assert panel.names == ("temp_max", "temp_min", "wind")
    assert len(panel.values[0]) == 1461


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project")
@pytest.mark.parametrize(
    ("name", "shape", "test_windows"),
    [("ETTh1", (17420, 7), 19495), ("exchange_rate", (7588, 8), 11376), ("national_illness", (966, 7), 1190)],
)
def test_real_files_follow_the_long_horizon_protocol(name, shape, test_windows):
    panel = Panel.from_file(SHARED / f"{name}.csv")
    assert (len(panel.values[0]), len(panel)) == shape
    context, horizon = (104, 24) if name == "national_illness" else (336, 96)
    windows = make_windows(panel, context, horizon, standard_split(name))
    assert len(windows.test) == test_windows
    train = standard_split(name).bounds(shape[0]).train
    mean, deviation = windows.test.scale()
    assert float(mean[-1]) == pytest.approx(panel.values[-1][:train].mean())
    assert float(deviation[-1]) == pytest.approx(panel.values[-1][:train].std())


def test_a_path_of_contexts_is_cut_from_the_same_rows(panel):
    path = make_windows(panel, 24, 6, path=3, stride=5)
    plain = make_windows(panel, 24, 6)
    for ours, theirs in zip(path, plain, strict=True):
        count = len(ours)
        index = torch.arange(count)
        batch = ours[index]
        assert batch.context.shape == (count, 3, 24)
        rows = ours.flat.unfold(0, 24 + 10 + 6, 1)[ours.start]
        for step in range(3):
            torch.testing.assert_close(batch.context[:, step], rows[:, 5 * step : 5 * step + 24])
        torch.testing.assert_close(batch.future, rows[:, 34:])
        last = theirs[torch.arange(len(theirs))]
        assert (batch.context[-1, -1] == last.context[-1, 0]).all()  # the current context is the plain one
        assert (batch.future[-1] == last.future[-1]).all()
        assert ours.timestamps(count - 1).equals(theirs.timestamps(len(theirs) - 1))
    latest = latest_windows(panel, 24, 6, plain.test.scaler, path=3, stride=5)
    torch.testing.assert_close(
        latest[:].context[:, -1], latest_windows(panel, 24, 6, plain.test.scaler)[:].context[:, 0]
    )
    assert latest[:].future.shape == (2, 0)
    for wrong in ({"path": 0}, {"path": 2, "stride": 0}):
        with pytest.raises(ValueError, match="a path has at least 1 context window"):
            make_windows(panel, 24, 6, **wrong)


def test_series_are_selected_by_name(panel):
    chosen = panel.select("s1")
    assert chosen.names == ("s1",)
    assert (chosen.values[0] == panel.values[1]).all()
    with pytest.raises(ValueError, match="there is no series 's9'; the panel holds s0, s1"):
        panel.select("s9")
