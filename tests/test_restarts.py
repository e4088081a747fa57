"""Restart agreement: units found again under other names and signs, and disagreement that shows."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import UNITS, make_pair
from linear_gaussian import Truth, exact, independent, model_of, rows, truth

from eve_pyro.data import make_table
from eve_pyro.diagnostics.restarts import _match, restart_agreement
from eve_pyro.guides import FutureAware
from eve_pyro.likelihoods import CategoricalReadout
from eve_pyro.models import Regression
from eve_pyro.nets import LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import StandardPrior

TRUTH = truth()
MODEL, DATA = model_of(TRUTH), rows(TRUTH, 20)
ORDER, SIGNS = [2, 0, 1], torch.tensor([1.0, -1.0, -1.0]).double()
RENAMED = Truth(TRUTH.loadings[:, ORDER] * SIGNS, TRUTH.noise)


def pair(truth):
    return model_of(truth), exact(truth)


def test_units_under_other_names_and_signs_are_found_again():
    found = restart_agreement({"a": pair(TRUTH), "b": pair(RENAMED), "c": pair(TRUTH)}, DATA)
    assert list(found.units) == ["site", "unit", "correlation", "r_hat", "r_hat_max"]
    assert (found.units["correlation"] > 0.98).all()
    assert (found.units["r_hat_max"] < 1.05).all()
    matches = found.matches.set_index("restart")
    assert [ORDER[partner] for partner in matches.loc["b", "partner"]] == [0, 1, 2]
    assert matches.loc["b", "sign"].tolist() == [SIGNS[partner] for partner in matches.loc["b", "partner"]]
    assert matches.loc["c", "partner"].tolist() == [0, 1, 2]
    free = found.label_free.set_index("quantity")
    assert (free["r_hat_max"] < 1.05).all()
    assert free.loc["log_evidence", "between"] < 1e-9  # the exact posterior's weights are constant


def test_positive_units_are_not_turned_round():
    draws = np.random.default_rng(0).gamma(2.0, size=(5, 20, 2, 1)) * np.linspace(1, 3, 20)[:, None, None]
    other = (10 / (1 + draws))[:, :, ::-1]  # the less the more: of no unit the like
    found = _match(draws, other)
    assert (found["sign"] == 1).all()
    assert (found["correlation"] < 0).all()


def test_forecasts_of_classes_have_an_r_hat():
    """A class is 0 or 1, and in some windows drawn alike each time: ranks tie, and variances may be 0."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    table = make_table(frame.assign(d=frame["a"] > 0), "d", classify=True)
    layer, encoder = EveLayer(StandardPrior(UNITS), UNITS), LinearEncoder(3, 8, 12, 0.0)
    model = Regression(encoder, layer, CategoricalReadout(MLPDecoder(UNITS, 8), 2), 1)
    guide = FutureAware(model)
    free = restart_agreement({"a": (model, guide), "b": (model, guide)}, table.test, num_draws=4).label_free
    assert np.isfinite(free["r_hat_max"]).all()


def test_restarts_have_draws_of_their_own():
    """Draws in common would pass for agreement."""
    free = restart_agreement({"a": pair(TRUTH), "b": pair(TRUTH)}, DATA).label_free.set_index("quantity")
    assert free.loc["log_likelihood", "between"] > 0.01


def test_units_that_turned_among_one_another_disagree_where_forecasts_do_not():
    turn = torch.linalg.qr(torch.randn(3, 3).double())[0]
    found = restart_agreement({"a": pair(TRUTH), "b": pair(Truth(TRUTH.loadings @ turn, TRUTH.noise))}, DATA)
    assert found.units["r_hat_max"].max() > 1.1
    assert (found.label_free["r_hat_max"] < 1.05).all()


def test_disagreement_shows_in_units_and_in_what_has_no_labels():
    shifted = (MODEL, independent(TRUTH, "marginal", shift=1.5))
    found = restart_agreement({"a": pair(TRUTH), "b": shifted}, DATA)
    assert (found.units["correlation"] > 0.98).all()  # correlation is blind to a shift
    assert (found.units["r_hat"] > 1.15).all()
    free = found.label_free.set_index("quantity")
    assert free.loc["log_likelihood", "r_hat"] > 1.1
    assert free.loc["forecast_mean", "r_hat_max"] < 1.05  # both forecast from the one prior

    other = truth(seed=2)._replace(noise=2.0)
    free = restart_agreement({"a": pair(TRUTH), "b": pair(other)}, DATA).label_free.set_index("quantity")
    evidence = [each.evidence(DATA.context, DATA.future).numpy() for each in (TRUTH, other)]
    between = np.sqrt(np.var(evidence, axis=0, ddof=1).mean())
    assert free.loc["log_evidence", "between"] == pytest.approx(between, rel=1e-6)
    assert free.loc["log_likelihood", "r_hat"] > 1.1


def test_latent_dimensions_of_a_unit_are_one_unit(windows):
    """What a unit is known by is the sum that is read of it: its dimensions may change places."""
    pair = make_pair("future_aware", 0.3, latent_dim=2)
    model, guide = deepcopy(pair)
    head = guide.heads["eve"]
    with torch.no_grad():
        for p in (*head.loc.parameters(), *head.log_scale.parameters()):
            p.copy_(p.view(UNITS, 2, -1).flip(1).view_as(p))
    shown = windows.test.at_most(10)
    found = restart_agreement({"a": pair, "b": (model, guide)}, shown)
    assert len(found.units) == len(found.matches) == UNITS
    assert found.matches["partner"].tolist() == [*range(UNITS)]
    assert (found.units["r_hat_max"] < 1.06).all()
    assert restart_agreement({"a": pair, "b": (model, guide)}, shown).units.equals(found.units)


def test_what_cannot_agree_is_refused():
    with pytest.raises(ValueError, match="agreement needs two chains"):
        restart_agreement({"a": pair(TRUTH)}, DATA)
    with pytest.raises(ValueError, match="'a' and 'b' are no two of one architecture"):
        restart_agreement({"a": pair(TRUTH), "b": pair(truth(units=2))}, DATA)
    with pytest.raises(ValueError, match="at least 4 draws and 4 windows, not 3 and 20"):
        restart_agreement({"a": pair(TRUTH), "b": pair(TRUTH)}, DATA, num_draws=3)
