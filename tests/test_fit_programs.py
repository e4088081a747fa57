"""Training plain functions: their parameters in Pyro's store, and programs that are refused by name."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import HORIZON, make_model
from programs import plain_pair
from torch import nn

from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.forecast import forecast
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.scores import evaluate

QUICK = Training(epochs=2, batch_size=64, progress=False)


@pytest.mark.parametrize("objective", ["elbo", "mixture", "predictive"])
def test_plain_functions_train_and_forecast(windows, objective):
    model, guide = plain_pair()
    training = Training(epochs=5, batch_size=32, learning_rate=0.01, progress=False)
    result = fit(model, guide, windows, LocalELBO(objective, num_particles=2), training)
    assert result.history["val_crps"].iloc[-1] < 0.6 * 0.6  # the noiseless season has a deviation of 1 when scaled
    assert float(pyro.param("noise").detach()) < 0.95
    prediction = forecast(model, guide, windows.test, num_draws=20)
    assert prediction.paths.shape == (20, len(windows.test), HORIZON)
    scores = evaluate(model, guide, windows.test, num_draws=20)
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["joint_log_score_draws"] == 20


def test_the_best_epoch_of_plain_functions_is_restored_too(windows):
    model, guide = plain_pair()
    training = Training(epochs=6, batch_size=32, learning_rate=0.3, progress=False)
    result = fit(model, guide, windows, LocalELBO(), training)
    kept = evaluate(model, guide, windows.validation, num_draws=16)["crps"]
    assert kept == pytest.approx(result.history["val_crps"].min(), rel=0.1)


def test_a_program_without_parameters_is_refused(windows):
    def nothing(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            y = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(torch.zeros(HORIZON), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="found no parameters to train"):
        fit(nothing, lambda context, future=None: None, windows, training=QUICK)


def test_functions_that_clash_in_the_store_are_refused(windows):
    """pyro.module gives the stored parameters precedence but does not put them into a second module of that name."""
    fit(*plain_pair(), windows, training=QUICK)
    second = plain_pair()
    with pytest.raises(ValueError, match=r"does not reach '(head|encode)\$\$\$weight'.*clear_param_store"):
        fit(*second, windows, training=QUICK)
    pyro.clear_param_store()
    fit(*second, windows, training=QUICK)


def test_parameters_that_a_module_keeps_in_the_store_are_trained(windows):
    class Leveled(nn.Module):
        def forward(self, context, future=None):
            level = pyro.param("level", torch.tensor(3.0))
            with pyro.plate("windows", len(context), dim=-2):
                observed = None if future is None else future.unsqueeze(-2)
                pyro.sample("y", dist.Normal(level.expand(HORIZON), 1.0).to_event(1), obs=observed)

    training = Training(epochs=20, batch_size=64, learning_rate=0.1, monitor="last", progress=False)
    fit(Leveled(), lambda context, future=None: None, windows, training=training)
    assert abs(float(pyro.param("level").detach())) < 0.1  # the mean of scaled data


def test_a_site_that_the_guide_adds_at_forecast_time_is_named(windows):
    model = make_model()

    def guide(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("eve.units", 5, dim=-1):
            loc = pyro.param("loc", torch.zeros(5, 1, 1))
            name = "zz" if future is None else "eve.z"
            pyro.sample(name, dist.Normal(loc.expand(len(context), 5, 1, 1), 1.0).to_event(2))

    calls = (
        lambda: fit(model, guide, windows, training=QUICK),
        lambda: evaluate(model, guide, windows.test, 4),
        lambda: forecast(model, guide, windows.test.every(20)),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"without a future the guide samples 'zz', which is no latent site"):
            call()


def test_a_site_that_the_guide_lacks_is_named_where_the_joint_score_needs_it(windows):
    model = make_model(readout="normal")
    with pytest.raises(ValueError, match=r"does not sample the model's site 'eve\.z' with a future"):
        evaluate(model, lambda context, future=None: None, windows.test, 4)
