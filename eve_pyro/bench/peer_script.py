"""Train a peer of neuralforecast and write its forecasts: run by another Python, which needs no part of this package.

``python peer_script.py FOLDER``: FOLDER holds ``values.npy`` (series, rows), standardised, and ``job.json``; the script
leaves ``forecast.npz`` there: ``df``, ``loc`` and ``scale`` (series, windows, horizon) of the Student's t of every
window of the last ``unseen`` rows, ``seconds`` and ``cpu_seconds`` of training and forecasting, and the number of
``parameters``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SHORT = 104  # rows of context: up to here the patches are those of PatchTST's authors for illness
SMALL = {"hidden_size": 16, "n_heads": 4, "linear_hidden_size": 128, "dropout": 0.3, "fc_dropout": 0.3}


def main(folder: Path) -> None:
    """Do the job in ``folder``."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    frame = _frame(np.load(folder / "values.npy"))
    begin, used = time.monotonic(), time.process_time()
    forecaster = _forecaster(job)
    found = forecaster.cross_validation(df=frame, val_size=0, test_size=job["unseen"], n_windows=None, step_size=1)
    seconds, cpu_seconds = time.monotonic() - begin, time.process_time() - used
    found = found.sort_values(["unique_id", "cutoff", "ds"])
    model = forecaster.models[0]
    shape = (found["unique_id"].nunique(), job["unseen"] - job["horizon"] + 1, job["horizon"])
    np.savez(
        folder / "forecast.npz",
        **{key: found[f"{model}-{key}"].to_numpy(np.float32).reshape(shape) for key in ("df", "loc", "scale")},
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _frame(values: np.ndarray) -> pd.DataFrame:
    """Return the long frame of ``values`` (series, rows), its series named so that they sort as they come."""
    series, rows = values.shape
    names = np.repeat([f"{number:06d}" for number in range(series)], rows)
    return pd.DataFrame({"unique_id": names, "ds": np.tile(np.arange(rows), series), "y": values.ravel()})


def _patchtst(context: int) -> dict[str, Any]:
    """Return PatchTST's options as its authors have them for ETTh and for illness.

    Windows are normalised by the scaler, which knows a parameter of location from one of scale: RevIN would shift the
    degrees of freedom by the last value.
    """
    patches = {"patch_len": 24, "stride": 2} if context <= SHORT else {"patch_len": 16, "stride": 8}
    return {**SMALL, **patches, "revin": False}


def _forecaster(job: dict[str, Any]) -> Any:
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import DistributionLoss
    from neuralforecast.models import NHITS, PatchTST

    kind, options = (NHITS, {}) if job["model"] == "nhits" else (PatchTST, _patchtst(job["context"]))
    model = kind(
        h=job["horizon"],
        input_size=job["context"],
        loss=DistributionLoss("StudentT", quantiles=[0.5], num_samples=1, return_params=True),
        max_steps=job["steps"],
        windows_batch_size=job["batch_size"],
        inference_windows_batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        random_seed=job["seed"],
        scaler_type="standard",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
        **options,
    )
    return NeuralForecast(models=[model], freq=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
