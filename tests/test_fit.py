"""Training: exact posteriors, seeds, isolation, the best epoch kept."""

import math
from dataclasses import replace

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, make_model, make_panel
from lightning.pytorch.callbacks import Callback
from torch import nn

from eve_pyro.data import make_table, make_windows
from eve_pyro.guides import ContextMeanField
from eve_pyro.infer.callbacks import Pause
from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.scores import evaluate
from eve_pyro.likelihoods import CategoricalReadout
from eve_pyro.models import Regression
from eve_pyro.nets import MLPDecoder, MLPEncoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import StandardPrior

QUICK = Training(epochs=2, batch_size=64, progress=False)


def pair(seed=0, guide="future_aware", **options):
    torch.manual_seed(seed)
    model = make_model(**options)
    return model, GUIDES[guide](model)


def weights(model, guide):
    return torch.cat([p.detach().flatten() for module in (model, guide) for p in module.parameters()])


class LinearGaussian(nn.Module):
    """y = W z + noise, z ~ N(0, I): everything known."""

    def __init__(self, loadings, noise):
        super().__init__()
        self.register_buffer("loadings", loadings)
        self.noise = noise

    def forward(self, context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", self.loadings.shape[1], dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            likelihood = dist.Normal((z @ self.loadings.mT).unsqueeze(-2), self.noise).to_event(1)
            pyro.sample("y", likelihood, obs=None if future is None else future.unsqueeze(-2))


class LinearGuide(nn.Module):
    def __init__(self, horizon, units):
        super().__init__()
        self.loc = nn.Linear(horizon, units)
        self.log_scale = nn.Parameter(torch.zeros(units))

    def forward(self, context, future=None):
        if future is None:
            return
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", len(self.log_scale), dim=-1):
            pyro.sample("z", dist.Normal(self.loc(future), self.log_scale.exp()))


def test_the_fitted_posterior_of_a_conjugate_model_is_the_exact_one():
    """Orthogonal loadings make the exact posterior mean-field."""
    noise = 0.5
    loadings = torch.linalg.qr(torch.randn(HORIZON, 3)).Q * torch.tensor([2.0, 1.0, 0.5])
    windows = make_windows(make_panel(400), CONTEXT, HORIZON)
    model, guide = LinearGaussian(loadings, noise), LinearGuide(HORIZON, 3)
    fit(model, guide, windows, LocalELBO(), Training(80, 64, 0.05, monitor="last", progress=False))
    covariance = torch.linalg.inv(torch.eye(3) + loadings.mT @ loadings / noise**2)
    gain = covariance @ loadings.mT / noise**2
    torch.testing.assert_close(guide.log_scale.exp(), covariance.diagonal().sqrt(), rtol=0.02, atol=0)
    torch.testing.assert_close(guide.loc.weight, gain, atol=0.02, rtol=0)
    future = windows.test[:50].future
    torch.testing.assert_close(guide.loc(future), future @ gain.mT, atol=0.05, rtol=0)


def test_a_seed_repeats_and_another_differs(windows):
    runs = []
    for seed in (0, 0, 1):
        model, guide = pair()
        fit(
            model, guide, windows, LocalELBO("predictive"), Training(epochs=2, batch_size=64, seed=seed, progress=False)
        )
        runs.append(weights(model, guide))
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()


def test_two_forecasters_in_one_process_are_as_trained_alone(windows):
    """Trained after another of the same class, under the same names, a pair ends with the weights it has alone."""
    alone = []
    for seed in (1, 2):
        model, guide = pair(seed)
        fit(model, guide, windows, training=QUICK)
        alone.append(weights(model, guide))
    first, second = pair(1), pair(2)
    fit(*first, windows, training=QUICK)
    before = weights(*first)
    fit(*second, windows, training=QUICK)
    assert (weights(*first) == before).all()
    assert (weights(*first) == alone[0]).all()
    assert (weights(*second) == alone[1]).all()
    assert len(pyro.get_param_store()) == 0


def test_training_leaves_the_global_random_state_alone(windows):
    model, guide = pair()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, guide, windows, training=QUICK)
    evaluate(model, guide, windows.test, num_draws=4)
    assert (torch.rand(3) == expected).all()


def test_the_best_epoch_is_kept_and_the_history_written(windows, tmp_path):
    model, guide = pair()
    training = Training(epochs=4, batch_size=64, learning_rate=0.02, progress=False)
    result = fit(model, guide, windows, LocalELBO("predictive"), training, log_dir=tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history["epoch"]) == [0, 1, 2, 3]
    assert result.best_epoch == history["val_crps"].idxmin()
    assert {"train_loss", "train_kl", "val_loss", "val_kl", "val_log_likelihood", "val_predictive"} <= set(history)
    kept = evaluate(model, guide, windows.validation)["crps"]
    assert kept == pytest.approx(history["val_crps"].min(), rel=1e-4)
    assert list(tmp_path.glob("tensorboard/events*"))
    assert not model.training


def test_losses_are_a_value_and_their_terms_add_up(windows):
    model, guide = pair()
    history = fit(model, guide, windows, LocalELBO(beta=0.5), QUICK).history
    expected = -history["val_log_likelihood"] + 0.5 * history["val_kl"] / HORIZON
    assert history["val_loss"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4)


@pytest.mark.parametrize("readout", ["normal", "student_t"])
def test_every_validation_has_the_same_draws(windows, readout):
    """Weights that stay where they are score the same in every epoch, also where scores come from draws."""
    model, guide = pair(readout=readout)
    history = fit(model, guide, windows, training=Training(3, 64, learning_rate=1e-20, progress=False)).history
    assert history[["val_crps", "val_loss"]].nunique().tolist() == [1, 1]
    assert history["train_loss"].nunique() == 3


def test_training_stops_early_without_progress(windows):
    model, guide = pair()
    training = Training(epochs=30, batch_size=64, learning_rate=1e-9, patience=2, monitor="loss", progress=False)
    result = fit(model, guide, windows, LocalELBO(beta=0.0), training)
    assert len(result.history) < 30
    assert result.stopped == "no better val_loss in 2 epochs"


def test_it_says_when_a_callback_of_ones_own_stopped_it(windows):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, task):
            trainer.should_stop = True

    for monitor in ("crps", "last"):
        training = Training(epochs=3, batch_size=64, monitor=monitor, progress=False)
        assert (
            fit(*pair(), windows, training=training, callbacks=[Stop()]).stopped
            == "stopped by a callback after epoch 1"
        )


def test_a_score_that_is_never_finite_is_an_error_and_one_that_once_was_not_is_no_end(windows):
    class Blank(Callback):
        """Takes validation scores away."""

        def __init__(self, epochs):
            self.epochs = epochs

        def on_validation_epoch_end(self, trainer, task):
            if trainer.current_epoch in self.epochs:
                task.log("val_loss", torch.nan)

    training = Training(epochs=3, batch_size=64, monitor="loss", progress=False)
    with pytest.raises(ValueError, match="val_loss was not finite after any epoch"):
        fit(*pair(), windows, training=training, callbacks=[Blank({0, 1, 2})])
    result = fit(*pair(), windows, training=training, callbacks=[Blank({0})])
    assert result.best_epoch > 0
    assert result.stopped == "all epochs done"


class Exploding(nn.Module):
    """Breaks after a number of calls."""

    def __init__(self, model, calls):
        super().__init__()
        self.inner, self.calls = model, calls

    def forward(self, context, future=None):
        self.calls -= self.training
        return self.inner(context * (math.nan if self.calls < 0 else 1.0), future)


def test_a_loss_that_breaks_keeps_the_best_epoch(windows):
    steps = len(windows.train) // 64
    model, guide = pair()
    broken = Exploding(model, 2 + 2 * steps + 1)  # fit runs it twice before the first step
    result = fit(broken, guide, windows, training=Training(epochs=5, batch_size=64, progress=False))
    assert f"not finite at step {2 * steps + 1}" in result.stopped
    assert torch.isfinite(weights(model, guide)).all()
    assert result.best_epoch in (0, 1)
    assert math.isfinite(evaluate(model, guide, windows.test, 4)["crps"])


def test_a_loss_that_broke_stays_broken_when_the_training_is_taken_up_again(windows, tmp_path):
    steps, training = len(windows.train) // 64, Training(epochs=5, batch_size=64, progress=False)
    model, guide = pair()
    before = fit(Exploding(model, 2 + 2 * steps + 1), guide, windows, training=training, log_dir=tmp_path)
    again = pair()
    result = fit(Exploding(again[0], math.inf), again[1], windows, training=training, log_dir=tmp_path, resume=True)
    assert result.stopped == before.stopped
    assert result.best_epoch == before.best_epoch
    assert len(result.history) == len(before.history) == 3
    assert torch.equal(weights(*again), weights(model, guide))


def test_a_loss_that_breaks_where_the_last_epoch_is_kept_keeps_the_last_whole_one(windows):
    steps = len(windows.train) // 64
    training = Training(epochs=5, batch_size=64, monitor="last", progress=False)
    whole, broken = pair(), pair()
    fit(*whole, windows, training=training, callbacks=[Pause(2)])
    result = fit(Exploding(broken[0], 2 + 2 * steps + 2), broken[1], windows, training=training)
    assert result.best_epoch == 1
    assert torch.equal(weights(*broken), weights(*whole))


def test_a_loss_that_is_broken_from_the_start_is_an_error(windows):
    model, guide = pair()
    with pytest.raises(ValueError, match="not finite at step 0"):
        fit(Exploding(model, 0), guide, windows, training=QUICK)


def test_a_fit_that_is_refused_leaves_the_pair_as_it_was(windows):
    model, guide = pair()
    before = weights(model, guide).clone()
    with pytest.raises(ValueError, match="not finite at step 1, before a first epoch"):
        fit(model, guide, windows, training=Training(learning_rate=1.0, clip=1e6, progress=False), callbacks=[Ruin()])
    assert torch.equal(weights(model, guide), before)


class Ruin(Callback):
    """Puts NaN into every weight after the first step."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        for weight in task.trained():
            weight.data.fill_(torch.nan)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"patience": 0}, {"monitor": "nope"}, {"clip": math.nan}, {"seed": -1}]
)
def test_options_of_a_training_are_checked_before_it(windows, wrong):
    model, guide = pair()
    with pytest.raises(ValueError, match=f"option {next(iter(wrong))} = "):
        fit(model, guide, windows, training=Training(**wrong))


def test_windows_of_other_lengths_are_refused_in_words(windows):
    panel = windows.test.panel
    longer = make_windows(panel, CONTEXT + 1, HORIZON), make_windows(panel, CONTEXT, HORIZON + 1)
    for wrong, message in zip(longer, ("a context of", "a horizon of"), strict=True):
        with pytest.raises(ValueError, match=f"the windows have {message}"):
            fit(*pair(), wrong, training=QUICK)


def test_a_second_fit_trains_with_dropout_again(windows):
    model, guide = pair()
    fit(model, guide, windows, training=QUICK)
    modes = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            modes.append(model.training and guide.training)

    fit(model, guide, windows, training=QUICK, callbacks=[Watch()])
    assert modes
    assert all(modes)


def test_evaluating_leaves_every_modules_mode_alone(windows):
    model, guide = pair()
    model.train()
    model.encoder.branch.eval()
    evaluate(model, guide, windows.test, num_draws=4)
    assert (model.training, model.encoder.training, model.encoder.branch.training) == (True, True, False)


def test_classes_are_watched_by_their_log_score():
    rows = pd.DataFrame({"a": torch.randn(200).tolist()})
    splits = make_table(rows.assign(kind=["low" if a < 0 else "high" for a in rows["a"]]), "kind", classify=True)
    layer = EveLayer(StandardPrior(3), 3)
    model = Regression(MLPEncoder(1, 8), layer, CategoricalReadout(MLPDecoder(3, 8), 2), 1)
    guide = ContextMeanField(model)
    result = fit(model, guide, splits, training=Training(epochs=30, batch_size=32, learning_rate=0.05, progress=False))
    assert result.best_epoch == result.history["val_log_score"].idxmin()
    assert "val_crps" not in result.history
    scores = evaluate(model, guide, splits.test, 20)
    assert set(scores) >= {"accuracy", "log_score", "joint_log_score"}
    assert scores["accuracy"] > 0.8
    with pytest.raises(ValueError, match=r"from 0 to 1; found 1\.5"):
        evaluate(model, guide, replace(splits.test, future=splits.test.future * 1.5), 4)
