"""What a run folder holds, read and checked, with the data it was trained on."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eve_pyro.builder import Built
from eve_pyro.data import Panel, Splits, Windows
from eve_pyro.infer.forecast import forecast
from eve_pyro.infer.scores import KEYS
from eve_pyro.runs import CENSUS, METRICS, TWIN, Run, load_run, windows_of

HISTORY, UNITS = "history.csv", "units.csv"
LOOKED_AT = 256  # windows
WORK = 2**25  # draws of a latent that one diagnostic may take
COLUMNS = {
    HISTORY: ("epoch", "seconds", "train_loss", "val_loss", "val_crps"),
    CENSUS: ("step", "split", "site", "unit", "kl", "energy", "scale", "low", "high", "beta", "state"),
    UNITS: ("site", "unit", "kl", "energy", "scale", "sampled"),
}
Scores = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Record:
    """A run that is done: pairs, scores and tables as the folder has them, and its windows."""

    run: Run
    data: str
    windows: Splits
    scores: Scores
    seconds: dict[str, float]
    training: dict[str, dict[str, Any]]
    histories: dict[str, pd.DataFrame]
    census: pd.DataFrame
    units: pd.DataFrame

    @property
    def eve(self) -> Built:
        """The model and its guide."""
        return self.run.eve

    @property
    def pairs(self) -> dict[str, Built]:
        """EVE and, if it was trained, its twin."""
        return {"eve": self.run.eve} | ({"twin": self.run.twin} if self.run.twin else {})

    @property
    def volatility(self) -> str | None:
        """The site of the volatility unit, if there is one."""
        layer = self.eve.model.volatility
        return None if layer is None else layer.site

    @property
    def num_latents(self) -> int:
        """How many numbers a window's units are."""
        model = self.eve.model
        return model.num_steps * sum(layer.num_units * layer.latent_dim for layer in model.layers)

    @cached_property
    def test(self) -> Windows:
        """The test windows that are looked at."""
        return spread(self.windows.test, LOOKED_AT)

    @cached_property
    def exact(self) -> bool:
        """Whether forecasts have a closed form."""
        return forecast(self.eve.model, self.eve.guide, self.test.select([0]), 2).exact

    def weighed(self, num_draws: int) -> Windows:
        """Return as many of the test windows as ``num_draws`` draws for each keep affordable."""
        return spread(self.test, max(16, WORK // (num_draws * self.num_latents)))

    def sample(self, windows: Windows, split: str = "test") -> str:
        """Say in words how many windows of a split these are."""
        whole = len(self.windows.test if split == "test" else self.windows.validation)
        return (
            f"{len(windows):,} of {whole:,} {split} windows"
            if len(windows) < whole
            else f"all {whole:,} {split} windows"
        )


def spread(windows: Windows, most: int) -> Windows:
    """Return ``most`` windows, evenly spaced, or all where there are fewer."""
    if len(windows) <= most:
        return windows
    return windows.select(np.linspace(0, len(windows) - 1, most).round().astype(int).tolist())


def read_record(folder: Path, panel: Panel, data: str) -> Record:
    """Read a run that is done; ``panel`` is what it was trained on, and ``data`` what the user calls it.

    Raises ValueError, naming the file, for what is missing, broken or of another version, and for other data.
    """
    run = load_run(folder)
    metrics = _metrics(folder)
    windows = windows_of(panel, run.config)
    if windows.train.scaler != run.scaler or len(windows.test) != metrics["windows"]:
        raise ValueError(f"{folder} was trained on other data than {data}: name the file that it was trained on")
    homes = {"eve": folder} | ({"twin": folder / TWIN} if run.twin else {})
    histories = {name: read_table(home, HISTORY) for name, home in homes.items()}
    tables = read_table(folder, CENSUS), read_table(folder, UNITS)
    return Record(run, data, windows, metrics["test"], metrics["seconds"], metrics["training"], histories, *tables)


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / METRICS
    if not path.is_file():
        raise ValueError(f"{folder} is not done: there is no {METRICS} in it; go on with eve-pyro resume")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    names = ["eve", *(["twin"] if (folder / TWIN).is_dir() else [])]
    wanted = [("windows",), ("seconds", "train_eve"), ("training", "eve", "epoch"), ("training", "eve", "stopped")]
    for keys in [*wanted, *(("test", name, key) for name in names for key in KEYS)]:
        value = found
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{path} is of another version: it has no {'.'.join(keys)}; train the run again")
            value = value[key]
    return dict(found)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read a table of a run; ValueError for one that is missing, broken, empty or of another version."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} is not whole: there is no {name} in it; train the run again")
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # pandas' own and broken text alike
        raise ValueError(f"cannot read {path}: {error}") from None
    for column in COLUMNS[name]:
        if column not in table:
            raise ValueError(f"{path} is of another version: it has no column {column!r}; train the run again")
    if table.empty:
        raise ValueError(f"{path} has no rows; train the run again")
    return table
