"""The published protocols on numbers made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from eve_pyro.bench.protocols import PROBTS_STEP, crps_probts, model_scores, naive_row, scored_windows
from eve_pyro.bench.rivals import LEVELS, no_units, observe
from eve_pyro.data import Panel, make_windows
from eve_pyro.distributions.quantiles import Quantiles

ROWS, CONTEXT, HORIZON = 1000, 4, 2


def stairs(series=2):
    """Series that rise by 1 a row, the second in units a hundred times as large."""
    values = np.arange(ROWS)[:, None] * 100.0 ** np.arange(series)
    frame = pd.DataFrame(values, columns=[f"s{i}" for i in range(series)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=ROWS, freq="D"))
    return Panel.from_wide(frame)


def test_the_long_horizon_protocol_scores_every_window_standardised_by_training_rows():
    test = make_windows(stairs(), CONTEXT, HORIZON).test
    scores = naive_row("repeat_last", scored_windows(test, "longhorizon"), "longhorizon")
    assert len(test) == 2 * (200 - HORIZON + 1)  # test rows 800 to 999: each future whole inside, stride 1
    deviation = np.arange(700).std()  # of the training rows; the same for both series once scaled
    errors = np.array([1.0, 2.0]) / deviation  # repeating the last value misses by one step, then by two
    assert scores["mae"] == pytest.approx(errors.mean(), rel=1e-4)
    assert scores["mse"] == pytest.approx((errors**2).mean(), rel=1e-3)


def test_the_last_partial_batch_counts_as_much_as_any_window():
    values = np.arange(ROWS, dtype=float)
    values[-1] += 1000.0  # the last test window alone sees it
    panel = Panel.from_array(values)
    test = make_windows(panel, CONTEXT, HORIZON).test
    deviation = np.arange(700).std()

    def repeat(context, future=None):
        point = context[:, 0, -1:].expand(-1, HORIZON)
        return observe(Quantiles(point[:, None, :, None].expand(-1, -1, -1, 2), (0.25, 0.75)), future)

    scores = model_scores(repeat, no_units, test, "longhorizon", num_draws=2, seed=0, progress=False)
    windows = 200 - HORIZON + 1
    assert windows % 256 != 0
    assert scores["mae"] == pytest.approx((1.5 + 1000 / 2 / windows) / deviation, rel=1e-4)


def test_probts_scores_one_window_in_96_of_each_series():
    test = make_windows(stairs(), CONTEXT, HORIZON).test
    chosen = scored_windows(test, "probts")
    begins = [chosen.timestamps(i)[0] for i in range(len(chosen))]
    day = pd.Timestamp("2024-01-01")
    assert [(begin - day).days for begin in begins] == [800, 896, 992] * 2
    assert chosen.series.tolist() == [0, 0, 0, 1, 1, 1]
    assert PROBTS_STEP == 96


def test_probts_by_hand():
    """Quantiles that are all c above the truth: 2 * pinball is 2 * (1 - level) * c, over levels c on average."""
    panel = stairs()
    chosen = scored_windows(make_windows(panel, CONTEXT, HORIZON).test, "probts")
    mean, deviation = chosen.scale()
    off = torch.tensor([3.0, 500.0])[chosen.series]  # in the units of each series
    raised = ((mean + deviation * chosen[:].future + off[:, None]) - mean) / deviation
    found = crps_probts(chosen, lambda _: raised.expand(len(LEVELS), -1, -1), batch_size=len(chosen))
    expected = []
    for begin in (800, 896, 992):
        size = sum(begin + h for h in range(HORIZON)) * 101  # |y| of both series
        expected.append(HORIZON * (3.0 + 500.0) / size)
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
    error = {"low": -4.0, "high": 2.0}  # quantiles below .5 are 4 too low, the others 2 too high
    levels = torch.tensor(LEVELS)[:, None, None]
    moved = torch.where(levels < 0.5, error["low"], error["high"])
    truth = mean + deviation * chosen[:].future
    spread = (truth + moved * torch.tensor([1.0, 100.0])[chosen.series][:, None] - mean) / deviation
    pinball = [2 * (level * 4 if level < 0.5 else (1 - level) * 2) for level in LEVELS]
    by_hand = np.mean(
        [HORIZON * 101 * np.mean(pinball) / (101 * sum(b + h for h in range(HORIZON))) for b in (800, 896, 992)]
    )
    assert crps_probts(chosen, lambda _: spread, batch_size=len(chosen)) == pytest.approx(by_hand, rel=1e-4)


def test_batches_leave_probts_as_it_is():
    test = make_windows(stairs(), CONTEXT, HORIZON).test
    chosen = scored_windows(test, "probts")
    whole = crps_probts(chosen, lambda context: context[None, :, -1, -1:].expand(1, -1, HORIZON))
    parts = crps_probts(chosen, lambda context: context[None, :, -1, -1:].expand(1, -1, HORIZON), batch_size=4)
    assert whole == pytest.approx(parts)
    assert naive_row("repeat_last", test, "probts")["crps_probts"] == pytest.approx(whole)


def test_probts_says_that_windows_of_zeros_have_no_score():
    values = 7.3 + np.arange(ROWS) % 5
    values[-150:] = 0.0
    chosen = scored_windows(make_windows(Panel.from_array(values), CONTEXT, HORIZON).test, "probts")
    with pytest.raises(ValueError, match="0 all through 2 of 3 test windows"):
        crps_probts(chosen, lambda context: context[None, :, -1, -1:].expand(1, -1, HORIZON))
