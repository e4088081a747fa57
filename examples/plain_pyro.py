"""A model and a guide as plain functions, by nobody's base class: trained, scored, forecast.

    python examples/plain_pyro.py

Three units share the mood of the coming week; a linear map of the past gives its level.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import eve_pyro as ep

windows = ep.make_windows(ep.seattle_weather(), context_length=60, horizon=7)
torch.manual_seed(0)
level, loadings, posterior = nn.Linear(60, 7), nn.Linear(3, 7, bias=False), nn.Linear(7 + 60, 3)


def model(context, future=None):
    pyro.module("level", level)
    pyro.module("loadings", loadings)
    noise = pyro.param("noise", torch.ones(7), constraint=dist.constraints.positive)
    with pyro.plate("windows", len(context), dim=-2):
        with pyro.plate("units", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))  # (..., windows, units)
        loc = level(context) + loadings(z).unsqueeze(-2)  # (..., windows, 1, horizon)
        observed = None if future is None else future.unsqueeze(-2)
        return pyro.sample("y", dist.Normal(loc, noise).to_event(1), obs=observed)


def guide(context, future=None):
    if future is None:  # a forecast draws its units from the prior
        return
    pyro.module("posterior", posterior)
    scale = pyro.param("scale", torch.full((3,), 0.5), constraint=dist.constraints.positive)
    with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 3, dim=-1):
        pyro.sample("z", dist.Normal(posterior(torch.cat([future, context[:, 0]], -1)), scale))


training = ep.Training(epochs=5, batch_size=64, learning_rate=5e-3, progress=False)
fitted = ep.fit(model, guide, windows, ep.LocalELBO(beta=1.0), training)
print(fitted.history[["epoch", "train_loss", "train_kl", "val_crps"]].to_string(index=False))

scores = ep.evaluate(model, guide, windows.test)
print({name: round(value, 3) for name, value in scores.items()})

week = ep.forecast(model, guide, ep.latest_windows(windows.test.panel, 60, 7, windows.test.scaler))
print(week.frame().head(7).to_string(index=False, float_format="%.2f"))
