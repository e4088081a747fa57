"""Options that models are tried with before they are compared: as many for each, chosen by one rule on validation."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from eve_pyro.bench.peers import PEERS

RECIPE = "recipe"  # what a row says that was trained with the recipe's own options
MARGIN = 0.005  # of the validation CRPS: between the median and the r.m.s. of what another seed moves it by
Options = Mapping[str, Any]

DEEPER: Options = {"encoder_layers": 3}  # for every model that has the encoder
OF_UNITS: tuple[Options, ...] = (  # how much the density of paths says about locations and scales, and its tails
    {},
    {"alpha": 0.25},
    {"volatility": False},
    {"objective": "predictive", "alpha": 0.9, "held": "scales"},  # means over blocks would move the scales too
    DEEPER,
)
OF_RIVALS: tuple[Options, ...] = (  # how fast and how freely they learn
    {},
    {"learning_rate": 0.001},
    {"dropout": 0.3},
    {"learning_rate": 0.001, "dropout": 0.3},
    DEEPER,
)
OF_DLINEAR: tuple[Options, ...] = (  # it has nothing to drop, and learns at higher rates
    {},
    {"learning_rate": 0.001},
    {"learning_rate": 0.005},
    {"learning_rate": 0.01},
    {"learning_rate": 0.02},
)
OF_PEERS: tuple[Options, ...] = (  # their layers and what they drop are their authors'
    {},
    {"learning_rate": 0.0002},
    {"learning_rate": 0.0005},
    {"learning_rate": 0.001},
    {"learning_rate": 0.005},
)


def candidates_of(model: str) -> tuple[Options, ...]:
    """Return the options that a trained model is tried with, the recipe's own first."""
    own = {"eve": OF_UNITS, "dlinear": OF_DLINEAR, **dict.fromkeys(PEERS, OF_PEERS)}
    return own.get(model, OF_RIVALS)


def tried(model: str) -> str:
    """Return the model whose tries choose the options of ``model``: an ensemble takes those of its members."""
    return "twin" if model == "ensemble" else model


def label_of(options: Options) -> str:
    """Return what a row says of its options: ``alpha=0.9 held=scales``."""
    return " ".join(f"{name}={value}" for name, value in options.items()) or RECIPE


def chosen_label(rows: pd.DataFrame) -> str:
    """Return the options, of those in a model's ``rows``, whose seed 0 has the lowest validation CRPS.

    They are the recipe's own unless others are lower by more than half a per cent: less, another seed may be as well.
    Without rows of seed 0 they are those of most rows.
    """
    first = rows[rows["seed"] == 0]
    if not len(first):
        return str(rows["options"].mode()[0])
    scores = first.set_index("options")["val_crps"]
    scores = scores.where(scores.index != RECIPE, (1 - MARGIN) * scores)
    return str(scores.idxmin())
