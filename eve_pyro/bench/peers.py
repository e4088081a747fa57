"""Peers from neuralforecast, trained by a Python of their own and scored here."""

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from eve_pyro.bench.protocols import Protocol, model_scores, validation_crps
from eve_pyro.bench.rivals import no_units, observe
from eve_pyro.config import Config
from eve_pyro.data import Panel, Splits, Windows
from eve_pyro.runs import split_of

PEERS = ("patchtst", "nhits")  # both with Student's t for a head
SCRIPT = Path(__file__).with_name("peer_script.py")


class Recorded(nn.Module):
    """Forecasts that were made elsewhere, as a model that finds a window's by its context.

    ``parameters_of_t`` (3, N, H) are the degrees of freedom, locations and scales of N ``windows``; equal contexts have
    equal forecasts. Raises KeyError for a context that is none of theirs.
    """

    def __init__(self, parameters_of_t: Tensor, windows: Windows) -> None:
        super().__init__()
        self.parameters_of_t = parameters_of_t
        contexts = (context for batch, _ in windows.batches(1024) for context in batch)
        self.row = {_key(context): row for row, context in enumerate(contexts)}

    def forward(self, context: Tensor, future: Tensor | None = None) -> Tensor:
        """Run the program, observing ``future`` (B, H) if given."""
        rows = [self.row[_key(window)] for window in context]
        df, loc, scale = self.parameters_of_t[:, rows, None]
        return observe(dist.StudentT(df, loc, scale, validate_args=False).to_event(1), future)


def _key(context: Tensor) -> bytes:
    return context.numpy().tobytes()


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


def check_lengths(name: str, panel: Panel) -> None:
    """Raise ValueError for series of different lengths, which a peer takes for one array."""
    if len({len(values) for values in panel.values}) > 1:
        raise ValueError(f"the peer {name!r} needs series of one length")


def peer_row(
    name: str, python: Path, config: Config, windows: Splits, protocol: Protocol, num_draws: int
) -> dict[str, Any]:
    """Train a peer on as many windows as the others, at the rate of ``config``, and score its last step like theirs.

    Its values are independent given the context, as a twin's are. ``seconds`` are of training and forecasting. Raises
    ValueError as ``peer_forecast`` does.
    """
    found, training = peer_forecast(name, python, config, windows), config.training
    unseen = torch.from_numpy(np.stack([found[key] for key in ("df", "loc", "scale")]))  # (3, series, windows, H)
    validation, test = windows.validation, windows.test
    each = [len(part) // len(part.panel) for part in (validation, test)]  # between them are futures that lie in both
    known = Recorded(unseen[:, :, : each[0]].flatten(1, 2), validation)
    val_crps = validation_crps(known, no_units, validation, training.validation_windows)
    model = Recorded(unseen[:, :, -each[1] :].flatten(1, 2), test)
    scores = model_scores(model, no_units, test, protocol, num_draws, training.seed, training.progress)
    took = {key: round(found[key].item(), 1) for key in ("seconds", "cpu_seconds")}
    return {**scores, "val_crps": val_crps, "epoch": training.epochs, **took, "parameters": found["parameters"].item()}


def peer_forecast(name: str, python: Path, config: Config, windows: Splits) -> dict[str, np.ndarray]:
    """Train a peer by ``python`` and return its forecasts of all rows that it has not seen, as ``peer_script`` does.

    Raises ValueError for series of different lengths, and where ``python`` fails, with what it said last.
    """
    panel, training = windows.train.panel, config.training
    check_lengths(name, panel)
    bounds, horizon = split_of(config).bounds(len(panel.values[0])), config.data.horizon
    job = {
        "model": name, "horizon": horizon, "context": config.data.context_length,
        "steps": training.steps(len(windows.train)), "batch_size": training.batch_size, "seed": training.seed,
        "learning_rate": training.learning_rate, "unseen": bounds.test - bounds.train,
    }  # fmt: skip
    values = windows.train.flat.reshape(len(panel), -1)[:, : bounds.test].numpy()
    found = _run(python, name, job, values)
    shape = (len(panel), bounds.test - bounds.train - horizon + 1, horizon)
    if found["loc"].shape != shape:
        raise ValueError(f"the peer {name!r} made forecasts of shape {found['loc'].shape}, not {shape}")
    return found


def _run(python: Path, name: str, job: dict[str, Any], values: np.ndarray) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as made:
        folder = Path(made)
        np.save(folder / "values.npy", values)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [python.absolute(), SCRIPT, folder]  # not resolved: a link is what makes it a virtual environment
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise ValueError(f"the peer {name!r} failed under {python}, saying: {said[-1]}")
        with np.load(folder / "forecast.npz") as found:
            return dict(found)
