"""The candidates of models, and which of them is chosen."""

import pandas as pd
import pytest

from eve_pyro.bench.lineup import TRAINED
from eve_pyro.bench.peers import PEERS
from eve_pyro.bench.tuning import candidates_of, chosen_label, label_of


def test_every_model_is_tried_with_as_many_options():
    models = (*TRAINED, *PEERS)
    counts = {model: len({label_of(options) for options in candidates_of(model)}) for model in models}
    assert counts == dict.fromkeys(models, 5)
    assert all(candidates_of(model)[0] == {} for model in models)
    for model in ("dlinear", *PEERS):  # which has no encoder, which have their authors'
        assert not any({"dropout", "encoder_layers"} & set(options) for options in candidates_of(model))


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({"recipe": 0.2, "a": 0.199, "b": 0.1995}, "recipe"),  # exactly half a per cent: what another seed might do
        ({"recipe": 0.2, "a": 0.1989, "b": 0.1985}, "b"),
        ({"recipe": 0.2, "a": 0.19, "b": float("nan")}, "a"),
        ({"recipe": float("nan"), "a": 0.21, "b": 0.209}, "b"),
        ({"a": 0.2001, "b": 0.2}, "b"),
    ],
)
def test_the_recipe_stays_unless_others_are_better_by_more_than_a_seed(scores, chosen):
    rows = [{"seed": 0, "options": name, "val_crps": score} for name, score in scores.items()]
    others = [{"seed": 1, "options": name, "val_crps": 0.01} for name in scores if name != chosen]
    assert chosen_label(pd.DataFrame(others + rows)) == chosen
