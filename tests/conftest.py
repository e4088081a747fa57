"""Small data and small models that the tests share."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from eve_pyro import cli
from eve_pyro.data import Panel, Splits, make_windows
from eve_pyro.guides import ContextMeanField, FutureAware, PointGuide
from eve_pyro.likelihoods import FactorReadout, NormalReadout, StudentTReadout
from eve_pyro.models import Forecaster
from eve_pyro.nets import LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import ContextualPrior, LearnedPrior, StandardPrior

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
B, CONTEXT, HORIZON, UNITS = 4, 24, 6, 5
GUIDES = {"future_aware": FutureAware, "context": ContextMeanField, "delta": PointGuide}
READOUTS = {"normal": NormalReadout, "student_t": StudentTReadout}


@pytest.fixture(autouse=True)
def _fresh_state():
    """Every test starts from the same seed and an empty param store, and leaves nothing behind."""
    pyro.clear_param_store()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line with some arguments; return its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eve-pyro", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call


@pytest.fixture
def panel() -> Panel:
    return make_panel()


@pytest.fixture
def windows(panel: Panel) -> Splits:
    return make_windows(panel, CONTEXT, HORIZON)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, 1, CONTEXT), torch.randn(B, HORIZON)


def make_panel(rows: int = 300, series: int = 2, seed: int = 0) -> Panel:
    """Noisy daily seasons of different level and scale."""
    rng = np.random.default_rng(seed)
    steps = np.arange(rows)[:, None]
    values = (1 + np.arange(series)) * np.sin(2 * np.pi * steps / 12) + 0.3 * rng.standard_normal((rows, series))
    frame = pd.DataFrame(values + 10, columns=[f"s{i}" for i in range(series)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="D"))
    return Panel.from_wide(frame)


def make_model(
    readout: str = "factor", prior: str = "standard", latent_dim: int = 1, pooling: str = "sqrt", loadings: bool = True
) -> Forecaster:
    encoder = LinearEncoder(CONTEXT, hidden=8, features=12, dropout=0.0)
    priors = {
        "standard": lambda: StandardPrior(UNITS, latent_dim),
        "learned": lambda: LearnedPrior(UNITS, latent_dim),
        "contextual": lambda: ContextualPrior(encoder.out_features, UNITS, latent_dim),
    }
    layer = EveLayer(priors[prior](), UNITS, latent_dim, pooling)
    if readout == "factor":
        head = FactorReadout(layer, encoder.out_features, HORIZON, loadings)
    else:
        head = READOUTS[readout](MLPDecoder(UNITS, 8), HORIZON)
    return Forecaster(encoder, layer, head, HORIZON)


def make_pair(
    guide: str = "future_aware", size: float = 0.05, **model_options: Any
) -> tuple[Forecaster, torch.nn.Module]:
    """Build a model and a guide for it, moved off the zeros they start from."""
    model = shaken(make_model(**model_options), size)
    return model, shaken(GUIDES[guide](model), size)


def shaken(module: torch.nn.Module, size: float = 0.3) -> torch.nn.Module:
    """Move every parameter a little, so that nothing sits at the zeros it starts from."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module
