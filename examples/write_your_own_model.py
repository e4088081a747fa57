# %% [markdown]
# # Write your own model
#
# A forecaster here is a Pyro program: a `model`, a `guide` of the same signature, and an ELBO that reads their traces.
# No base class is needed. This notebook writes both as plain functions, with a likelihood that the library does not
# have, has them checked, trains and scores them, and then says the same thing again with the library's parts.
#
# The series is Seattle's wind, daily. Wind is never negative and its gusts are all on one side: a normal likelihood
# gets both wrong.

# %%
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform
from torch import nn

import eve_pyro as ep
from eve_pyro import plots
from eve_pyro.guides import AmortizedGuide, Conjugate, Head
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.models import Forecaster
from eve_pyro.nets import LinearEncoder, NoNorm
from eve_pyro.priors import StandardPrior, VolatilityPrior
from eve_pyro.protocols import Information

# %matplotlib inline
pyro.clear_param_store()
pyro.set_rng_seed(0)

CONTEXT, HORIZON, UNITS = 28, 7, 4

# %% [markdown]
# ## The data, and the scale on which it is normal
#
# Windows come standardised: a model sees `(wind - mean) / deviation`. The logarithm of wind is less skewed than wind
# itself, and going back from it never leads below zero. A chain of Pyro's transforms does both steps, and a
# `TransformedDistribution` keeps the Jacobian, so that densities of different likelihoods can be compared.

# %%
weather = ep.seattle_weather()
wind = weather.select("wind")
windows = ep.make_windows(wind, CONTEXT, HORIZON)

mean, deviation = windows.train.scaler.mean["wind"], windows.train.scaler.deviation["wind"]
days = mean + deviation * windows.train[:].future[:, 0]  # m/s, one a training window


def skewness(values):
    return float(((values - values.mean()) / values.std()).pow(3).mean())


assert abs(skewness(days.log())) < skewness(days)
print(f"{len(windows.train)} training windows; skewness {skewness(days):.2f}, of the log {skewness(days.log()):.2f}")

LOG = ComposeTransform(  # standard log wind -> log wind -> wind -> standardised wind
    [
        AffineTransform(float(days.log().mean()), float(days.log().std())),
        ExpTransform(),
        AffineTransform(-mean / deviation, 1 / deviation),
    ]
)

# %% [markdown]
# ## The model
#
# A linear map of the past gives each day's level. Four units, standard normal, share the mood of the week: the loadings
# say how each moves the seven days together. Windows are a plate at dim -2, units a plate at dim -1, the days of the
# horizon an event; `future=None` means "forecast".

# %%
level, loadings = nn.Linear(CONTEXT, HORIZON), nn.Linear(UNITS, HORIZON, bias=False)
nn.init.zeros_(level.weight)  # training starts from the average week
nn.init.zeros_(level.bias)


def model(context, future=None):  # (B, 1, 28), (B, 7)
    pyro.module("level", level)
    pyro.module("loadings", loadings)
    noise = pyro.param("noise", torch.full((HORIZON,), 0.8), constraint=constraints.positive)
    with pyro.plate("windows", len(context), dim=-2):
        with pyro.plate("units", UNITS, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))  # (..., B, 4)
        loc = level(LOG.inv(context)) + loadings(z).unsqueeze(-2)  # (..., B, 1, 7)
        wind_of_the_week = dist.TransformedDistribution(dist.Normal(loc, noise), LOG).to_event(1)
        observed = None if future is None else future.unsqueeze(-2)
        return pyro.sample("y", wind_of_the_week, obs=observed)


# %% [markdown]
# ## The guide
#
# An amortised posterior: a small net maps how far the week lies from what the model foretells to a normal for each
# unit. It needs the future, so at forecast time it samples nothing and the prior fills in.

# %%
net = nn.Sequential(nn.Linear(HORIZON, 32), nn.Tanh(), nn.Linear(32, 2 * UNITS))


def guide(context, future=None):
    if future is None:
        return
    pyro.module("net", net)
    surprise = LOG.inv(future) - level(LOG.inv(context[:, 0]))
    loc, log_scale = net(surprise).chunk(2, -1)
    with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", UNITS, dim=-1):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))


# %% [markdown]
# Before anything is trained, look at the shapes, left of the bar the batch (windows, units), right of it the event:

# %%
batch = windows.train[:5]
print(poutine.trace(model).get_trace(*batch).format_shapes())
print()
print(poutine.trace(guide).get_trace(*batch).format_shapes())

# %% [markdown]
# ## Have them checked
#
# `check_model` and `check_guide` run the pair on a few windows, with the future and without, together and alone, under
# draws and with gradients. They return nothing, or raise with the first fault and how to mend it. Two faults that
# everybody commits once: a plate forgotten, and a batch size baked in.

# %%
ep.check_model(model, batch)
ep.check_guide(model, guide, batch)


def forgets_the_units(context, future=None):
    if future is not None:
        loc, log_scale = net(LOG.inv(future)).chunk(2, -1)
        with pyro.plate("windows", len(context), dim=-2):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def bakes_in_the_batch(context, future=None):
    if future is not None:
        loc, log_scale = net(LOG.inv(future)).chunk(2, -1)
        with pyro.plate("windows", 5, dim=-2), pyro.plate("units", UNITS, dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


for wrong in (forgets_the_units, bakes_in_the_batch):
    try:
        ep.check_guide(model, wrong, batch)
    except ValueError as error:
        print(f"{wrong.__name__}: {error}\n")

# %% [markdown]
# ## Train
#
# `LocalELBO` is one of Pyro's ELBOs, so `SVI` takes it. After a step, `elbo.terms` holds what each unit paid.

# %%
elbo = ep.LocalELBO()
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=elbo)
loss = svi.step(*batch)
print(f"loss of {len(batch.context)} windows: {loss:.1f} nats")
print("KL by unit:", [round(kl, 3) for kl in elbo.terms.units["z"].kl.mean(0).tolist()])

# %% [markdown]
# `ep.fit` does the rest: batches, a schedule, validation, the best epoch kept. Every unit has a price of its own for a
# nat of KL. Here the fourth pays four times what the others pay; what becomes of it stands in the table by unit.

# %%
training = ep.Training(epochs=8, batch_size=128, learning_rate=1e-2, monitor="loss", progress=False)
fitted = ep.fit(model, guide, windows, ep.LocalELBO(beta=torch.tensor([1.0, 1.0, 1.0, 4.0])), training)
print(fitted.history[["epoch", "train_loss", "train_kl", "val_loss", "val_crps"]].round(3).to_string(index=False))

units = ep.unit_table(model, guide, windows.test)
print(units[["unit", "kl", "energy", "scale"]].round(3).to_string(index=False))
others = units["kl"][:3].mean()
print(f"at four times the price, unit 3 carries {units['kl'][3]:.3f} nats a week, the others {others:.3f} on average")

# %% [markdown]
# ## Forecast and score
#
# Any likelihood with a density works. For one without closed forms CRPS and quantiles come from draws, and the joint
# log score is an importance-sampling estimate through the guide, with its standard error. The naive forecasts are the
# ones to beat.

# %%
scores = {"functions": ep.evaluate(model, guide, windows.test)} | ep.naive_scores(windows.test)
columns = ["mae", "crps", "energy_score", "joint_log_score", "joint_log_score_se"]
print(pd.DataFrame(scores).T[columns].astype(float).round(4).to_string())

# %% [markdown]
# The fan of three weeks. The bands are skewed like the wind: narrow below the median, wide above.

# %%
fan = ep.forecast(model, guide, windows.test.select([20, 120, 220]))
median = fan.quantiles[fan.levels.index(0.5)]
above, below = fan.quantiles[-1] - median, median - fan.quantiles[0]
print(f"the 90 % band reaches {above.mean():.2f} m/s above the median and {below.mean():.2f} below")
plots.fan_chart(fan)

# %% [markdown]
# ## The same from the library's parts
#
# A `Forecaster` is an encoder, a layer of units and a readout. A readout is any module from `(activity, state)` to a
# distribution. This one has the two methods that are welcome: `surprise`, which guides look at, and `information`, what
# a surprise, being linear in the units, says of them. The scale is an argument: `LOG`, or none for plain normals.


# %%
class Scaled(nn.Module):
    """The state is the context on another scale."""

    out_features = CONTEXT

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, context):
        return self.scale.inv(context)


class ScaledReadout(nn.Module):
    """A normal on another scale, its location linear in the past and in the units."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.loc, self.loadings = scale, nn.Linear(CONTEXT, HORIZON), nn.Linear(UNITS, HORIZON, bias=False)
        self.log_noise = nn.Parameter(torch.full((HORIZON,), -0.2))
        nn.init.zeros_(self.loc.weight)
        nn.init.zeros_(self.loc.bias)

    def forward(self, activity, state):
        loc = self.loc(state) + self.loadings(activity)
        return dist.TransformedDistribution(dist.Normal(loc, self.log_noise.exp()), self.scale).to_event(1)

    def surprise(self, target, state):
        return self.scale.inv(target) - self.loc(state[:, -1])

    def information(self, surprise, state):
        loadings = self.loadings.weight[..., None].expand(len(state), -1, -1, -1)  # (B, H, N, P), one step: P = 1
        return Information.of_linear(surprise, loadings, self.log_noise.exp().expand(len(state), -1))


# %% [markdown]
# The guide takes a head of one's own. Given how far the week lies from the forecast, the exact posterior's mean is
# linear and its scale the same for every week; so this head is a matrix and a vector:


# %%
class LinearHead(Head):
    """q(z | x, y) = Normal(W surprise, scale^2)."""

    def __init__(self, layer):
        super().__init__(layer)
        self.loc = nn.Linear(HORIZON, self.size, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(self.size))

    def forward(self, state, evidence):
        if evidence.surprise is None:
            return None
        loc = self.loc(evidence.surprise).unsqueeze(-2)  # (B, T, N K), here T = K = 1
        return dist.Normal(self.by_unit(loc), self.by_unit(self.log_scale.exp().expand_as(loc))).to_event(2)


# %% [markdown]
# Ten lines put them together. Because the readout says that it is linear, the `Conjugate` guide, which has no network
# and is the exact posterior, fits too. Two more rows for comparison: the same program with plain normals, so that the
# likelihood is all that changes, and the library's default forecaster, which has another encoder, another readout and
# a volatility unit below its units.


# %%
def own(scale):
    layer = ep.EveLayer(StandardPrior(UNITS), UNITS)
    return Forecaster(Scaled(scale), layer, ScaledReadout(scale), HORIZON, NoNorm())


def default():
    layer, encoder = ep.EveLayer(StandardPrior(UNITS), UNITS), LinearEncoder(CONTEXT, hidden=32, features=32)
    volatility = ep.EveLayer(VolatilityPrior(encoder.out_features), 1, name="volatility")
    readout = FactorReadout(layer, encoder.out_features, HORIZON)
    return Forecaster(encoder, layer, readout, HORIZON, volatility=volatility)


pairs = {}
for name, model_of, guide_of in (
    ("log, own head", lambda: own(LOG), lambda model: AmortizedGuide(model, LinearHead)),
    ("log, conjugate", lambda: own(LOG), Conjugate),
    ("plain, conjugate", lambda: own(ComposeTransform([])), Conjugate),
    ("default, conjugate", default, Conjugate),
):
    torch.manual_seed(0)
    program = model_of()
    posterior = guide_of(program)
    ep.check_model(program, batch)
    ep.check_guide(program, posterior, batch)
    ep.fit(program, posterior, windows, ep.LocalELBO(), training)
    pairs[name] = program, posterior
    scores[name] = ep.evaluate(program, posterior, windows.test)

# %% [markdown]
# ## What came of it
#
# `below 0` is the share of drawn values that are a negative wind. Under the exact posterior every importance weight is
# the same, so there the joint log score has no standard error; the default's is closed form.

# %%
for name, pair in (("functions", (model, guide)), *pairs.items()):
    scores[name]["below 0"] = float((ep.forecast(*pair, windows.test).paths < 0).float().mean())
table = pd.DataFrame(scores).T.astype(float)[[*columns, "below 0"]].sort_values("joint_log_score")
print(table.round(4).to_string())

# %% [markdown]
# One comparison with an error bar: the joint log score of the log scale against plain normals, everything else the
# same, on weeks that do not overlap.

# %%
weeks = windows.test.every(HORIZON)
log_weeks, plain_weeks = (
    HORIZON * ep.window_scores(*pairs[name], weeks)["joint_log_score"]
    for name in ("log, conjugate", "plain, conjugate")
)
gain = plain_weeks - log_weeks
error = float(gain.std() / len(gain) ** 0.5)
sure = "more than two standard errors" if abs(gain.mean()) > 2 * error else "within two standard errors"
print(f"The log scale gains {gain.mean():+.2f} +- {error:.2f} nats a week over plain normals ({sure} from 0), and")
crps = table["crps"]
print(f"its CRPS is {crps['log, conjugate']:.3f} against {crps['plain, conjugate']:.3f}.")
negative = table["below 0"]
print(
    f"Negative winds: {negative['plain, conjugate']:.2%} of the values drawn, against {negative['log, conjugate']:.2%}."
)
joint = table["joint_log_score"]
print(
    f"The same program under other guides: joint log score {joint['log, own head']:.3f} trained with the head of one's "
    f"own, {joint['log, conjugate']:.3f} with the exact posterior."
)
print(f"Best joint log score of all: {joint.idxmin()} ({joint.min():.3f}).")
