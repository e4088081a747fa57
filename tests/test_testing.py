"""The conformance suite: what is ours passes, and every fault it knows is caught by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, UNITS, make_model
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from test_testing_models import B, Plain, latent, observe, windows
from torch import nn

from eve_pyro.guides import (
    AmortizedGuide,
    Autoregressive,
    Conjugate,
    ContextMeanField,
    Flow,
    FutureAware,
    Head,
    LowRank,
    PointGuide,
)
from eve_pyro.likelihoods import CategoricalReadout, FactorReadout, NormalReadout
from eve_pyro.models import Forecaster, Regression, Stack, Trajectory
from eve_pyro.nets import LinearEncoder, MLPDecoder, MLPEncoder
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


def encoder():
    return LinearEncoder(CONTEXT, hidden=8, features=12)


def path():
    layer = EveLayer(AR1Prior(LearnedPrior(UNITS, 2), UNITS), UNITS, 2)
    return Forecaster(encoder(), layer, FactorReadout(layer, 20, HORIZON), HORIZON, path=2)


def trajectory(readout):
    marginals = StandardPrior(UNITS) if readout == "factor" else ContextualPrior(20, UNITS)
    layer = EveLayer(AR1Prior(marginals, UNITS, 0.8, learned=True), UNITS)
    heads = {
        "factor": lambda: FactorReadout(layer, 20, HORIZON),
        "normal": lambda: NormalReadout(MLPDecoder(UNITS, 8), HORIZON, num_patches=3),
    }
    return Trajectory(encoder(), layer, heads[readout](), HORIZON, num_patches=3)


def stack(readout):
    layers = [EveLayer(StandardPrior(4), 4, name="low"), EveLayer(ContextualPrior(20, UNITS), UNITS, name="top")]
    factor = readout == "factor"
    head = FactorReadout(layers[-1], 20, HORIZON) if factor else NormalReadout(MLPDecoder(UNITS, 8), HORIZON)
    return Stack(encoder(), layers, head, HORIZON)


def regression(readout):
    layer = EveLayer(StandardPrior(UNITS, 2), UNITS, 2)
    table = MLPEncoder(CONTEXT, 8)
    if readout == "factor":
        return Regression(table, layer, FactorReadout(layer, table.out_features, HORIZON), HORIZON)
    return Regression(table, layer, CategoricalReadout(MLPDecoder(UNITS, 8), 3), 1)


MODELS = {
    "factor": make_model,
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
LINEAR = ("factor", "path", "trajectory, factor", "stack, factor", "regression")


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


class Score(dist.Normal):
    has_rsample = False


GUIDE_FAULTS = {
    "missing": ({"sites": ()}, "does not sample the model's site 'z': add it"),
    "added": ({"sites": ("z", "w")}, "the guide samples 'w', which is no latent site of the model: remove or rename"),
    "score": ({"posterior": Score}, r"'z' \(Score\) has no reparameterised draws"),
    "plate's name": (
        {"plates": (("windows", None, -2), ("neurons", UNITS, -1))},
        r"'z' stands in .*'neurons' \(dim -1, size 5\), the model's in .*: open the model's plates",
    ),
    "plate's dim": (
        {
            "plates": (("windows", None, -1), ("units", UNITS, -2)),
            "posterior": lambda loc, scale: dist.Normal(loc.mT, scale.mT),
        },
        r"'z' stands in plate 'windows' \(dim -1, size 4\) and plate 'units' \(dim -2, size 5\)",
    ),
    "plate's size": (
        {"plates": (("windows", None, -2), ("units", 3, -1))},
        "the guide fails with a future, in plates 'windows' of size 4, 'units' of size 3 .*Shape mismatch",
    ),
    "a smaller layer": (
        {"plates": (("windows", None, -2), ("units", 2, -1)), "posterior": lambda m, s: dist.Normal(m[:, :2], 1.0)},
        r"stands in .*'units' \(dim -1, size 2\), the model's in .*'units' \(dim -1, size 5\)",
    ),
    "event": (
        {"posterior": lambda loc, scale: dist.Normal(loc[..., None], scale[..., None]).to_event(1)},
        r"'z' has batch \(4, 5\) and event \(1,\), the model's \(4, 5\) and \(\): reshape it",
    ),
    "negative scale": (
        {"posterior": lambda loc, scale: dist.Normal(loc, -scale)},
        "'z' has a scale that is not positive: use exp or softplus",
    ),
    "infinite location": (
        {"posterior": lambda loc, scale: dist.Normal(loc / 0, scale)},
        "'z' has a location or draws that are not finite",
    ),
    "infinite loss": (
        {"posterior": lambda loc, scale: dist.Normal(loc, 1e-30 * scale)},
        "the loss is not finite, for the KL of site 'z' is not",
    ),
    "detached": (
        {"posterior": lambda loc, scale: dist.Normal(loc.detach(), scale.detach())},
        r"no gradient reaches the parameter 'net\$\$\$weight'.*or freeze it",
    ),
    "unread": (
        {"posterior": lambda loc, scale: (pyro.param("unread", torch.ones(1)), dist.Normal(loc, scale))[1]},
        "no gradient reaches the parameter 'unread'",
    ),
    "infinite gradient": (
        {"posterior": lambda loc, scale: dist.Normal(loc + (0 * loc).abs().sqrt(), scale)},
        r"the gradient of the parameter 'net\$\$\$weight' is not finite",
    ),
    "batch size baked in": (
        {"posterior": lambda loc, scale: dist.Normal(loc + torch.zeros(B, 1), scale)},
        r"the guide fails on 2 of 4 windows alone, in plates 'windows' of size 2.*: take the number of windows",
    ),
    "plate's size baked in": (
        {
            "plates": (("windows", B, -2), ("units", UNITS, -1)),
            "posterior": lambda loc, scale: dist.Normal(loc[0], 1.0),
        },
        r"'z' has batch \(4, 5\) on 4 windows together and \(4, 5\) on 2 of 4 windows alone",
    ),
    "neighbours": (
        {"posterior": lambda loc, scale: dist.Normal(loc - loc.mean(0), scale)},
        "'z' is distributed otherwise on 4 windows together than on 2 of 4 windows alone.*none hear of its neighbours",
    ),
    "by place": (
        {"posterior": lambda loc, scale: dist.Normal(loc + torch.arange(B)[: len(loc), None], scale)},
        "'z' is distributed otherwise on 4 windows together than on 2 of 4 windows alone",
    ),
    "not amortised": (
        {"posterior": lambda loc, scale: dist.Normal(0 * loc + pyro.param("loc", torch.zeros(UNITS)), 1.0)},
        "'z' is the same in every window: let it read context or future",
    ),
}


@pytest.mark.parametrize("fault", GUIDE_FAULTS)
def test_a_guides_fault_is_named(fault):
    options, message = GUIDE_FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        check_guide(Plain().model, Plain(**options).guide, windows())


def test_draws_outside_the_priors_support_are_named():
    pair = Plain(prior=lambda: dist.HalfNormal(1.0))
    with pytest.raises(ValueError, match=r"LocalELBO\(num_particles=2, sample_kl=True\) fails .*site 'z'.* support"):
        check_guide(pair.model, pair.guide, windows())


def two_layers():
    """A guide of two sites over a stack; ``alone`` is what it samples without a future."""
    model = stack("factor")

    def guide(alone, mixed=False):
        class Layer(Head):
            def __init__(self, layer):
                super().__init__(layer)
                self.net = nn.Linear(20, layer.num_units)

            def forward(self, state, evidence):
                if mixed:  # the first draw alone is read
                    state = state.reshape(-1, *state.shape[-3:])[0]
                return dist.Normal(self.by_unit(self.net(state)), 1.0).to_event(2)

        full = AmortizedGuide(model, Layer)

        def program(context, future=None):
            pyro.module("full", full)
            hidden = () if future is not None else {"low.z", "top.z"} - set(alone)
            with pyro.poutine.block(hide=hidden):
                full(context, future)

        return program

    return model, guide


@pytest.mark.parametrize("alone", [(), ("low.z",), ("low.z", "top.z")])
def test_a_leading_part_of_the_sites_without_a_future_passes(alone):
    model, guide = two_layers()
    check_guide(model, guide(alone), windows())


def test_what_a_guide_may_not_do_without_a_future_is_named():
    model, guide = two_layers()
    with pytest.raises(ValueError, match=r"without a future the guide samples \['top.z'\].*none or the first of"):
        check_guide(model, guide(("top.z",)), windows())
    pair = Plain()
    with pytest.raises(ValueError, match=r"the guide fails without a future .*missing 1 required positional"):
        check_guide(pair.model, lambda context, future: pair.guide(context, future), windows())


def test_a_guide_that_mixes_draws_is_named():
    model, guide = two_layers()
    with pytest.raises(ValueError, match=r"'top.z' is distributed otherwise under a plate of 2 draws.*index dims"):
        check_guide(model, guide((), mixed=True), windows())


def test_an_autoguide_keeps_a_posterior_by_place():
    pair = Plain()
    guide = AutoNormal(pyro.poutine.block(pair.model, hide=["y"]))
    with pytest.raises(ValueError, match=r"the guide fails on 2 of 4 windows alone, in plates .*'windows' of size 4 "):
        check_guide(pair.model, guide, windows())


def test_a_guide_is_not_blamed_for_its_models_faults():
    with pytest.raises(ValueError, match="the model's site 'w' stands in no plate"):
        check_guide(latent(dist.Normal(0.0, 1.0)), Plain().guide, windows())


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
