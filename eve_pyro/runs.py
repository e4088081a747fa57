"""Run folders: weights in safetensors, everything else in text, read back without pickle."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eve_pyro.builder import Built, build
from eve_pyro.config import Config, from_toml, to_toml
from eve_pyro.data import Panel, Scaler, Split, Splits, Windows, latest_windows, make_windows
from eve_pyro.infer.programs import check_weights

CONFIG, SCALER, WEIGHTS, TWIN = "config.toml", "scaler.json", "weights.safetensors", "twin"
METRICS, CENSUS = "metrics.json", "census.csv"


@dataclass(frozen=True)
class Run:
    """A trained forecaster as it was saved: ready to forecast, its twin beside it where one was trained."""

    folder: Path
    config: Config
    scaler: Scaler
    eve: Built
    twin: Built | None


def claim_folder(folder: str | Path) -> Path:
    """Create an empty run folder; ValueError if something is there already, which is left untouched."""
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} already holds something: choose another --out, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create {folder}: {error.strerror}") from None
    return folder


def free_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def save_setup(folder: Path, config: Config, scaler: Scaler, twin: bool) -> None:
    """Write what a run needs to be taken up again: configuration, scaler, and a folder for its twin if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(to_toml(config), encoding="utf-8")
    write_json(folder / SCALER, asdict(scaler))
    if twin:
        (folder / TWIN).mkdir(exist_ok=True)


def load_setup(folder: Path) -> tuple[Config, Scaler]:
    """Read configuration and scaler; ValueError names the file that is missing or broken."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run: there is no {CONFIG} in it")
    config = from_toml(folder / CONFIG)
    try:
        scaler = Scaler(**json.loads((folder / SCALER).read_text(encoding="utf-8")))
        scaler.check()
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot read {folder / SCALER}: {error}") from None
    return config, scaler


def save_run(folder: str | Path, config: Config, scaler: Scaler, eve: Built, twin: Built | None = None) -> None:
    """Write configuration, scaler and weights into ``folder``."""
    folder = Path(folder)
    save_setup(folder, config, scaler, twin is not None)
    _save_weights(folder / WEIGHTS, eve)
    if twin is not None:
        _save_weights(folder / TWIN / WEIGHTS, twin)


def load_run(folder: str | Path) -> Run:
    """Read a run back; ValueError names the file that is missing, broken, or does not fit the configuration."""
    folder = Path(folder)
    config, scaler = load_setup(folder)
    eve = _load_weights(folder / WEIGHTS, build(config))
    path = folder / TWIN / WEIGHTS
    twin = _load_weights(path, build(config, twin=True)) if path.is_file() else None
    return Run(folder, config, scaler, eve, twin)


def split_of(config: Config) -> Split:
    """Return the split a configuration describes."""
    data = config.data
    return Split(rows=data.rows, validation=data.validation, test=data.test)


def windows_of(panel: Panel, config: Config, scaler: Scaler | None = None) -> Splits:
    """Cut ``panel`` as a configuration describes, scaled by its training rows unless a ``scaler`` is given."""
    data = config.data
    return make_windows(
        panel, data.context_length, data.horizon, split_of(config), scaler, data.path, data.stride
    )  # fmt: skip


def latest_of(panel: Panel, config: Config, scaler: Scaler) -> Windows:
    """Return the windows at the end of ``panel``, as a configuration describes."""
    data = config.data
    return latest_windows(panel, data.context_length, data.horizon, scaler, data.path, data.stride)


def write_json(path: Path, tree: Any) -> None:
    """Write ``tree`` as indented JSON."""
    path.write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _save_weights(path: Path, built: Built) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in built.weights().state_dict().items()}
    save_file(weights, str(path))


def _load_weights(path: Path, built: Built) -> Built:
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}")
    try:
        found = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    check_weights(path, found, built.weights().state_dict())
    lost = [name for name, value in found.items() if not value.isfinite().all()]
    if lost:
        raise ValueError(f"{path} holds values that are not finite ({lost[0]!r}): train the run again")
    built.weights().load_state_dict(found)
    built.weights().eval()
    return built
