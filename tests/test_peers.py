"""Peers by way of another Python, here this one with a stand-in for the script."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scoringrules as sr
from conftest import make_panel
from scipy import stats

from eve_pyro.bench import peers
from eve_pyro.bench.accuracy import run_accuracy
from eve_pyro.bench.peers import peer_row
from eve_pyro.bench.plan import Plan
from eve_pyro.bench.protocols import scored_windows
from eve_pyro.bench.tables import write_tables
from eve_pyro.config import load_recipe
from eve_pyro.runs import windows_of

SMALL = {"context_length": 24, "horizon": 6, "batch_size": 64, "epochs": 2, "validation": 0.1, "test": 0.4}
T_AROUND_THE_LAST = """
import json, sys
import numpy as np
job, values = json.load(open("job.json")), np.load("values.npy")
windows = job["unseen"] - job["horizon"] + 1
begin = values.shape[1] - job["unseen"]
last = np.stack([values[:, begin + i - 1] for i in range(windows)], 1)
loc = np.broadcast_to(last[:, :, None], (*last.shape, job["horizon"])).astype(np.float32)
df, scale = np.full_like(loc, 5.0), np.full_like(loc, 100 * job["learning_rate"])
assert job["steps"] == 2 * (2 * (values.shape[1] // 2 - 24 - 6 + 1) // 64)
np.savez("forecast.npz", df=df, loc=loc, scale=scale, seconds=1.52, cpu_seconds=2.5, parameters=7)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = tmp_path / "script.py"
    path.write_text(T_AROUND_THE_LAST)
    monkeypatch.setattr(peers, "SCRIPT", path)
    (tmp_path / "neuralforecast.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


@pytest.mark.parametrize("protocol", ["longhorizon", "probts"])
def test_a_peer_is_scored_by_its_own_students_t(script, protocol):
    config = load_recipe("factor", SMALL)
    windows = windows_of(make_panel(300, 2), config)
    row = peer_row("nhits", Path(sys.executable), config, windows, protocol, 50)
    last, future = last_and_future(scored_windows(windows.test, protocol))
    scale = 100 * config.training.learning_rate
    assert row["mse"] == pytest.approx(np.square(future - last).mean(), rel=1e-4)
    assert row["crps"] == pytest.approx(sr.crps_t(future, 5.0, last, scale).mean(), rel=1e-4)
    log_score = -stats.t.logpdf(future, 5.0, last, scale).mean()
    assert (row["log_score"], row["joint_log_score"]) == pytest.approx((log_score, log_score), rel=1e-4)
    covered = abs(stats.t.cdf(future, 5.0, last, scale) - 0.5) <= 0.45
    assert row["coverage_90"] == pytest.approx(covered.mean(), abs=1e-6)
    last, future = last_and_future(windows.validation)  # the first of what it has not seen
    assert row["val_crps"] == pytest.approx(sr.crps_t(future, 5.0, last, scale).mean(), rel=1e-4)
    assert ("crps_probts" in row) == (protocol == "probts")
    assert (row["seconds"], row["cpu_seconds"], row["parameters"], row["epoch"]) == (1.5, 2.5, 7, 2)


def last_and_future(windows):
    context, future = windows[:]
    return context[:, 0, -1:].double().numpy(), future.double().numpy()


def test_forecasts_of_other_windows_are_refused(script):
    config = load_recipe("factor", SMALL)
    windows = windows_of(make_panel(300, 2), config)
    script.write_text(T_AROUND_THE_LAST.replace('job["unseen"] - job["horizon"] + 1', 'job["unseen"]'))
    with pytest.raises(ValueError, match=r"peer 'nhits' made forecasts of shape \(2, 150, 6\), not \(2, 145, 6\)"):
        peer_row("nhits", Path(sys.executable), config, windows, "longhorizon", 2)


def test_a_python_that_fails_is_named_with_what_it_said(script):
    config = load_recipe("factor", SMALL)
    windows = windows_of(make_panel(300, 2), config)
    script.write_text("import sys; sys.exit('no module named neuralforecast')")
    with pytest.raises(ValueError, match=r"peer 'nhits' failed under .*python.*: no module named neuralforecast"):
        peer_row("nhits", Path(sys.executable), config, windows, "longhorizon", 2)


def test_peers_are_models_of_the_benchmark_given_a_python(script, tmp_path):
    panel = make_panel(300, 2)
    frame = pd.DataFrame({"date": panel.index[0], **dict(zip(panel.names, panel.values, strict=True))})
    frame.to_csv(tmp_path / "toy.csv", index=False)
    script.write_text(T_AROUND_THE_LAST.replace("assert", "#"))
    plan = Plan(tmp_path, ("toy",), ("patchtst",), (0,), (6,), (24,), overrides={"progress": False})
    with pytest.raises(ValueError, match="name a Python that has it by --peer-python"):
        run_accuracy(plan, tmp_path / "out", lambda _: None)
    plan = replace(plan, peer_python=Path(sys.executable))
    rows = run_accuracy(plan, tmp_path / "out", lambda _: None)
    assert list(rows["model"]) == ["patchtst"]
    assert rows["mse"].notna().all()
    assert write_tables(tmp_path / "out") == ["accuracy.csv", "summary.csv", "tables.md"]  # of peers alone, too


def test_series_of_different_lengths_are_refused_before_others_are_trained(script, tmp_path):
    for name, values in (("a", range(300)), ("b", range(280))):
        index = pd.date_range("2026-01-01", periods=len(values), freq="h")
        frame = pd.DataFrame({"unique_id": name, "ds": index, "y": np.sin(values)})
        frame.to_csv(tmp_path / "toy.csv", mode="a", header=name == "a", index=False)
    plan = Plan(tmp_path, ("toy",), ("repeat_last", "nhits"), (0,), (6,), (24,), peer_python=Path(sys.executable))
    with pytest.raises(ValueError, match="the peer 'nhits' needs series of one length"):
        run_accuracy(plan, tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out" / "accuracy.csv").exists()
