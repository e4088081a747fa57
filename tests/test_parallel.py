"""Two processes train as one: the same controllers, the same weights, statistics of the whole batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
SCRIPT = """
import json, os, sys
import torch
from conftest import CONTEXT, GUIDES, HORIZON, make_model, make_panel
from eve_pyro.control.regimes import Control
from eve_pyro.control.steering import Steering
from eve_pyro.data import make_windows
from eve_pyro.infer.fit import fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.training import Training
from lightning.pytorch.callbacks import Callback

class First(Callback):
    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        layer = control.layers["eve.z"]
        if trainer.global_step == 1:
            self.seen = {name: getattr(layer.thermostat, name).tolist() for name in ("kl", "alive")}
            self.seen["energy"] = layer.energy.tolist()

torch.manual_seed(0)
model = make_model(prior="learned")
guide = GUIDES["context"](model)
with torch.no_grad():
    guide.heads["eve"].loc.bias.normal_()
control, first = Control(Steering("homeostasis", target=0.1, thermostat=True, warmup=5, ramp=5)), First()
windows = make_windows(make_panel(), CONTEXT, HORIZON)
training = Training(epochs=3, batch_size=32, learning_rate=1e-3, progress=False)
found = fit(model, guide, windows, LocalELBO(beta=0.5), training, callbacks=[control, first], log_dir=sys.argv[1])
layer = control.layers["eve.z"]
weights = torch.cat([p.detach().flatten() for m in (model, guide) for p in m.parameters()])
result = {
    "first": first.seen, "weights": weights.tolist(), "energy": layer.energy.tolist(),
    "beta": layer.thermostat.beta.tolist(), "steps": int(found.history["step"].iloc[-1]),
    "val_crps": found.history["val_crps"].tolist(),
}
with open(f"{sys.argv[1]}/rank{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(result, file)
"""


def train(folder, launcher):
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, *launcher, str(folder / "script.py"), str(folder)]
    path = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=path)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    return train(folder / "two", torchrun), train(folder / "one", [])


def test_both_processes_end_with_the_same_weights_and_controllers(runs):
    (left, right), _ = runs
    for name in ("weights", "energy", "beta", "first", "steps", "val_crps"):
        assert left[name] == right[name], name


def test_the_statistics_are_those_of_the_whole_batch(runs):
    (left, _), (alone,) = runs
    assert left["steps"] == alone["steps"]
    for name in ("kl", "alive", "energy"):
        torch.testing.assert_close(torch.tensor(left["first"][name]), torch.tensor(alone["first"][name]))
    assert left["beta"] == pytest.approx(alone["beta"], rel=0.1)
    assert left["energy"] == pytest.approx(alone["energy"], rel=0.5)
