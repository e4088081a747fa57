# %% [markdown]
# # Swap guides
#
# A model says what the units are, a guide says how they are inferred. Here the model stays: one forecaster with the
# factor readout, the same initial weights, data, objective and budget. Only the guide changes, one argument. The
# question is what a guide decides: the forecast, its density, or which units wake.
#
# Under the factor readout the marginals are normals from the context alone; the units carry how the days of the horizon
# move together. The readout is linear in its units, so the exact posterior is known, and every guide can be measured
# against it. (It is the guide of the recipe `factor`, whose volatility unit is left out here.)

# %%
from functools import partial

import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import Trace_ELBO

import eve_pyro as ep
from eve_pyro import plots
from eve_pyro.guides import Autoregressive, Conjugate, ContextMeanField, Flow, FutureAware, LowRank
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.models import Forecaster, Trajectory
from eve_pyro.nets import LinearEncoder
from eve_pyro.priors import AR1Prior, StandardPrior

# %matplotlib inline
pyro.clear_param_store()

CONTEXT, HORIZON, UNITS, AWAKE = 28, 14, 8, 0.05  # nats a window
windows = ep.make_windows(ep.seattle_weather(), CONTEXT, HORIZON)


def make_model():
    torch.manual_seed(0)  # every guide meets the same weights
    encoder, layer = LinearEncoder(CONTEXT, hidden=32, features=32), ep.EveLayer(StandardPrior(UNITS), UNITS)
    return Forecaster(encoder, layer, FactorReadout(layer, encoder.out_features, HORIZON), HORIZON)


# %% [markdown]
# The program, as Pyro sees it: windows and units are plates, a path step and a latent dimension are the event of each
# unit, the horizon is the event of `y`.

# %%
batch = windows.train[:5]
print(poutine.trace(make_model()).get_trace(*batch).format_shapes())

# %% [markdown]
# ## The guides
#
# | guide | posterior |
# |---|---|
# | `ContextMeanField` | independent normals, sees the past only: forecasts draw from it |
# | `FutureAware` | independent normals, sees the future too |
# | `LowRank` | a joint normal, diagonal plus low rank across units |
# | `Flow` | a normalizing flow of the independent normals; its KL comes from draws |
# | `Conjugate` | the exact posterior through the readout's own loadings, no network |
#
# Four epochs keep this notebook short; set more and see the gaps of the table below narrow.

# %%
GUIDES = {
    "ContextMeanField": ContextMeanField,
    "FutureAware": partial(FutureAware, hidden=64),
    "LowRank": partial(LowRank, rank=4, hidden=64),
    "Flow": partial(Flow, hidden=64),
    "Conjugate": Conjugate,
}
training = ep.Training(
    epochs=4, batch_size=256, learning_rate=2e-2, monitor="last", validation_windows=50, progress=False
)

pairs = {}
for name, guide_of in GUIDES.items():
    model = make_model()
    guide = guide_of(model)
    ep.fit(model, guide, windows, ep.LocalELBO(sample_kl=True), training)  # drawn where no closed form
    pairs[name] = model, guide

# %% [markdown]
# ## The table
#
# - `crps` and `joint_log_score` (both lower is better) come in closed form: a forecast integrates the units out.
# - `awake` counts the units that pay more than 0.05 nats a window for their KL. `exact awake` counts them under the
#   exact posterior of the *same* trained model: `Conjugate` has no parameters, so it can be laid over any of these.
# - `ELBO` is Pyro's own `Trace_ELBO`, a value; `gap` is what it lacks to the exact log density under the prior: the
#   KL from the guide to the exact posterior. (A guide that samples nothing forecasts from the prior.)


# %%
def from_the_prior(context, future=None):
    pass


def elbo_a_value(model, guide, part):
    with torch.no_grad():
        torch.manual_seed(0)
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=2)
        loss = elbo.loss(model, guide, *part[:])
    return -loss / (len(part) * HORIZON)


def awake_units(units):
    return (units["kl"] > AWAKE).sum()


rows, by_unit = {}, {}
for name, (model, guide) in pairs.items():
    by_unit[name] = ep.unit_table(model, guide, windows.test, ep.LocalELBO(num_particles=4, sample_kl=True))
    scores = ep.evaluate(model, guide, windows.test, num_draws=20)
    density = -ep.evaluate(model, from_the_prior, windows.test, num_draws=1)["joint_log_score"]
    elbo = elbo_a_value(model, guide, windows.test)
    rows[name] = {
        "crps": scores["crps"],
        "joint_log_score": scores["joint_log_score"],
        "awake": awake_units(by_unit[name]),
        "exact awake": awake_units(ep.unit_table(model, Conjugate(model), windows.test)),
        "KL": by_unit[name]["kl"].sum(),
        "ELBO": elbo,
        "log density": density,
        "gap": density - elbo,
    }
table = pd.DataFrame(rows).T.astype({"awake": int, "exact awake": int})
print(table.round(4).to_string())
assert (table["gap"] > -1e-4).all()  # an ELBO is a bound
assert abs(table["gap"]["Conjugate"]) < 1e-4  # and with the exact posterior it is the log density

# %% [markdown]
# KL by unit, the units in order of their KL: the mean field first, the exact posterior after it.

# %%
plots.unit_bars(by_unit["FutureAware"])

# %%
plots.unit_bars(by_unit["Conjugate"])

# %% [markdown]
# ## Inside one window
#
# `guide.posterior(context, future)` is the distribution itself. Take one window of the test set and the model that the
# mean field has trained: what the mean field says of its units, beside the exact posterior of the same units.

# %%
context, future = windows.test[[300]]


def posterior_of(guide):
    with torch.no_grad():
        return guide.posterior(context, future)  # batch (1, N), event (T, K) = (1, 1)


model, guide = pairs["FutureAware"]
mean_field, exact = posterior_of(guide), posterior_of(Conjugate(model))
print(
    pd.DataFrame(
        {
            "mean, mean field": mean_field.mean.flatten(),
            "mean, exact": exact.mean.flatten(),
            "deviation, mean field": mean_field.stddev.flatten(),
            "deviation, exact": exact.stddev.flatten(),
        }
    )
    .round(2)
    .to_string()
)

# %% [markdown]
# What no mean field can say is how the units lean on each other once the future is seen. From draws of the exact
# posterior, under the model that each guide has trained:


# %%
def correlation(model):
    torch.manual_seed(0)
    draws = posterior_of(Conjugate(model)).sample(torch.Size([4000]))  # (S, 1, N, 1, 1)
    return torch.corrcoef(draws.flatten(1).T)


def correlation_maps(matrices):
    figure = Figure(figsize=(9.5, 4), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=True):
        image = ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=f"trained with {name}", xlabel="unit", ylabel="unit")
    figure.colorbar(image, ax=axes, label="posterior correlation")
    return figure


matrices = {name: correlation(model) for name, (model, _) in pairs.items()}
off_diagonal = ~torch.eye(UNITS, dtype=torch.bool)
leaning = pd.Series({name: float(matrix[off_diagonal].abs().max()) for name, matrix in matrices.items()})
print("largest correlation between two units in the exact posterior, by the guide that trained the model:")
print(leaning.round(2).to_string())

# %%
correlation_maps({name: matrices[name] for name in ("FutureAware", "Conjugate")})

# %% [markdown]
# ## Every draw has a weight
#
# The log weight log p(y, z) - log q(z) of a draw is what an ELBO averages. Two traces give it, the guide's, and the
# model's replayed against it. By and large, the better the guide, the less it varies from draw to draw; for the exact
# posterior it does not vary at all, for it is log p(y). One window says little, so here every tenth one draws at once:
# the weight of all is the sum of theirs, and the deviation below that of one, as a root mean square.

# %%
part = windows.test.every(10)


def log_weight(model, guide):
    guide_trace = poutine.trace(guide).get_trace(*part[:])
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*part[:])
    return float(model_trace.log_prob_sum() - guide_trace.log_prob_sum())


weights = {}
with torch.no_grad():
    torch.manual_seed(0)
    for name, pair in pairs.items():
        weights[name] = np.array([log_weight(*pair) for _ in range(200)])
spread = pd.DataFrame(
    {
        "log weight a window": {name: values.mean() / len(part) for name, values in weights.items()},
        "deviation over draws": {name: values.std() / len(part) ** 0.5 for name, values in weights.items()},
    }
)
print(spread.round(3).to_string())
assert spread.loc["Conjugate", "deviation over draws"] < 1e-3

# %% [markdown]
# ## A guide for paths
#
# On a path of one step `Autoregressive` is `FutureAware`. In a `Trajectory` the units take a step for each patch of the
# horizon, under an AR(1) prior, and there the two differ: the chain conditions each step on the one before, while
# independent normals pay for denying the persistence that the prior asserts.


# %%
def make_trajectory():
    torch.manual_seed(0)
    encoder = LinearEncoder(CONTEXT, hidden=32, features=32)
    layer = ep.EveLayer(AR1Prior(StandardPrior(UNITS), UNITS, phi=0.8), UNITS)
    return Trajectory(encoder, layer, FactorReadout(layer, encoder.out_features, HORIZON), HORIZON, num_patches=2)


paths = {}
for guide_of in (FutureAware, Autoregressive):
    model = make_trajectory()
    guide = guide_of(model, hidden=64)
    ep.fit(model, guide, windows, ep.LocalELBO(), training)
    score = ep.evaluate(model, guide, windows.test, num_draws=20)["joint_log_score"]
    elbo = elbo_a_value(model, guide, windows.test)
    paths[guide_of.__name__] = {
        "joint_log_score": score,
        "awake": awake_units(ep.unit_table(model, guide, windows.test)),
        "exact awake": awake_units(ep.unit_table(model, Conjugate(model), windows.test)),
        "gap": -score - elbo,
    }
paths = pd.DataFrame(paths).T.astype({"awake": int, "exact awake": int})
print(paths.round(4).to_string())

# %% [markdown]
# ## What the guide decides

# %%
crps, joint, gap, exact_awake = (table[column] for column in ("crps", "joint_log_score", "gap", "exact awake"))
print(f"Marginals: CRPS lies between {crps.min():.4f} and {crps.max():.4f}, whichever the guide.")
print(
    f"Dependence: the joint log score goes from {joint.min():.3f} ({joint.idxmin()}) to {joint.max():.3f} "
    f"({joint.idxmax()}), a difference of {HORIZON * np.ptp(joint):.1f} nats a window."
)
fewest, most = exact_awake.idxmin(), exact_awake.idxmax()
print(
    f"Units: in the model trained with {fewest}, {exact_awake[fewest]} of {UNITS} wake under the exact posterior, in "
    f"that trained with {most} {exact_awake[most]}; the rank correlation of that count with the joint log score is "
    f"{exact_awake.rank().corr(joint.rank()):+.2f} over {len(table)} guides."
)
for name in table.index[table["awake"] > exact_awake + 1]:
    print(f"{name} pays for {table['awake'][name]} units, of which the exact posterior wakes {exact_awake[name]}.")
nats = table["KL"]
print(
    f"Awake is not all: the units that FutureAware trained carry {nats['FutureAware']:.1f} nats a window and lean on "
    f"each other by up to {leaning['FutureAware']:.2f}, those that Conjugate trained {nats['Conjugate']:.1f} and up to "
    f"{leaning['Conjugate']:.2f}."
)
if leaning["Conjugate"] > leaning["FutureAware"]:
    print("So training bends the model towards what the guide can follow: for a mean field, units that stand apart.")

# %% [markdown]
# The counts above are those of the exact posterior, so they tell what the *model* has become, whoever reads it. And
# does a tighter bound mean a better model?

# %%
learned = table.drop("Conjugate")
tightest, best = learned["gap"].idxmin(), learned["joint_log_score"].idxmin()
same = "the same guide has" if tightest == best else f"but {best} has"
print(
    f"Without Conjugate, {tightest} has the smallest gap ({gap[tightest]:.4f} nats a value), {same} the best joint log "
    f"score ({joint[best]:.3f})."
)
chain, independent = paths.loc["Autoregressive"], paths.loc["FutureAware"]
better = "better" if chain["joint_log_score"] < independent["joint_log_score"] else "worse"
print(
    f"On the path the chain's gap is {chain['gap']:.3f}, that of independent normals {independent['gap']:.3f}; its "
    f"joint log score is {better} ({chain['joint_log_score']:.3f} to {independent['joint_log_score']:.3f}), with "
    f"{chain['exact awake']:.0f} units awake to {independent['exact awake']:.0f}."
)
