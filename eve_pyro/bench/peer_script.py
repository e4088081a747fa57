"""Train a peer of neuralforecast and write its quantiles: run by another Python, which needs no part of this package.

``python peer_script.py FOLDER``: FOLDER holds ``values.npy`` (series, rows), standardised, and ``job.json``; the script
leaves ``forecast.npz`` there: ``quantiles`` (series, windows, horizon, levels) of every window of the test rows,
``seconds`` and ``cpu_seconds`` of training and forecasting, and the number of ``parameters``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def main(folder: Path) -> None:
    """Do the job in ``folder``."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    frame = _frame(np.load(folder / "values.npy"))
    begin, used = time.monotonic(), time.process_time()
    forecaster = _forecaster(job)
    found = forecaster.cross_validation(
        df=frame, val_size=job["val_size"], test_size=job["test_size"], n_windows=None, step_size=1
    )
    seconds, cpu_seconds = time.monotonic() - begin, time.process_time() - used
    found = found.sort_values(["unique_id", "cutoff", "ds"])
    name = type(forecaster.models[0]).__name__
    columns = [column for column in found if column.startswith(f"{name}-")]  # lo-90, ..., median, ..., hi-90
    series, windows = found["unique_id"].nunique(), job["test_size"] - job["horizon"] + 1
    quantiles = found[columns].to_numpy(np.float32).reshape(series, windows, job["horizon"], len(columns))
    parameters = sum(p.numel() for p in forecaster.models[0].parameters())
    np.savez(
        folder / "forecast.npz", quantiles=np.sort(quantiles, -1), seconds=seconds, cpu_seconds=cpu_seconds,
        parameters=parameters,
    )  # fmt: skip


def _frame(values: np.ndarray) -> pd.DataFrame:
    """Return the long frame of ``values`` (series, rows), its series named so that they sort as they come."""
    series, rows = values.shape
    names = np.repeat([f"{number:06d}" for number in range(series)], rows)
    return pd.DataFrame({"unique_id": names, "ds": np.tile(np.arange(rows), series), "y": values.ravel()})


def _forecaster(job: dict[str, Any]) -> Any:
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import DistributionLoss
    from neuralforecast.models import NHITS, PatchTST

    kind = {"patchtst": PatchTST, "nhits": NHITS}[job["model"]]
    model = kind(
        h=job["horizon"],
        input_size=job["context"],
        loss=DistributionLoss("StudentT", quantiles=job["levels"], num_samples=job["draws"]),
        max_steps=job["steps"],
        val_check_steps=max(1, job["steps"] // 4),
        early_stop_patience_steps=2,
        windows_batch_size=job["batch_size"],
        inference_windows_batch_size=job["batch_size"],
        learning_rate=1e-3 if job["model"] == "nhits" else 1e-4,
        random_seed=job["seed"],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    return NeuralForecast(models=[model], freq=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
