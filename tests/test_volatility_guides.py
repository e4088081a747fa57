"""A volatility unit below the units: with every guide and model it trains, forecasts, conforms and reads back."""

import pytest
import torch
from conftest import CONTEXT, HORIZON, make_panel, shaken
from pyro import poutine

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.guides import Conjugate
from eve_pyro.guides.base import AmortizedGuide, VolatilityHead
from eve_pyro.guides.conjugate import ConjugateVolatility
from eve_pyro.guides.mean_field import FutureHead
from eve_pyro.infer.forecast import forecast
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict
from eve_pyro.likelihoods import FactorReadout
from eve_pyro.models import Forecaster
from eve_pyro.nets import LinearEncoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import AR1Prior, ContextualPrior, LearnedPrior, StandardPrior, VolatilityPrior
from eve_pyro.runs import load_run, save_run, windows_of
from eve_pyro.testing import check_guide, check_model

GUIDES = ("future_aware", "context", "autoregressive", "low_rank", "flow", "delta", "conjugate")
MODELS = {
    "forecaster": {},
    "path": {"path": 2, "stride": 3, "prior": "ar1", "learn_phi": True},
    "trajectory": {"model": "trajectory", "patches": 3, "prior": "ar1", "learn_phi": True},
    "stack": {"model": "stack", "depth": 2},
    "nonlinear": {"readout": "normal", "prior": "contextual"},
    "contextual": {"prior": "contextual"},
    "learned": {"prior": "learned"},
    "contextual path": {"model": "trajectory", "patches": 3, "prior": "contextual_ar1", "learn_phi": True},
}
UNITS = 4
SMALL = {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS, "rank": 2, "hidden": 8, "features": 12}
VOLATILITY = "volatility.z"


def config_of(guide="future_aware", model="forecaster", **options):
    beta = 0.0 if guide == "delta" else 1.0
    given = {**SMALL, **MODELS[model], "guide": guide, "volatility": True, "beta": beta, **options}
    return load_recipe("factor", given)


def batch(size=5, path=1):
    context = torch.randn(size, path, CONTEXT).cumsum(-1)
    return context, context[:, -1, -1:] + torch.randn(size, HORIZON)


def sampled(program, *args):
    nodes = poutine.trace(program).get_trace(*args).nodes
    return [name for name, site in nodes.items() if site["type"] == "sample" and name.endswith(".z")]


def missed(pair, data, steps=3):
    """Train some steps; return the parameters that no gradient reached, and the last loss."""
    weights, reached = pair.weights().train(), set()
    optimizer = torch.optim.Adam(weights.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = pair.elbo.differentiable_loss(pair.model, pair.guide, *data)
        loss.backward()
        found = {name: p.grad for name, p in weights.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(grad).all() for grad in found.values())
        reached |= {name for name, grad in found.items() if grad.abs().sum() > 0}
        optimizer.step()
    weights.eval()
    return {name for name, p in weights.named_parameters() if p.requires_grad} - reached, loss


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_samples_volatility_first_trains_and_reads_back(guide, model, tmp_path):
    if guide == "conjugate" and model == "nonlinear":
        with pytest.raises(ValueError, match="needs a readout that is linear in its units"):
            build(config_of(guide, model)).guide(*batch())
        return
    config = config_of(guide, model)
    pair = build(config)
    shaken(pair.weights(), 0.05)
    windows = windows_of(make_panel(), config)
    data = windows.train[:16]
    sites = [layer.site for layer in pair.model.layers]
    assert sites[0] == VOLATILITY
    assert sampled(pair.model, *data) == sampled(pair.guide, *data) == sites
    silent, loss = missed(pair, data)
    assert torch.isfinite(loss)
    # A beta of 0 leaves a prior that forecasts do not come from without any gradient.
    assert not silent or (guide == "delta" and all(".prior." in name for name in silent))
    assert pair.elbo.terms.units[VOLATILITY].kl.shape == (16, 1)
    assert VOLATILITY not in pair.elbo.terms.sampled_sites
    save_run(tmp_path / "run", config, windows.test.scaler, pair)
    again = load_run(tmp_path / "run").eve
    shown = windows.test.every(20)
    ours, theirs = (forecast(each.model, each.guide, shown, 5).paths for each in (pair, again))
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("guide", GUIDES)
def test_models_and_guides_conform(guide):
    pair = build(config_of(guide, dropout=0.0))
    shaken(pair.weights(), 0.05)
    check_model(pair.model, batch())
    check_guide(pair.model, pair.guide, batch())


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("model", ["forecaster", "stack"])
def test_particles_see_a_volatility_of_their_own(guide, model):
    pair = build(config_of(guide, model, dropout=0.0))
    shaken(pair.weights(), 0.05).eval()
    elbo = LocalELBO(num_particles=7, sample_kl=guide in ("flow", "delta"), beta=0.0 if guide == "delta" else 1.0)
    loss = elbo.differentiable_loss(pair.model, pair.guide, *batch())
    assert torch.isfinite(loss)
    assert elbo.terms.units["volatility.z"].kl.shape == (5, 1)


def test_a_fresh_volatility_head_starts_near_one_and_reads_the_size_of_the_surprise():
    pair = build(config_of())
    context, future = batch()
    fresh = pair.guide.posterior(context, future)
    torch.testing.assert_close(fresh.mean, torch.ones(5, 1, 1, 1))
    assert (fresh.stddev < 0.5).all()
    shaken(pair.guide, 0.2)
    assert pair.guide.posterior(context, future).mean.unique().numel() == 5
    assert pair.guide.posterior(context) is None


def test_only_right_below_centred_units_is_the_posterior_of_volatility_conjugate():
    heads = {model: build(config_of("conjugate", model)).guide.heads["volatility"] for model in MODELS}
    exact = {model for model, head in heads.items() if type(head) is ConjugateVolatility}
    assert exact == {"forecaster", "path", "trajectory"}
    assert {type(heads[model]) for model in set(MODELS) - exact} == {VolatilityHead}
    single = build(config_of("conjugate", "stack", depth=1)).guide
    assert type(single.heads["volatility"]) is ConjugateVolatility


@pytest.mark.parametrize("model", [("forecaster", {}), ("path", {}), ("trajectory", {}), ("stack", {"depth": 1})])
@pytest.mark.parametrize("particles", [1, 3])
def test_one_posterior_of_the_units_says_of_both_layers_what_a_posterior_of_each_does(model, particles):
    torch.manual_seed(1)
    pair = build(config_of("conjugate", model[0], dropout=0.0, **model[1]))
    assert isinstance(pair.guide.heads["volatility"], ConjugateVolatility)
    shaken(pair.weights(), 0.3).double().eval()
    data = [part.double() for part in batch(path=pair.model.path)]

    def each(context, future=None):
        return AmortizedGuide.forward(pair.guide, context, future)

    losses, grads = [], []
    for guide in (pair.guide, each):
        torch.manual_seed(2)
        loss = LocalELBO(num_particles=particles).differentiable_loss(pair.model, guide, *data)
        losses.append(loss)
        grads.append(torch.autograd.grad(loss, [*pair.model.parameters()], allow_unused=True))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close([g for g in grads[0] if g is not None], [g for g in grads[1] if g is not None])
    assert sum(g is not None for g in grads[0]) > 5


def test_above_an_exact_volatility_a_head_of_ones_own_is_asked():
    pair = build(config_of("conjugate", dropout=0.0))
    model = pair.model
    pair.guide.heads["eve"] = FutureHead(model.layers[-1], model.state_size, model.surprise_size, 8)
    shaken(pair.weights(), 0.05)
    check_guide(model, pair.guide, batch())


STATE = 20  # what an encoder of 8 hidden and 12 linear features makes


class Own(torch.nn.Module):
    """A prior that says nothing of its mean."""

    def forward(self, state):
        return StandardPrior(UNITS)(state)


@pytest.mark.parametrize(
    ("prior", "centred"),
    [
        (StandardPrior(UNITS), True),
        (LearnedPrior(UNITS), False),
        (ContextualPrior(STATE, UNITS), False),
        (AR1Prior(StandardPrior(UNITS), UNITS), True),
        (AR1Prior(ContextualPrior(STATE, UNITS), UNITS), False),
        (AR1Prior(Own(), UNITS), False),
        (Own(), False),
    ],
    ids=["standard", "learned", "contextual", "around standard", "around contextual", "around its own", "its own"],
)
def test_a_prior_is_centred_where_it_says_so(prior, centred):
    assert getattr(prior, "centred", False) is centred
    encoder, layer = LinearEncoder(CONTEXT, 8, 12, 0.0), EveLayer(prior, UNITS)
    readout, below = FactorReadout(layer, STATE, HORIZON), EveLayer(VolatilityPrior(STATE), 1, name="volatility")
    path = 2 if isinstance(prior, AR1Prior) else 1
    model = Forecaster(encoder, layer, readout, HORIZON, path=path, volatility=below)
    guide = Conjugate(model)
    assert isinstance(guide.heads["volatility"], ConjugateVolatility if centred else VolatilityHead)
    assert torch.isfinite(LocalELBO().differentiable_loss(model, guide, *batch(path=path)))


def test_the_twin_is_a_point_everywhere_and_normal():
    twin = build(config_of(), twin=True)
    prediction = predict(twin.model.eval(), twin.guide.eval(), batch()[0], 3)
    assert prediction.exact
    assert isinstance(prediction.components, torch.distributions.Normal)


@pytest.mark.parametrize("guide", ["future_aware", "flow", "low_rank", "conjugate"])
def test_forecasts_from_the_prior_are_exact_students_t(guide):
    pair = build(config_of(guide))
    prediction = predict(pair.model.eval(), pair.guide.eval(), batch()[0], 6)
    assert prediction.exact
    assert isinstance(prediction.components, torch.distributions.StudentT)
    assert prediction.paths.shape == (6, 5, HORIZON)


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("model", ["forecaster", "trajectory", "stack"])
def test_tails_beside_tails_are_refused_before_anything_is_built(model, twin):
    with pytest.raises(ValueError, match=r"readout 'student_t' has tails of its own.*: --no-volatility"):
        build(config_of(model=model, readout="student_t"), twin)
    build(config_of(model=model, readout="student_t", volatility=False), twin)


def test_the_volatility_prior_is_a_gamma_of_mean_one_with_more_than_two_degrees():
    pair = build(config_of())
    shaken(pair.model, 0.2)
    trace = poutine.trace(pair.model).get_trace(batch()[0])
    fn = trace.nodes[VOLATILITY]["fn"]
    assert fn.batch_shape == (5, 1)
    assert fn.event_shape == (1, 1)
    torch.testing.assert_close(fn.mean, torch.ones(5, 1, 1, 1))
    assert (2 * fn.base_dist.concentration > 2).all()
    names = {frame.name: frame.dim for frame in trace.nodes[VOLATILITY]["cond_indep_stack"]}
    assert names == {"windows": -2, "volatility.units": -1}
