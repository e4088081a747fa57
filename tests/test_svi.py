"""The local ELBO as the loss of Pyro's SVI, and where SVI would silently train nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import UNITS, B, make_pair
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import nn

from eve_pyro.infer.local_elbo import LocalELBO


def svi(model, guide):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=LocalELBO())


def test_svi_trains_plain_modules_and_agrees_with_the_torch_loop(batch):
    model, guide = make_pair()
    before = {name: p.clone() for name, p in guide.named_parameters()}
    elbo = svi(model, guide)
    first = elbo.evaluate_loss(*batch)
    for _ in range(30):
        elbo.step(*batch)
    assert elbo.evaluate_loss(*batch) < first
    assert all((p != before[name]).any() for name, p in guide.named_parameters())


def test_svi_trains_functions_that_register_their_modules(batch):
    model, guide = make_pair()

    def plain_model(context, future=None):
        pyro.module("m", model)
        return model(context, future)

    def plain_guide(context, future=None):
        pyro.module("g", guide)
        return guide(context, future)

    loc = guide.heads["eve"].loc.weight
    before = loc.clone()
    svi(plain_model, plain_guide).step(*batch)
    assert (loc != before).any()


def test_svi_trains_pyro_modules():
    class Pair(PyroModule):
        def __init__(self, observed):
            super().__init__()
            self.observed = observed
            if not observed:
                self.loc = nn.Parameter(torch.zeros(()))

        def forward(self):
            with pyro.plate("windows", B, dim=-2):
                with pyro.plate("units", UNITS, dim=-1):
                    z = pyro.sample("z", dist.Normal(0.0 if self.observed else self.loc, 1.0))
                if self.observed:
                    pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=5 * torch.ones(B, 1))

    guide = Pair(observed=False)
    training = svi(Pair(observed=True), guide)
    for _ in range(5):
        training.step()
    assert float(guide.loc) > 0
    with pytest.raises(ValueError, match="param store holds another parameter 'loc'"):
        svi(Pair(observed=True), Pair(observed=False)).step()


def test_svi_says_when_it_would_train_nothing(batch):
    model, guide = make_pair()
    with pytest.raises(ValueError, match="SVI would train nothing"):
        svi(lambda *args: model(*args), lambda *args: guide(*args)).step(*batch)


def test_svi_says_when_the_store_holds_another_pairs_parameters(batch):
    svi(*make_pair()).step(*batch)
    with pytest.raises(ValueError, match=r"SVI would not train \d+ parameters of the model .*clear_param_store"):
        svi(*make_pair()).step(*batch)
