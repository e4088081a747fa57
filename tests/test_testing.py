"""The conformance suite: what is ours passes, and checking leaves everything as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, UNITS, make_model
from programs import Plain, encoder, observe, stack, windows
from pyro.nn import PyroModule, PyroParam
from torch import nn

from eve_pyro.guides import Autoregressive, Conjugate, ContextMeanField, Flow, FutureAware, LowRank, PointGuide
from eve_pyro.likelihoods import CategoricalReadout, FactorReadout, NormalReadout
from eve_pyro.models import Forecaster, Regression, Trajectory
from eve_pyro.nets import MLPDecoder, MLPEncoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import AR1Prior, ContextualPrior, LearnedPrior, StandardPrior
from eve_pyro.testing import check_guide, check_model

GUIDES = {
    "future_aware": FutureAware,
    "context, scalar": lambda model: ContextMeanField(model, "scalar"),
    "context, input": lambda model: ContextMeanField(model, "input"),
    "point": PointGuide,
    "autoregressive": Autoregressive,
    "low_rank": LowRank,
    "flow": Flow,
    "conjugate": Conjugate,
}


def path():
    layer = EveLayer(AR1Prior(LearnedPrior(UNITS, 2), UNITS), UNITS, 2)
    return Forecaster(encoder(), layer, FactorReadout(layer, 20, HORIZON), HORIZON, path=2)


def held():
    model = make_model()
    model.readout.held = "scales"
    return model


def trajectory(readout):
    marginals = StandardPrior(UNITS) if readout == "factor" else ContextualPrior(20, UNITS)
    layer = EveLayer(AR1Prior(marginals, UNITS, 0.8, learned=True), UNITS)
    heads = {
        "factor": lambda: FactorReadout(layer, 20, HORIZON),
        "normal": lambda: NormalReadout(MLPDecoder(UNITS, 8), HORIZON, num_patches=3),
    }
    return Trajectory(encoder(), layer, heads[readout](), HORIZON, num_patches=3)


def regression(readout):
    layer = EveLayer(StandardPrior(UNITS, 2), UNITS, 2)
    table = MLPEncoder(CONTEXT, 8)
    if readout == "factor":
        return Regression(table, layer, FactorReadout(layer, table.out_features, HORIZON), HORIZON)
    return Regression(table, layer, CategoricalReadout(MLPDecoder(UNITS, 8), 3), 1)


MODELS = {
    "factor": make_model,
    "factor, scales held": held,
    "normal": lambda: make_model("normal", "contextual", latent_dim=3),
    "student_t": lambda: make_model("student_t", "learned"),
    "path": path,
    "trajectory, factor": lambda: trajectory("factor"),
    "trajectory, normal": lambda: trajectory("normal"),
    "stack, factor": lambda: stack("factor"),
    "stack, normal": lambda: stack("normal"),
    "regression": lambda: regression("factor"),
    "classification": lambda: regression("classes"),
}
LINEAR = ("factor", "factor, scales held", "path", "trajectory, factor", "stack, factor", "regression")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_library_passes(name):
    check_model(MODELS[name](), windows(name))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_every_guide_of_the_library_passes_fresh_as_it_is_built(name, guide):
    model = MODELS[name]()
    if guide == "conjugate" and name not in LINEAR:
        with pytest.raises(ValueError, match=r"the guide fails with a future.* linear in its units"):
            check_guide(model, GUIDES[guide](model), windows(name))
    else:
        check_guide(model, GUIDES[guide](model), windows(name))


def test_plain_functions_pass():
    check_model(Plain().model, windows())
    check_guide(Plain().model, Plain().guide, windows())


def test_modules_pyro_modules_and_auxiliary_sites_pass():
    class Linear(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(CONTEXT, UNITS)
            self.scale = PyroParam(torch.ones(UNITS), constraint=dist.constraints.positive)
            self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, context, future=None):
            with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", UNITS, dim=-1):
                base = dist.Normal(self.net(context[:, 0]), self.scale)
                z = pyro.sample("z_base", base, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(z.tanh()))

    check_guide(Plain().model, Linear(), windows())


def test_a_prior_without_moments_passes():
    pair = Plain(prior=lambda: dist.Cauchy(0.0, 1.0))
    check_model(pair.model, windows())
    check_guide(pair.model, pair.guide, windows())


@pytest.mark.parametrize(
    ("context", "future", "message"),
    [
        (torch.randn(2, 1, 3), torch.randn(2, 3), r"B >= 3, not \[2, 1, 3\]"),
        (torch.randn(4, 3), torch.randn(4, 3), r"context \(B, T, L\) and future \(B, H\)"),
        (torch.randn(4, 1, 3), torch.randn(3, 3), r"not \[4, 1, 3\] and \[3, 3\]"),
        (torch.ones(4, 1, 3), torch.randn(4, 3), "the contexts are all alike or not finite: pass windows that differ"),
        (torch.randn(4, 1, 3), torch.full((4, 3), torch.nan), "the futures are all alike or not finite"),
    ],
)
def test_a_batch_that_shows_nothing_is_refused(context, future, message):
    for check in (lambda batch: check_model(observe, batch), lambda batch: check_guide(observe, observe, batch)):
        with pytest.raises(ValueError, match=message):
            check((context, future))


@pytest.mark.parametrize("faulty", [False, True])
def test_random_state_modes_gradients_and_values_stay(faulty):
    model = make_model("normal", "contextual").eval()
    guide = FutureAware(model).train()
    if faulty:
        guide.extra = nn.Parameter(torch.ones(2))
    store = Plain()
    store.guide(*windows())
    store.model(*windows())
    parameters = [*model.parameters(), *guide.parameters(), *dict(pyro.get_param_store().named_parameters()).values()]
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 3.0) if i % 2 else None
    before = [(p.detach().clone(), p.grad if p.grad is None else p.grad.clone()) for p in parameters]
    names, batch = set(pyro.get_param_store().keys()), windows()
    state = torch.get_rng_state()
    check_model(model, batch)
    check_model(store.model, batch)
    check_guide(store.model, store.guide, batch)
    if faulty:
        with pytest.raises(ValueError, match=r"no gradient reaches the parameter 'guide.extra'"):
            check_guide(model, guide, batch)
    else:
        check_guide(model, guide, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == names
    assert not model.training
    assert guide.training
    for parameter, (value, grad) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)
