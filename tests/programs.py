"""Programs that tests share: plain pairs of functions, one of them with faults to choose from, and a stack."""

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from conftest import CONTEXT, HORIZON, UNITS, B
from torch import nn

from eve_pyro.likelihoods import FactorReadout, NormalReadout
from eve_pyro.models import Stack
from eve_pyro.nets import LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import ContextualPrior, StandardPrior
from eve_pyro.protocols import Batch


def windows(name=""):
    context = torch.randn(B, 2 if name == "path" else 1, CONTEXT)
    return Batch(context, torch.tensor([[0.0], [1], [2], [1]]) if name == "classification" else torch.randn(B, HORIZON))


class Plain:
    """A model and a guide as plain functions; a fault is one argument away."""

    def __init__(
        self,
        prior=lambda: dist.Normal(0.0, 1.0),
        read=lambda features: features.unsqueeze(-2),  # (..., B, H) -> (..., B, 1, H)
        likelihood=lambda loc, noise: dist.Normal(loc, noise).to_event(1),
        observe=lambda future: None if future is None else future.unsqueeze(-2),
        observed="y",
        posterior=dist.Normal,
        sites=("z",),
        plates=(("windows", None, -2), ("units", UNITS, -1)),
    ):
        self.level, self.loadings = nn.Linear(CONTEXT, HORIZON), nn.Linear(UNITS, HORIZON, bias=False)
        self.net = nn.Linear(CONTEXT + HORIZON, 2 * UNITS)
        self.prior, self.read, self.likelihood = prior, read, likelihood
        self.observe, self.observed = observe, observed
        self.posterior, self.sites, self.frames = posterior, sites, plates

    def plates(self, context):
        return [pyro.plate(name, size or len(context), dim=dim) for name, size, dim in self.frames]

    def model(self, context, future=None):
        pyro.module("level", self.level)
        pyro.module("loadings", self.loadings)
        noise = pyro.param("noise", torch.ones(HORIZON), constraint=dist.constraints.positive)
        rows, units = self.plates(context)
        with rows:
            with units:
                z = pyro.sample("z", self.prior())
            loc = self.level(context) + self.read(self.loadings(z))
            pyro.sample(self.observed, self.likelihood(loc, noise), obs=self.observe(future))

    def guide(self, context, future=None):
        if future is None:
            return
        pyro.module("net", self.net)
        loc, raw = self.net(torch.cat([context[:, 0], future], -1)).chunk(2, -1)
        rows, units = self.plates(context)
        with rows, units:
            for site in self.sites:
                pyro.sample(site, self.posterior(loc, raw.exp()))


def observe(context, future=None):
    y = None if future is None else future.unsqueeze(-2)
    return pyro.sample("y", dist.Normal(context[..., -HORIZON:], 1.0).to_event(1), obs=y)


def latent(prior, *plates, with_future_only=False):
    """A model with one latent site in these plates, and its observation in the right one."""

    def model(context, future=None):
        if future is not None or not with_future_only:
            with ExitStack() as stack:
                for frame in plates:
                    stack.enter_context(frame)
                pyro.sample("w", prior)
        with pyro.plate("windows", len(context), dim=-2):
            observe(context, future)

    return model


def encoder():
    return LinearEncoder(CONTEXT, hidden=8, features=12)


def stack(readout):
    layers = [EveLayer(StandardPrior(4), 4, name="low"), EveLayer(ContextualPrior(20, UNITS), UNITS, name="top")]
    factor = readout == "factor"
    head = FactorReadout(layers[-1], 20, HORIZON) if factor else NormalReadout(MLPDecoder(UNITS, 8), HORIZON)
    return Stack(encoder(), layers, head, HORIZON)


def plain_pair(units=3):
    head, encode = nn.Linear(CONTEXT + units, HORIZON), nn.Linear(CONTEXT + HORIZON, 2 * units)

    def model(context, future=None):
        pyro.module("head", head)
        noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", units, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            past = context[:, 0].expand(*z.shape[:-1], -1)
            loc = head(torch.cat([past, z], -1)).unsqueeze(-2)
            pyro.sample("y", dist.Normal(loc, noise).to_event(1), obs=None if future is None else future.unsqueeze(-2))

    def guide(context, future=None):
        if future is None:
            return
        pyro.module("encode", encode)
        loc, log_scale = encode(torch.cat([context[:, 0], future], -1)).chunk(2, -1)
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", units, dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return model, guide
