"""Units that were killed mid-training live again under homeostasis, and not when nothing steers."""

import pytest
from conftest import CONTEXT, HORIZON
from lightning.pytorch.callbacks import Callback

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.control.steering import Steering
from eve_pyro.infer.fit import fit

UNITS, KILLED, AT, WITHIN = 20, 6, 300, 500
OPTIONS = {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS, "hidden": 8, "features": 12}


class Kill(Callback):
    """Sets the loc rows of some units to zero at one step."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == AT:
            for rows in task.guide.unit_rows()["eve.z"].loc:
                rows[:KILLED] = 0


@pytest.mark.parametrize("regime", ["homeostasis", "off"])
def test_killed_units_live_again_under_homeostasis_only(windows, regime):
    overrides = OPTIONS | {"epochs": 80, "batch_size": 32, "monitor": "last", "progress": False}
    config = load_recipe("paper", overrides)
    pair = build(config)
    steering = Steering(regime, target=0.1, warmup=20, ramp=20)
    result = fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=steering, callbacks=[Kill()])
    signals = result.tables["signals"]
    census = result.tables["census"].query("split == 'val'")
    killed = census[census["unit"] < KILLED].groupby("step")["energy"].max()
    assert killed[killed.index >= AT].iloc[0] < 0.5 * killed[killed.index < AT].iloc[-1]  # the census shows the fall
    reached = signals[(signals["split"] == "val") & (signals["step"] <= AT + WITHIN)].iloc[-1]
    assert reached["step"] > AT
    living = census[(census["step"] == reached["step"]) & (census["unit"] < KILLED)]["state"] == "living"
    if regime == "homeostasis":
        assert reached["living"] >= 0.95
    else:
        assert living.mean() < 0.5
