# %% [markdown]
# # Quickstart
#
# An ordinary neuron emits a number. An EVE neuron is a latent variable: it carries a prior p(z), infers a posterior
# q(z | x, y), emits a draw from it, and pays for what it knows, a price times KL(q || p), in a local ELBO of its own.
# In Pyro's words: the neurons of a layer are a sample site in a plate.
#
# This notebook goes once through everything: daily weather in, windows, a recipe, training, scores beside a network of
# ordinary neurons, the forecast as a fan, one unit at work, saving and loading, and the draws in ArviZ. It ends with
# what the neurons were good for.

# %%
import os
import tempfile

import arviz_stats
import pandas as pd
import torch
from pyro import poutine

import eve_pyro as ep
from eve_pyro import plots

# %matplotlib inline
smoke_test = "CI" in os.environ  # fewer windows and epochs, where this runs as a test

# %% [markdown]
# ## Data
#
# Four years of Seattle's weather come with the package. A `Panel` is one or more series with their times;
# `ep.Panel.from_file("ETTh1.csv")` reads another from CSV or Parquet, and the code below need not change for it.

# %%
panel = ep.seattle_weather()
weather = pd.DataFrame(dict(zip(panel.names, panel.values, strict=True)), index=panel.index[0])
axes = weather.plot(subplots=True, figsize=(9.5, 4), lw=0.6)

# %% [markdown]
# ## Windows
#
# A window is a context, what a forecast sees, and a future. Series are scaled by their training rows, 70 % of them; the
# next 10 % are for validation, the last 20 % for testing. Here 56 days are to foretell the fortnight that follows.

# %%
CONTEXT, HORIZON = 56, 14
windows = ep.make_windows(panel, CONTEXT, HORIZON)
if smoke_test:
    windows = ep.Splits(*(part.every(8) for part in windows))
print({name: len(part) for name, part in windows._asdict().items()})
context, future = windows.train[:5]  # gathered when asked for: (windows, 1, days), (windows, days)
print(tuple(context.shape), tuple(future.shape))

# %% [markdown]
# ## A recipe
#
# A recipe names the parts: model, prior, guide, readout, objective, training. Any option can be overridden. `factor`,
# the default, takes location and scale of each day from the context, and lets the units say how the days move together.
# Below the units stands one more, the **volatility** unit, with a Gamma prior: it makes a window calm or wild as a
# whole, which gives a day Student's tails. The guide, `conjugate`, is the exact posterior of all of them: with this
# readout it is known in closed form, and nothing has to be learned for it.

# %%
config = ep.load_recipe(
    "factor",
    {
        "context_length": CONTEXT,
        "horizon": HORIZON,
        "units": 32,
        "hidden": 64,
        "features": 128,
        "epochs": 1 if smoke_test else 8,
        "batch_size": 128,
        "learning_rate": 3e-3,
        "progress": False,
    },
)
print(config.guide, config.objective, sep="\n")

# %% [markdown]
# `build` makes a model, a guide for it, and the local ELBO. The twin is the same network with ordinary neurons: every
# unit a point, the same initial weights and the same budget. What EVE can do and the twin cannot is the neurons' doing.
#
# The model is a Pyro program like any other. Windows and units are plates; of each unit the event is a path (here one
# step) of latent dimensions (here one); the fortnight is the event of `y`. A layer is a site, `eve.z` the units and
# `volatility.z` the one below them.

# %%
pairs = {"EVE": ep.build(config), "twin": ep.build(config, twin=True)}
eve = pairs["EVE"]
print(poutine.trace(eve.model).get_trace(context, future).format_shapes())

# %% [markdown]
# ## Training

# %%
fits = {name: ep.fit(pair.model, pair.guide, windows, pair.elbo, config.training) for name, pair in pairs.items()}
print({name: f"{done.seconds:.0f} s, epoch {done.best_epoch + 1} kept" for name, done in fits.items()})
plots.training_curves({name: done.history for name, done in fits.items()})

# %% [markdown]
# ## Scores
#
# On the test windows, beside the twin and two forecasts that everybody can make. Lower is better, except for
# `coverage_90`, which should be 0.9.
#
# - `crps` scores each day by itself;
# - `crps_mean` scores the mean of the fortnight, `energy_score` the whole path: both ask how the days hang together;
# - `joint_log_score` is the negative log density of the path, in nats a value: exact, the units are integrated out.

# %%
scores = {name: ep.evaluate(pair.model, pair.guide, windows.test) for name, pair in pairs.items()}
table = pd.DataFrame(scores | ep.naive_scores(windows.test)).T.astype(float)
table[["mse", "crps", "crps_mean", "energy_score", "joint_log_score", "coverage_90"]].round(4)

# %% [markdown]
# ## The fan
#
# One window of each series, in the units of the data: median, 50 and 90 % bands, and three joint paths. Over them the
# twin's 90 % band, dashed. Day by day EVE's is often the narrower one, for its tails are longer. What differs most is
# the path inside them.

# %%
each = len(windows.test) // len(panel)  # windows stand series by series
shown = windows.test.select([each // 2 + each * number for number in range(len(panel))])
fans = {name: ep.forecast(pair.model, pair.guide, shown) for name, pair in pairs.items()}
plots.fan_chart(fans["EVE"], fans["twin"])

# %% [markdown]
# ## What one unit does
#
# `unit_table` says what each unit pays (`kl`, in nats a window) and how far its posterior moves from its prior
# (`energy`). The bars are those of `eve.z`; what the volatility unit pays stands above the right ones. Under the exact
# posterior every unit is awake, and each says a little.

# %%
table_of_units = ep.unit_table(eve.model, eve.guide, windows.test)
units = table_of_units[table_of_units["site"] == "eve.z"]
plots.unit_bars(table_of_units)

# %% [markdown]
# Take the busiest one by the hand. `traverse` sets it to one value after the other, from three prior deviations below
# to three above, and forecasts. Left, a forecast with its band at both ends and in the middle; right, how days move.

# %%
busiest = int(units.nlargest(1, "kl")["unit"].item())
found = ep.traverse(eve.model, eve.guide, shown, "eve.z", busiest)
plots.traverse_fan(found)

# %%
moved = (found.mean[-1] - found.mean[0])[0]  # from one end to the other, by day
alike = max((moved > 0).float().mean(), (moved < 0).float().mean())
print(f"Unit {busiest} moves {alike:.0%} of the days of the fortnight the same way, by up to {moved.abs().max():.2f}.")

# %% [markdown]
# ## Save, load, forecast
#
# A run is a folder: the configuration as TOML, weights as safetensors, the scaler as JSON. What is loaded scores as
# what was saved, to the last digit, and forecasts what is yet to come: `latest_windows` end where the data end.

# %%
with tempfile.TemporaryDirectory() as folder:
    ep.save_run(folder, config, windows.train.scaler, eve, twin=pairs["twin"])
    print(sorted(os.listdir(folder)))
    run = ep.load_run(folder)
assert ep.evaluate(run.eve.model, run.eve.guide, windows.test) == scores["EVE"]
coming = ep.forecast(run.eve.model, run.eve.guide, ep.latest_windows(panel, CONTEXT, HORIZON, run.scaler))
coming.frame().groupby("unique_id").head(2)

# %%
plots.fan_chart(coming)

# %% [markdown]
# ## Export to ArviZ
#
# `to_datatree` draws from the posterior, the prior and the forecast and labels every axis: chain, draw, window, unit,
# horizon. ArviZ takes the tree as it is, and `tree.to_netcdf("draws.nc")` keeps it. Below, what the volatility unit and
# the three busiest units say of the first window; `posterior_diagnostics.py` goes on from here.

# %%
tree = ep.to_datatree(eve.model, eve.guide, windows.test.at_most(40), num_draws=200)
print(list(tree.children))
three = [f"eve[{unit}]" for unit in units.nlargest(3, "kl")["unit"]]
arviz_stats.summary(tree.sel(window=[0], unit=three), kind="stats")

# %%
plots.unit_forest(tree, most=12)

# %% [markdown]
# ## What the neurons were good for
#
# A question that no single day answers: how warm, or how windy, will the fortnight be on average? Draw paths, average
# each over its days, and take the 5 and 95 % quantiles. Of such intervals 90 % should hold the truth.

# %%
mean, deviation = windows.test.scale()
truth = (mean + deviation * windows.test[:].future).mean(-1)
held = {}
for name, pair in pairs.items():
    paths = ep.forecast(pair.model, pair.guide, windows.test, num_draws=400).paths
    low, high = paths.mean(-1).quantile(torch.tensor([0.05, 0.95]), dim=0)
    held[name] = float(((low <= truth) & (truth <= high)).double().mean())
table["held, fortnight"] = pd.Series(held)
table.loc[["EVE", "twin"], ["crps", "coverage_90", "held, fortnight", "joint_log_score"]].round(3)

# %% [markdown]
# The twin takes its days for independent, so that in their mean the errors seem to cancel. EVE's units know better.

# %%
crps, joint = table["crps"], HORIZON * table["joint_log_score"]
print(f"Single days: CRPS {crps['EVE']:.4f} with EVE's neurons, {crps['twin']:.4f} with the twin's.")
print(
    f"The fortnight's mean: EVE's 90 % intervals hold {held['EVE']:.0%} of the truths, its twin's {held['twin']:.0%}."
)
print(f"The whole path: EVE's density is {joint['twin'] - joint['EVE']:+.1f} nats a window above the twin's.")
if not smoke_test:
    assert crps["EVE"] < 1.01 * crps["twin"]  # the marginals do not pay
    assert held["twin"] + 0.1 < held["EVE"]  # and dependence is what is bought
    assert joint["EVE"] + 1 < joint["twin"]
