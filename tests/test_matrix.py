"""Every guide with every model and every K, by one argument: it trains, reaches every parameter, and reads back."""

import pytest
import torch
from conftest import CONTEXT, HORIZON, make_panel, shaken

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.guides import Autoregressive, Conjugate, ContextMeanField, Flow, FutureAware, LowRank, PointGuide
from eve_pyro.infer.forecast import forecast
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict
from eve_pyro.likelihoods import CategoricalReadout, FactorReadout
from eve_pyro.models import Forecaster, Regression, Stack
from eve_pyro.nets import LinearEncoder, MLPDecoder, MLPEncoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import StandardPrior
from eve_pyro.runs import load_run, save_run, windows_of

GUIDES = ("future_aware", "context", "delta", "autoregressive", "low_rank", "flow", "conjugate")
MODELS = {
    "forecaster": {},
    "nonlinear": {"readout": "normal", "prior": "contextual"},
    "path": {"path": 2, "stride": 3, "prior": "ar1", "learn_phi": True},
    "trajectory": {"model": "trajectory", "patches": 3, "prior": "ar1", "learn_phi": True},
    "nonlinear trajectory": {"model": "trajectory", "patches": 3, "prior": "contextual_ar1", "readout": "student_t"},
    "stack": {"model": "stack", "depth": 3},
}
SMALL = {"context_length": CONTEXT, "horizon": HORIZON, "units": 4, "rank": 2, "hidden": 8, "features": 12}
SMALL |= {"volatility": False}  # with it: test_volatility_guides


def train(pair, batch, steps=3):
    """A few steps by hand; returns the loss and the names of parameters that were never reached."""
    weights = pair.weights().train()
    optimizer = torch.optim.Adam([p for p in weights.parameters() if p.requires_grad], lr=1e-3)
    reached = set()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = pair.elbo.differentiable_loss(pair.model, pair.guide, *batch)
        loss.backward()
        reached |= {name for name, p in weights.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    missed = {name for name, p in weights.named_parameters() if p.requires_grad} - reached
    weights.eval()
    return float(loss.detach()), missed


@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_trains_with_every_model(guide, model, latent_dim, tmp_path):
    if guide == "conjugate" and model.startswith("nonlinear"):
        pair = build(load_recipe("factor", {**SMALL, **MODELS[model], "guide": guide}))
        with pytest.raises(ValueError, match="needs a readout that is linear in its units"):
            pair.guide(torch.zeros(2, 1, CONTEXT), torch.zeros(2, HORIZON))
        return
    config = load_recipe("factor", {**SMALL, **MODELS[model], "guide": guide, "latent_dim": latent_dim})
    pair, windows = build(config), windows_of(make_panel(), config)
    shaken(pair.weights(), 0.05)
    loss, missed = train(pair, windows.train[:16])
    assert torch.isfinite(torch.tensor(loss))
    assert not missed
    save_run(tmp_path / "run", config, windows.test.scaler, pair)
    again = load_run(tmp_path / "run").eve
    shown = windows.test.every(20)
    ours, theirs = (forecast(each.model, each.guide, shown, 5).paths for each in (pair, again))
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pooling", ["mean", "sum", "sqrt"])
@pytest.mark.parametrize("latent_dim", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("model", ["forecaster", "trajectory"])
def test_every_k_with_every_pooling(model, latent_dim, pooling):
    options = {**SMALL, **MODELS[model], "latent_dim": latent_dim, "pooling": pooling, "guide": "conjugate"}
    config = load_recipe("factor", options)
    pair, windows = build(config), windows_of(make_panel(), config)
    loss, _ = train(pair, windows.train[:8], steps=1)
    assert torch.isfinite(torch.tensor(loss))
    assert pair.elbo.terms.units["eve.z"].kl.shape == (8, 4)


def test_a_stack_of_one_layer_is_the_forecaster():
    def make(kind):
        torch.manual_seed(0)
        encoder = LinearEncoder(CONTEXT, 8, 12, 0.0)
        layer = EveLayer(StandardPrior(4), 4)
        readout = FactorReadout(layer, encoder.out_features, HORIZON)
        return kind(encoder, [layer] if kind is Stack else layer, readout, HORIZON)

    batch = torch.randn(5, 1, CONTEXT), torch.randn(5, HORIZON)
    losses = []
    for kind in (Forecaster, Stack):
        model = make(kind)
        guide = shaken(FutureAware(model), 0.05)
        torch.manual_seed(1)
        losses.append(float(LocalELBO().differentiable_loss(model, guide, *batch).detach()))
        assert set(model.state_dict()) == set(make(Forecaster).state_dict())
    assert losses[0] == losses[1]


def test_every_layer_of_a_stack_pays_for_itself_and_conditions_on_the_one_below():
    config = load_recipe("factor", {**SMALL, "model": "stack", "depth": 2, "guide": "future_aware"})
    pair = build(config)
    shaken(pair.weights(), 0.1)
    batch = torch.randn(6, 1, CONTEXT), torch.randn(6, HORIZON)
    elbo = LocalELBO(beta={"eve1.z": torch.tensor([0.0, 1.0, 2.0, 3.0])})
    loss = elbo.differentiable_loss(pair.model, pair.guide, *batch)
    terms = elbo.terms
    expected = -terms.log_likelihood.sum() + (torch.arange(4.0) * terms.units["eve1.z"].kl).sum()
    assert float(loss.detach()) == pytest.approx(float(expected + terms.units["eve2.z"].kl.sum()), rel=1e-5)
    state = torch.randn(6, 1, pair.model.state_size)
    lowest = pair.model.layers[0]
    raised = [pair.model.rise(lowest, state, activity) for activity in (torch.zeros(6, 1, 4), torch.ones(6, 1, 4))]
    assert not torch.allclose(pair.model.layers[1].prior(raised[0]).mean, pair.model.layers[1].prior(raised[1]).mean)


@pytest.mark.parametrize("guide", [FutureAware, ContextMeanField, PointGuide, Autoregressive, LowRank, Flow, Conjugate])
@pytest.mark.parametrize("classes", [0, 3])
def test_tables_train_with_every_guide(guide, classes):
    encoder = MLPEncoder(6, 8)
    layer = EveLayer(StandardPrior(4), 4)
    if classes:
        readout: torch.nn.Module = CategoricalReadout(MLPDecoder(4, 8), classes)
    else:
        readout = FactorReadout(layer, encoder.out_features, 2)
    model = Regression(encoder, layer, readout, 1 if classes else 2)
    posterior = guide(model)
    rows = torch.randn(9, 1, 6), torch.randint(classes, (9, 1)).float() if classes else torch.randn(9, 2)
    elbo = LocalELBO(sample_kl=guide is Flow)
    if guide is Conjugate and classes:
        with pytest.raises(ValueError, match="linear in its units"):
            elbo.differentiable_loss(model, posterior, *rows)
        return
    loss = elbo.differentiable_loss(model, posterior, *rows)
    loss.backward()
    assert torch.isfinite(loss)
    assert predict(model, posterior, rows[0], 3).paths.shape == (3, 9, rows[1].shape[1])


def test_labels_out_of_range_are_refused():
    readout = CategoricalReadout(MLPDecoder(4, 8), 3)
    for label in (-1.0, 3.0, 0.5):
        with pytest.raises(ValueError, match=f"classes are whole numbers from 0 to 2; found {label:g}"):
            readout.surprise(torch.tensor([[0.0], [label]]), torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="at least 2 classes"):
        CategoricalReadout(MLPDecoder(4, 8), 1)


def test_ranks_patches_and_stacks_out_of_range_are_refused():
    for options, message in (
        ({"guide": "low_rank", "rank": 5}, "the rank across 4 units is 1 to 4, a whole number, not 5"),
        ({"model": "trajectory", "patches": 7}, "needs 2 to 6 patches, not 7"),
        ({"model": "trajectory", "patches": 4, "readout": "normal"}, "no multiple of 4 patches"),
        ({"latent_dim": 0}, "latent_dim = 0"),
        ({"guide": "flow", "units": 1}, "a flow couples at least two latents"),
    ):
        with pytest.raises(ValueError, match=message):
            build(load_recipe("factor", {**SMALL, **options}))
    with pytest.raises(ValueError, match="at least one layer, and a name for each"):
        Stack(LinearEncoder(CONTEXT), [], None, HORIZON)
