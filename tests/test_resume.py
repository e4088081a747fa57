"""A training that was stopped and taken up again ends as one that was never stopped."""

import pandas as pd
import pytest
import torch
from conftest import GUIDES, make_model
from lightning.pytorch.callbacks import Callback
from programs import plain_pair
from test_fit import weights

from eve_pyro.control.steering import Steering
from eve_pyro.infer.callbacks import CHECKPOINT, Pause
from eve_pyro.infer.fit import fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.training import Training

STEERING = Steering("homeostasis", target=0.1, thermostat=True, calibrate=True, warmup=5, ramp=30)


class Pull(Callback):
    """Pulls the plug in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 2):
            raise RuntimeError("the lights went out")


def pair(guide="context"):
    torch.manual_seed(0)
    model = make_model()
    return model, GUIDES[guide](model)


def train(windows, folder, programs=None, epochs=5, callbacks=(), **options):
    model, guide = programs or pair()
    training = Training(epochs=epochs, batch_size=32, learning_rate=5e-3, patience=2, progress=False)
    elbo = LocalELBO("predictive", num_particles=2)
    return fit(model, guide, windows, elbo, training, log_dir=folder, callbacks=callbacks, **options), (model, guide)


@pytest.mark.parametrize("epoch", [1, 3])
def test_taken_up_again_a_training_ends_as_if_never_stopped(windows, tmp_path, epoch):
    whole, programs = train(windows, tmp_path / "whole", control=STEERING)
    with pytest.raises(RuntimeError, match="lights"):
        train(windows, tmp_path / "cut", control=STEERING, callbacks=[Pull(epoch)])
    assert len(pd.read_csv(tmp_path / "cut" / "history.csv")) == epoch
    resumed, again = train(windows, tmp_path / "cut", control=STEERING, resume=True)
    assert torch.equal(weights(*again), weights(*programs))
    assert resumed.best_epoch == whole.best_epoch
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))
    for name in ("census", "signals"):
        pd.testing.assert_frame_equal(resumed.tables[name], whole.tables[name])
    states = [
        torch.load(tmp_path / part / CHECKPOINT, weights_only=True)["callbacks"]["Control"]["layers"]
        for part in ("whole", "cut")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_plain_functions_are_taken_up_again_too(windows, tmp_path):
    import pyro

    def fresh():
        pyro.clear_param_store()
        torch.manual_seed(0)
        return plain_pair()

    whole, _ = train(windows, tmp_path / "whole", fresh())
    with pytest.raises(RuntimeError, match="lights"):
        train(windows, tmp_path / "cut", fresh(), callbacks=[Pull(3)])
    resumed, _ = train(windows, tmp_path / "cut", fresh(), resume=True)
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))


def test_a_training_that_was_done_stays_done(windows, tmp_path):
    done, programs = train(windows, tmp_path)
    again, restored = train(windows, tmp_path, resume=True)
    assert torch.equal(weights(*restored), weights(*programs))
    assert len(again.history) == len(done.history)


def test_one_that_had_stopped_early_stays_stopped(windows, tmp_path):
    options = {"learning_rate": 1e-9, "patience": 2, "monitor": "loss", "progress": False}
    training = Training(epochs=9, batch_size=64, **options)
    lengths = []
    for resume in (False, True):
        model, guide = pair()
        found = fit(model, guide, windows, LocalELBO(beta=0.0), training, log_dir=tmp_path, resume=resume)
        lengths.append(len(found.history))
        assert found.stopped == "no better val_loss in 2 epochs"
    assert lengths[0] == lengths[1] < 9


def test_without_a_checkpoint_a_training_begins(windows, tmp_path):
    started, _ = train(windows, tmp_path / "new", epochs=1, resume=True)
    assert len(started.history) == 1


def test_a_checkpoint_of_another_training_is_refused(windows, tmp_path):
    train(windows, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="trained with epochs = 1, not 2"):
        train(windows, tmp_path, epochs=2, resume=True)
    with pytest.raises(ValueError, match="does not fit its configuration"):
        train(windows, tmp_path, pair("delta"), epochs=1, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        train(windows, tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match="needs the log_dir"):
        train(windows, None, epochs=1, resume=True)


@pytest.mark.parametrize("steering", [None, STEERING], ids=["free", "steered"])
def test_paused_and_resumed_a_training_ends_as_if_never_paused(windows, tmp_path, steering):
    whole, programs = train(windows, tmp_path / "whole", control=steering)
    for epochs in (1, 1, 3):  # the second finds that the first is as far already
        paused, _ = train(windows, tmp_path / "cut", control=steering, resume=True, callbacks=[Pause(epochs)])
        assert len(paused.history) == epochs
        assert paused.stopped == f"paused after {epochs} epochs"
    resumed, again = train(windows, tmp_path / "cut", control=steering, resume=True)
    assert torch.equal(weights(*again), weights(*programs))
    assert (resumed.best_epoch, resumed.stopped) == (whole.best_epoch, whole.stopped)
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(resumed.tables[name], table)
