"""What the density of paths does not move: gradients against those of the marginals alone, and what is refused."""

import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, shaken
from lightning.pytorch.callbacks import Callback

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.distributions import FactorNormal
from eve_pyro.distributions.factor import hold
from eve_pyro.guides import FutureAware
from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import forecast_latents, forecast_trace, marginal, observation
from eve_pyro.priors import ContextualPrior

SMALL = {
    "context_length": CONTEXT,
    "horizon": HORIZON,
    "units": 3,
    "hidden": 8,
    "features": 12,
    "dropout": 0.0,
    "epochs": 1,
}
ALPHA = 0.8


def pair_of(held, volatility=True, objective="predictive"):
    options = {"alpha": ALPHA, "volatility": volatility, "objective": objective, "held": held}
    pair = build(load_recipe("factor", SMALL | options))
    torch.manual_seed(3)
    return shaken(pair.model, 0.1).double(), pair.guide.double(), pair.elbo


def losses(pair, context, future):
    """The loss and its gradients, for the same draws of the units every time."""
    model, guide, elbo = pair
    torch.manual_seed(5)
    loss = elbo.differentiable_loss(model, guide, context, future)
    return loss, gradients(model, loss)


def gradients(model, loss):
    head = model.readout
    parameters = {"locations": head.loc.weight, "scales": head.scale.weight, "loadings": head.loadings}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("volatility", [True, False])
@pytest.mark.parametrize("held", ["locations", "scales", None])
def test_what_is_held_learns_from_means_over_blocks_too(held, volatility):
    context, future = torch.randn(6, 1, CONTEXT).double(), torch.randn(6, HORIZON).double()
    (loss, found), (free_loss, whole) = (
        losses(pair_of(each, volatility, "composite"), context, future) for each in (held, None)
    )
    torch.testing.assert_close(loss, free_loss, rtol=0, atol=0)
    model, guide, _ = pair_of(None, volatility)
    forecasts = LocalELBO("composite", alpha=0.0)
    alone = forecasts.differentiable_loss(model, guide, context, future)
    own = gradients(model, (1 - ALPHA * (1 - forecasts.terms.common)) * alone)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, own[name] if name == held else whole[name])


@pytest.mark.parametrize("volatility", [True, False])
@pytest.mark.parametrize("held", ["locations", "scales", None])
def test_what_is_held_learns_from_the_marginals_alone(held, volatility):
    context, future = torch.randn(6, 1, CONTEXT).double(), torch.randn(6, HORIZON).double()
    (loss, found), (free_loss, whole) = (losses(pair_of(each, volatility), context, future) for each in (held, None))
    torch.testing.assert_close(loss, free_loss, rtol=0, atol=0)  # the value is the same, whatever is held

    model, guide, _ = pair_of(None, volatility)
    model_trace, guide_trace = forecast_trace(model, guide, context)
    values = marginal(observation(model_trace), forecast_latents(model_trace, guide_trace))
    own = gradients(model, -(1 - ALPHA) * values.log_prob(future[:, None]).sum())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, own[name] if name == held else whole[name])
    assert not any(torch.allclose(own[name], whole[name]) for name in ("locations", "scales"))


def test_holding_outlives_moves_and_larger_batches_and_lets_their_own_gradients_through():
    loc, scale = (torch.rand(2, 1, 4, requires_grad=True) for _ in range(2))
    stretch = torch.tensor(1.5, requires_grad=True)
    factor = FactorNormal(
        loc, scale, torch.ones(4, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 3), site="z", held="scales"
    )
    moved = factor.rescaled(torch.ones(()), torch.tensor(2.0)).stretched(stretch).expand((7, 2, 1))
    assert moved.batch_shape == (7, 2, 1)
    y = torch.zeros(4)
    by_path = torch.autograd.grad(moved.log_prob(y).sum(), [loc, scale, stretch], allow_unused=True, retain_graph=True)
    assert by_path[1] is None
    assert by_path[0].abs().sum() > 0
    assert by_path[2].abs() > 0
    units = {"z": dist.Normal(torch.zeros(2, 3, 1, 1), 1.0).to_event(2)}
    by_value = torch.autograd.grad(moved.marginal(units).log_prob(y).sum(), [loc, scale, stretch])
    assert all(each.abs().sum() > 0 for each in by_value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, "the predictive or composite term alone"),
        ({"objective": "elbo"}, "the predictive or composite term alone"),
        ({"readout": "normal", "guide": "future_aware"}, "the predictive or composite term alone"),
        ({"prior": "learned"}, "marginals in closed form: beside a volatility unit name --prior standard"),
        ({"guide": "context"}, "marginals in closed form: beside a volatility unit name --prior standard"),
        ({"guide": "delta", "volatility": False}, "marginals in closed form: name another guide than delta"),
        ({"model": "stack", "volatility": False}, "marginals in closed form: name another guide than delta"),
    ],
)
def test_holding_what_nothing_else_would_move_is_refused(options, message):
    with pytest.raises(ValueError, match=f"held scales learn from {message}"):
        build(load_recipe("factor", SMALL | {"held": "scales"} | options))


def test_a_program_of_ones_own_is_refused_too(windows):
    model, guide, _ = pair_of("scales")
    model.float(), guide.float()
    for elbo in (LocalELBO(), LocalELBO("predictive", alpha=1.0)):
        with pytest.raises(ValueError, match="held scales learn from the densities of forecasts alone"):
            fit(model, guide, windows, elbo)
    model.layer.prior = ContextualPrior(model.state_size, 3)
    for weights in model.layer.prior.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    with pytest.raises(ValueError, match="held scales learn from marginals in closed form"):
        fit(model, FutureAware(model), windows, LocalELBO("predictive"))
    with pytest.raises(ValueError, match="what is held is locations or scales, not 'scale'"):
        hold(torch.zeros(1), torch.ones(1), "scale")


def test_a_loss_that_breaks_under_what_is_held_keeps_the_best_epoch(windows):
    model, guide, elbo = pair_of("scales")
    model.float(), guide.float()

    class Break(Callback):
        def on_train_epoch_start(self, trainer, task):
            if trainer.current_epoch:
                model.readout.loc.weight.data.fill_(torch.nan)

    training = Training(epochs=3, batch_size=64, progress=False)
    done = fit(model, guide, windows, elbo, training, callbacks=[Break()])
    assert done.best_epoch == 0
    assert "not finite" in done.stopped
    assert torch.isfinite(model.readout.loc.weight).all()


def test_the_twin_of_a_held_forecaster_is_the_twin():
    held, plain = (build(load_recipe("factor", SMALL | own), twin=True) for own in ({"held": "scales"}, {}))
    for one, other in zip(held.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert held.model.readout.held is None
