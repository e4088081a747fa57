"""Selective prediction and shift detection on numbers worked by hand, and signals against closed forms."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, make_model, shaken

from eve_pyro.data import latest_windows
from eve_pyro.diagnostics.risk import (
    AFTER,
    BEFORE,
    ERRORS,
    auroc,
    disagreement,
    inject,
    risk_coverage,
    risk_table,
    shift_detection,
    window_signals,
)
from eve_pyro.guides import Conjugate, Flow
from eve_pyro.infer.predictive import predict
from eve_pyro.infer.scores import window_scores
from eve_pyro.infer.units import unit_table


def pair(guide="context", **options):
    model = shaken(make_model(**options), 0.1)
    return model, shaken({**GUIDES, "flow": Flow, "conjugate": Conjugate}[guide](model), 0.1)


def test_a_curve_by_hand():
    """Kept in the order 1, 3, 2, 0: errors 2, 1, 6, 3."""
    curve = risk_coverage(torch.tensor([3.0, 2.0, 6.0, 1.0]), np.array([0.9, 0.1, 0.8, 0.2]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([2.0, 1.5, 3.0, 3.0])
    assert curve.aurc == pytest.approx(9.5 / 4)
    assert curve.oracle == pytest.approx((1 + 1.5 + 2 + 3) / 4)
    assert curve.random == 3.0
    assert curve.excess == pytest.approx(2.0 / 4)
    assert curve.gain == pytest.approx(2.5 / 4.5)


def test_ties_are_kept_in_every_order_alike():
    error, signal = np.array([4.0, 1.0, 2.0, 7.0, 3.0]), np.array([2.0, 1.0, 2.0, 2.0, 0.5])
    orders = [order for order in itertools.permutations(range(5)) if (np.diff(signal[list(order)]) >= 0).all()]
    curves = [np.cumsum(error[list(order)]) / np.arange(1, 6) for order in orders]
    assert len(orders) == 6
    assert risk_coverage(error, signal).risk == pytest.approx(np.mean(curves, 0))
    constant = risk_coverage(error, np.ones(5))
    assert constant.risk == pytest.approx(np.full(5, error.mean()))
    assert constant.gain == pytest.approx(0.0)
    assert math.isnan(risk_coverage(np.ones(3), np.arange(3)).gain)


def test_rivals_in_a_table_the_best_first():
    error = torch.tensor([1.0, 2.0, 3.0, 4.0])
    table = risk_table({"error": -error, "twin": np.array([1, 3, 2, 4]), "eve": error**3, "flat": np.ones(4)}, error)
    assert table["signal"].tolist() == ["eve", "twin", "flat", "error"]
    assert table["spearman"].tolist() == pytest.approx([1.0, 0.8, math.nan, -1.0], nan_ok=True)
    assert table["excess_aurc"][0] == 0.0
    assert table["gain"].tolist()[::2] == pytest.approx([1.0, 0.0])
    assert table["aurc"].tolist() == pytest.approx([1.75, (1 + 2 + 2 + 2.5) / 4, 2.5, (4 + 3.5 + 3 + 2.5) / 4])


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 6, 23) + 1.0, rng.integers(0, 6, 17)
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert auroc(above, torch.tensor(below)) == pytest.approx(np.mean(pairs))
    assert auroc([2.0, 3.0], [0.0, 1.0, 1.5]) == 1.0
    assert auroc([1.0], [1.0]) == 0.5


@pytest.mark.parametrize(("guide", "readout"), [("context", "factor"), ("future_aware", "factor"), ("delta", "normal")])
def test_signals_of_closed_forms(windows, guide, readout):
    model, guide = pair(guide, readout=readout, prior="contextual", latent_dim=2)
    test = windows.test.every(7)
    table = window_signals(model, guide, test, batch_size=5)
    joint = predict(model.eval(), guide.eval(), test[:].context).joint
    assert table["scale"].to_numpy() == pytest.approx(joint.stddev.mean(-1)[:, 0].numpy(), rel=1e-5)
    mean = joint.sample((20_000,)).mean(-1)[:, :, 0]
    assert table["path_spread"].to_numpy() == pytest.approx(mean.std(0).numpy(), rel=0.03)
    figures = unit_table(model, guide, test).sum(numeric_only=True)
    assert table["kl_after"].mean() == pytest.approx(figures["kl"], rel=1e-4)
    assert table["energy_after"].mean() == pytest.approx(figures["energy"], rel=1e-4)
    scores = window_scores(model, guide, test)
    assert table["crps"].to_numpy() == pytest.approx(scores["crps"].numpy(), rel=1e-5)
    assert len(table) == len(test)


def test_a_divergence_before_the_future_needs_a_guide_without_it(windows):
    test = windows.test.every(7)
    context = window_signals(*pair("context"), test)
    assert list(context) == [*BEFORE, *AFTER[:2], *ERRORS]
    assert context["kl_before"].to_numpy() == pytest.approx(context["kl_after"].to_numpy(), rel=1e-5)
    for guide in ("future_aware", "conjugate", "flow"):
        assert list(window_signals(*pair(guide), test)) == [*BEFORE[:2], *AFTER[:2], *ERRORS]


def test_draws_serve_where_no_closed_form_does(windows):
    table = window_signals(*pair("context", readout="student_t"), windows.test.every(7), num_draws=50)
    assert (table[["scale", "path_spread"]] > 0).all(axis=None)


def plain(observe=True, spread=0.5):
    """A global level b and two units, as plain functions: y = b + the units' sum + noise."""

    def program(context, future=None):
        b = pyro.sample("b", dist.Normal(1.0 if observe else 2.0, 0.2))
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 2, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if observe else dist.Normal(1.0, spread))
            if observe:
                y = None if future is None else future.unsqueeze(-2)
                loc = (b + z.sum(-1, keepdim=True)).unsqueeze(-1)
                pyro.sample("y", dist.Normal(loc.expand(*loc.shape[:-1], HORIZON), 0.3).to_event(1), obs=y)

    return program


def test_plain_functions_have_signals_too(windows):
    table = window_signals(plain(), plain(observe=False), windows.test.every(40), num_draws=1500)
    kl = 0.5 * 25 + 2 * (0.5 * (0.25 + 1 - 1) - math.log(0.5))
    assert table["kl_before"].to_numpy() == pytest.approx(np.full(len(table), kl), rel=1e-5)
    assert table["energy_after"].to_numpy() == pytest.approx(np.full(len(table), 25 + 2.0), rel=1e-5)
    common = 0.04 + 2 * 0.25
    assert table["scale"].to_numpy() == pytest.approx(np.full(len(table), math.sqrt(common + 0.09)), rel=0.05)
    expected = math.sqrt(common + 0.09 / HORIZON)
    assert table["path_spread"].to_numpy() == pytest.approx(np.full(len(table), expected), rel=0.05)

    def flat(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            y = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(torch.zeros(len(context), 1, HORIZON), 0.3).to_event(1), obs=y)

    twin = window_signals(flat, lambda context, future=None: None, windows.test.every(7))
    assert list(twin) == ["scale", "path_spread", *ERRORS]
    assert twin["path_spread"].to_numpy() == pytest.approx(np.full(len(twin), 0.3 / math.sqrt(HORIZON)))


def test_members_disagree_by_the_deviation_of_their_means(windows):
    pairs = [pair(), pair(), pair()]
    test = windows.test.every(7)
    means = torch.stack([predict(m.eval(), g.eval(), test[:].context).components.loc[0] for m, g in pairs])
    torch.testing.assert_close(disagreement(pairs, test, batch_size=4), means.std(0).mean(-1))
    assert disagreement([pairs[0]] * 2, test).abs().max() == 0.0


def test_shifts_by_hand(windows):
    test = windows.test.every(9)
    context, future = test[:]
    whole = torch.cat([context[:, 0], future], -1)
    half = CONTEXT // 2

    def shifted(*args, **kwargs):
        rows = inject(test, *args, **kwargs)
        assert torch.equal(torch.cat([b.context[:, 0] for b in rows.batches(3)]), rows[:].context[:, 0])
        return torch.cat([rows[:].context[:, 0], rows[:].future], -1)

    level, amplitude, late = shifted("level", 2.0), shifted("amplitude", 0.5), shifted("phase", 3, onset=1.0)
    torch.testing.assert_close(level[:, :half], whole[:, :half])
    torch.testing.assert_close(level[:, half:], whole[:, half:] + 2.0)
    mean = context.mean(-1)
    torch.testing.assert_close(amplitude[:, half:] - mean, 1.5 * (whole[:, half:] - mean))
    torch.testing.assert_close(late[:, :CONTEXT], whole[:, :CONTEXT])
    torch.testing.assert_close(late[:, CONTEXT:], whole[:, CONTEXT - 3 : -3])
    noise = shifted("noise", 0.7, onset=0.0) - whole
    assert float(noise.std()) == pytest.approx(0.7, rel=0.1)
    assert torch.equal(shifted("noise", 0.7, onset=0.0) - whole, noise)
    assert not torch.equal(shifted("noise", 0.7, onset=0.0, seed=1) - whole, noise)
    torch.testing.assert_close(shifted("phase", 0), whole)


def test_a_model_whose_scale_is_the_contexts_sees_an_amplitude_and_not_a_late_level(windows):
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            y = None if future is None else future.unsqueeze(-2)
            loc = context.mean(-1, keepdim=True).expand(len(context), 1, HORIZON)
            pyro.sample("y", dist.Normal(loc, context.std(-1, keepdim=True)).to_event(1), obs=y)

    def guide(context, future=None):
        return None

    shifts = {"amplitude": 1.0, "level": 4.0}
    table = shift_detection(model, guide, windows.test.every(5), shifts).set_index(["kind", "signal"])
    assert list(table) == ["size", "when", "auroc"]
    assert table.loc[("amplitude", "scale"), "auroc"] > 0.95
    late = shift_detection(model, guide, windows.test.every(5), {"level": 4.0}, onset=1.0).set_index("signal")
    assert late["when"].to_dict() == {"scale": "before", "path_spread": "before", "joint_log_score": "after"}
    assert late.loc["scale", "auroc"] == late.loc["path_spread", "auroc"] == 0.5
    assert late.loc["joint_log_score", "auroc"] > 0.95


def test_bad_risks_are_refused(windows):
    with pytest.raises(ValueError, match=r"signal 'eve' must be 3 finite numbers.*shape \(2,\)"):
        risk_table({"eve": [1.0, 2.0]}, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"the error must be one finite number a window.*1 not finite"):
        risk_coverage(pd.Series([1.0, math.inf]), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"shifted windows must be one finite number a window, not of shape \(0,\)"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="no windows"):
        window_signals(*pair(), windows.test.select([]))
    with pytest.raises(ValueError, match="no future yet"):
        window_signals(*pair(), latest_windows(windows.test.panel, CONTEXT, HORIZON, windows.test.scaler))
    with pytest.raises(ValueError, match="at least 2 members"):
        disagreement([pair()], windows.test)
    with pytest.raises(ValueError, match=r"one of phase, amplitude, level, noise .*'trend'"):
        inject(windows.test, "trend", 1.0)
    with pytest.raises(ValueError, match=r"onset in \[0, 1\], not 'level' at 2"):
        inject(windows.test, "level", 1.0, onset=2)
    for size in (1.5, CONTEXT):
        with pytest.raises(ValueError, match="0 to 12 whole steps"):
            inject(windows.test, "phase", size)
