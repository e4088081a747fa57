"""Peers from neuralforecast, trained by a Python of their own and scored here."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eve_pyro.bench.protocols import Protocol, crps_probts, scored_windows
from eve_pyro.bench.rivals import LEVELS
from eve_pyro.config import Config
from eve_pyro.data import Splits, Windows
from eve_pyro.distributions.quantiles import Quantiles
from eve_pyro.infer.predictive import Predictive
from eve_pyro.infer.scores import marginal_scores, path_scores
from eve_pyro.runs import split_of

PEERS = ("patchtst", "nhits")  # both with Student's t for a head
SCRIPT = Path(__file__).with_name("peer_script.py")
SAMPLES = 1000  # a value, behind a peer's quantiles


class PeerForecast(NamedTuple):
    """Quantiles (N, H, Q) of all test windows, scaled, and what they took."""

    quantiles: Tensor
    seconds: float
    cpu_seconds: float
    parameters: int


def check_python(python: Path) -> None:
    """Raise ValueError unless ``python`` runs and has neuralforecast."""
    finds = "import sys, importlib.util as u; sys.exit(u.find_spec('neuralforecast') is None)"
    try:
        has_none = subprocess.run([python.absolute(), "-c", finds], capture_output=True, check=False).returncode
    except OSError as error:
        raise ValueError(
            f"cannot run {python} ({error.strerror}): name the path of a Python with --peer-python"
        ) from None
    if has_none:
        raise ValueError(f"{python} has no neuralforecast: name one that has it by --peer-python")


def peer_row(name: str, python: Path, config: Config, windows: Splits, protocol: Protocol) -> dict[str, Any]:
    """Train a peer and score its quantiles; joint scores, which quantiles have none of, and ``val_crps`` are NaN.

    It takes as many steps of as many windows as the others' schedule has, fewer where its own validation stops it, and
    its authors' learning rate. ``seconds`` are of training and forecasting.
    """
    done = peer_forecast(name, python, config, windows)
    every = torch.arange(len(windows.test))
    chosen = scored_windows(windows.test, protocol)
    rows = every[torch.isin(windows.test.start, chosen.start)]
    scores = quantile_scores(done.quantiles[rows], chosen)
    if protocol == "probts":
        order = iter(done.quantiles[rows].split(256))
        scores["crps_probts"] = crps_probts(chosen, lambda _: next(order).movedim(-1, 0), batch_size=256)
    took = {"seconds": round(done.seconds, 1), "cpu_seconds": round(done.cpu_seconds, 1)}
    unknown = {"joint_log_score": float("nan"), "val_crps": float("nan")}
    return {**scores, **unknown, **took, "parameters": done.parameters}


def quantile_scores(quantiles: Tensor, windows: Windows, batch_size: int = 256) -> dict[str, float]:
    """Return the mean scores of quantiles (N, H, Q) of ``windows``, as ``evaluate`` scores a model of quantiles."""
    totals: dict[str, float] = {}
    for part, (_, future) in zip(quantiles.split(batch_size), windows.batches(batch_size), strict=True):
        fn = Quantiles(part[:, None], LEVELS)
        prediction = Predictive(part[None, ..., 0], None, None, fn)
        for key, values in (marginal_scores(prediction, future) | path_scores(prediction, future)).items():
            totals[key] = totals.get(key, 0.0) + float(values.double().sum())
    return {key: total / len(windows) for key, total in totals.items()}


def peer_forecast(name: str, python: Path, config: Config, windows: Splits) -> PeerForecast:
    """Train a peer by ``python`` and return its forecast of all test windows.

    Raises ValueError for series of different lengths, and where ``python`` fails, with what it said last.
    """
    panel, training = windows.train.panel, config.training
    if len({len(values) for values in panel.values}) > 1:
        raise ValueError(f"the peer {name!r} needs series of one length")
    bounds = split_of(config).bounds(len(panel.values[0]))
    job = {
        "model": name, "horizon": config.data.horizon, "context": config.data.context_length, "levels": LEVELS,
        "steps": training.steps(len(windows.train)), "batch_size": training.batch_size, "seed": training.seed,
        "draws": SAMPLES, "val_size": bounds.validation - bounds.train, "test_size": bounds.test - bounds.validation,
    }  # fmt: skip
    values = windows.train.flat.reshape(len(panel), -1)[:, : bounds.test].numpy()
    found = _run(python, name, job, lambda folder: np.save(folder / "values.npy", values))
    if found["quantiles"].shape[0] * found["quantiles"].shape[1] != len(windows.test):
        raise ValueError(f"the peer {name!r} forecast {found['quantiles'].shape[:2]} windows, not {len(windows.test)}")
    quantiles = torch.from_numpy(found["quantiles"]).flatten(0, 1)
    return PeerForecast(quantiles, *(found[key].item() for key in ("seconds", "cpu_seconds", "parameters")))


def _run(python: Path, name: str, job: dict[str, Any], prepare: Callable[[Path], None]) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [python.absolute(), SCRIPT, folder]  # not resolved: a link is what makes it a virtual environment
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise ValueError(f"the peer {name!r} failed under {python}, saying: {said[-1]}")
        with np.load(folder / "forecast.npz") as found:
            return dict(found)
