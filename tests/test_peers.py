"""Peers by way of another Python, here this one with a stand-in for the script."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_panel

from eve_pyro.bench import peers
from eve_pyro.bench.accuracy import run_accuracy
from eve_pyro.bench.peers import peer_row
from eve_pyro.bench.plan import Plan
from eve_pyro.bench.protocols import naive_row
from eve_pyro.bench.tables import write_tables
from eve_pyro.config import load_recipe
from eve_pyro.runs import windows_of

SMALL = {"context_length": 24, "horizon": 6, "batch_size": 64, "epochs": 2, "validation": 0.1, "test": 0.4}
REPEAT_LAST = """
import json, sys
import numpy as np
job, values = json.load(open("job.json")), np.load("values.npy")
windows = job["test_size"] - job["horizon"] + 1
begin = values.shape[1] - job["test_size"]
last = np.stack([values[:, begin + i - 1] for i in range(windows)], 1)
quantiles = np.broadcast_to(last[:, :, None, None], (*last.shape, job["horizon"], len(job["levels"])))
assert job["steps"] == 2 * (2 * (values.shape[1] // 2 - 24 - 6 + 1) // 64)
np.savez("forecast.npz", quantiles=quantiles.astype(np.float32), seconds=1.5, cpu_seconds=2.5, parameters=7)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = tmp_path / "script.py"
    path.write_text(REPEAT_LAST)
    monkeypatch.setattr(peers, "SCRIPT", path)
    (tmp_path / "neuralforecast.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


@pytest.mark.parametrize("protocol", ["longhorizon", "probts"])
def test_a_peer_that_repeats_the_last_value_scores_as_that(script, protocol):
    config = load_recipe("factor", SMALL)
    windows = windows_of(make_panel(300, 2), config)
    row = peer_row("nhits", Path(sys.executable), config, windows, protocol)
    expected = naive_row("repeat_last", windows.test, protocol)
    for name in ("mse", "mae", "crps", *(["crps_probts"] if protocol == "probts" else [])):
        assert row[name] == pytest.approx(expected[name], rel=1e-4)
    assert (row["seconds"], row["cpu_seconds"], row["parameters"]) == (1.5, 2.5, 7)
    assert torch.tensor([row["joint_log_score"], row["energy_score"]]).isnan().all()


def test_a_python_that_fails_is_named_with_what_it_said(script):
    config = load_recipe("factor", SMALL)
    windows = windows_of(make_panel(300, 2), config)
    script.write_text("import sys; sys.exit('no module named neuralforecast')")
    with pytest.raises(ValueError, match=r"peer 'nhits' failed under .*python.*: no module named neuralforecast"):
        peer_row("nhits", Path(sys.executable), config, windows, "longhorizon")


def test_peers_are_models_of_the_benchmark_given_a_python(script, tmp_path):
    panel = make_panel(300, 2)
    frame = pd.DataFrame({"date": panel.index[0], **dict(zip(panel.names, panel.values, strict=True))})
    frame.to_csv(tmp_path / "toy.csv", index=False)
    script.write_text(REPEAT_LAST.replace("assert", "#"))
    plan = Plan(tmp_path, ("toy",), ("patchtst",), (0,), (6,), (24,), overrides={"progress": False})
    with pytest.raises(ValueError, match="name a Python that has it by --peer-python"):
        run_accuracy(plan, tmp_path / "out", lambda _: None)
    plan = replace(plan, peer_python=Path(sys.executable))
    rows = run_accuracy(plan, tmp_path / "out", lambda _: None)
    assert list(rows["model"]) == ["patchtst"]
    assert rows["mse"].notna().all()
    assert write_tables(tmp_path / "out") == ["accuracy.csv", "summary.csv", "tables.md"]  # of peers alone, too
