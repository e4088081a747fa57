"""One conformance suite that every guide passes, and what is special about each."""

import pyro
import pytest
import torch
from conftest import CONTEXT, GUIDES, HORIZON, UNITS, make_model, shaken
from pyro import poutine
from torch import nn

from eve_pyro.guides import AmortizedGuide, ContextMeanField, FutureAware, Head, PointGuide
from eve_pyro.infer.local_elbo import LocalELBO

BUILDERS = {
    "future_aware": FutureAware,
    "context, scalar": lambda model: ContextMeanField(model, "scalar"),
    "context, unit": lambda model: ContextMeanField(model, "unit"),
    "context, input": lambda model: ContextMeanField(model, "input"),
    "delta": PointGuide,
}
MODELS = {
    "factor": {},
    "conditional": {"readout": "normal", "prior": "contextual"},
    "student_t": {"readout": "student_t", "prior": "learned"},
}


@pytest.fixture(params=MODELS)
def model(request):
    return shaken(make_model(latent_dim=2, **MODELS[request.param]), 0.05)


@pytest.fixture(params=BUILDERS)
def guide(request, model):
    return shaken(BUILDERS[request.param](model), 0.05)


def batch(size):
    return torch.randn(size, 1, CONTEXT), torch.randn(size, HORIZON)


@pytest.mark.parametrize("size", [1, 5])
def test_same_sites_plates_and_shapes_as_the_model_at_any_batch_size(model, guide, size):
    mine = poutine.trace(guide).get_trace(*batch(size)).nodes["eve.z"]
    theirs = poutine.trace(model).get_trace(*batch(size)).nodes["eve.z"]
    assert mine["value"].shape == theirs["value"].shape == (size, UNITS, 1, 2)
    frames = [{(f.name, f.dim, f.size) for f in site["cond_indep_stack"]} for site in (mine, theirs)]
    assert frames[0] == frames[1]


def test_the_loss_is_finite_and_reaches_every_parameter_of_the_guide(model, guide):
    loss = LocalELBO(num_particles=2).differentiable_loss(model, guide, *batch(5))
    loss.backward()
    assert torch.isfinite(loss)
    silent = [name for name, p in guide.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_it_is_amortised_and_its_parameters_are_its_own(model, guide):
    context, future = batch(5)
    fn = poutine.trace(guide).get_trace(context, future).nodes["eve.z"]["fn"]
    assert not torch.allclose(fn.mean[0], fn.mean[1])
    fresh = guide.posterior(context[:2], future[:2]).mean
    torch.testing.assert_close(fresh, guide.posterior(context, future).mean[:2])
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in model.parameters()}


def test_a_saved_guide_loads_into_a_new_one(model, guide):
    context, future = batch(3)
    before = guide.posterior(context, future).mean
    weights = {name: value.clone() for name, value in guide.state_dict().items()}
    shaken(guide)
    guide.load_state_dict(weights)
    torch.testing.assert_close(guide.posterior(context, future).mean, before)


def test_only_the_future_aware_guide_waits_for_the_future():
    model = make_model()
    context = torch.randn(3, 1, CONTEXT)
    sampled = {name: "eve.z" in poutine.trace(GUIDES[name](model)).get_trace(context).nodes for name in GUIDES}
    assert sampled == {"future_aware": False, "context": True, "delta": True}


def test_a_fresh_future_aware_guide_is_the_prior():
    model = shaken(make_model(prior="contextual", readout="normal")).eval()
    elbo = LocalELBO()
    elbo.differentiable_loss(model, FutureAware(model), *batch(4))
    torch.testing.assert_close(elbo.terms.units["eve.z"].kl, torch.zeros(4, UNITS), atol=1e-6, rtol=0)


def test_future_aware_is_a_displacement_from_the_prior():
    model = shaken(make_model(prior="contextual", readout="normal")).eval()
    guide = FutureAware(model)
    with torch.no_grad():
        guide.heads["eve"].loc.bias.fill_(2.0)
        guide.heads["eve"].log_scale.bias.fill_(-1.0)
    context, future = batch(4)
    prior, posterior = model.layer.prior(model.evidence(context).state), guide.posterior(context, future)
    torch.testing.assert_close(posterior.mean, prior.mean + 2 * prior.stddev)
    torch.testing.assert_close(posterior.stddev, prior.stddev * torch.tensor(-1.0).exp())


@pytest.mark.parametrize(("scale", "count"), [("scalar", 1), ("unit", UNITS), ("input", 4 * UNITS)])
def test_the_context_guides_scale(scale, count):
    guide = shaken(ContextMeanField(make_model(), scale))
    posterior = guide.posterior(torch.randn(4, 1, CONTEXT), None)
    assert posterior.stddev.unique().numel() == count
    with pytest.raises(ValueError, match="'scalar', 'unit' or 'input'"):
        ContextMeanField(make_model(), "window")


def test_a_guide_of_ones_own_is_one_method():
    class Constant(Head):
        def __init__(self, layer):
            super().__init__(layer)
            self.loc = nn.Parameter(torch.tensor(0.5))

        def forward(self, state, evidence):
            shape = (*state.shape[:-2], UNITS, 1, 1)
            return pyro.distributions.Normal(self.loc.expand(shape), 1.0).to_event(2)

    model = make_model()
    elbo = LocalELBO()
    elbo.differentiable_loss(model, AmortizedGuide(model, Constant), *batch(3))
    torch.testing.assert_close(elbo.terms.units["eve.z"].kl, torch.full((3, UNITS), 0.125))
    with pytest.raises(NotImplementedError, match="needs a method forward"):
        AmortizedGuide(model, Head)(*batch(3))
