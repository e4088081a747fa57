"""The paper's persistence: a prior that is AR(1) over successive contexts, and the penalty that stands in for it."""

import pytest
import torch
from conftest import CONTEXT, HORIZON, UNITS, make_panel
from torch.distributions import Independent, Normal, kl_divergence

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.control.persistence import ArPenalty
from eve_pyro.control.steering import Steering
from eve_pyro.data import make_windows
from eve_pyro.distributions import AR1
from eve_pyro.infer.fit import fit
from eve_pyro.infer.loop import Callback
from eve_pyro.infer.terms import ELBOTerms, UnitTerms
from eve_pyro.priors import AR1Prior, ContextualPrior, StandardPrior

OPTIONS = {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS, "hidden": 8, "features": 12}
OPTIONS |= {"path": 2, "stride": 4, "batch_size": 32, "epochs": 3, "progress": False}
QUICK = load_recipe("paper", OPTIONS).training


def path_windows():
    return make_windows(make_panel(), CONTEXT, HORIZON, path=2, stride=4)


def terms(path, paid=3.0, **parts):
    figures = torch.ones(len(path), path.shape[1])
    units = {"z": UnitTerms(figures, figures[0], figures[0], path=path)}
    return ELBOTerms(torch.full((len(path),), -30.0), units, torch.tensor(paid), **parts)


def test_the_penalty_by_a_loop():
    path, phi = torch.randn(4, 3, 5, 2), 0.8
    expected = 0.0
    for window in path:
        for unit in window:
            for t in range(1, 5):
                expected += float((unit[t] - phi * unit[t - 1]).square().sum()) / (2 * (1 - phi**2)) / 4
    assert float(ArPenalty(0.5, phi)(terms(path))) == pytest.approx(0.5 * expected, rel=1e-5)


def test_the_penalty_is_the_kl_to_an_ar1_prior_as_far_as_locations_go():
    phi, path = 0.9, torch.randn(4, 3, 5, 2)
    p = AR1(torch.zeros(5, 2), torch.tensor([[phi]]), torch.ones(5, 2))
    moved, at_rest = (Independent(Normal(loc, 1.0), 2) for loc in (path, 0 * path))
    kl = kl_divergence(moved, p) - kl_divergence(at_rest, p)
    first = 0.5 * path[:, :, 0].square().sum((1, 2))
    assert float(ArPenalty(1.0, phi)(terms(path))) == pytest.approx(float((kl.sum(-1) - first).mean()), rel=1e-4)


def test_a_penaltys_share_is_of_the_parts_as_the_loss_weighs_them():
    path = torch.zeros(4, 3, 2, 1)
    seen = terms(path)  # |log likelihood| 30, paid 3
    seen.penalties["ar"] = torch.tensor(22.0)
    assert float(seen.share("ar")) == pytest.approx(22 / 55)
    seen = terms(path, predictive=torch.full((4,), 50.0), alpha=0.2)
    seen.penalties.update({"ar": torch.tensor(22.0), "band": torch.tensor(1.4)})
    assert float(seen.share("ar")) == pytest.approx(22 / (0.2 * 33 + 0.8 * 50 + 22 + 1.4))


@pytest.mark.parametrize("objective", ["elbo", "predictive", "composite"])
def test_the_parts_that_shares_are_of_make_the_loss(objective):
    pair = build(load_recipe("factor", OPTIONS | {"path": 1, "objective": objective, "beta": 0.3}))
    batch = make_windows(make_panel(), CONTEXT, HORIZON).train[:8]
    loss = pair.elbo.differentiable_loss(pair.model, pair.guide, *batch)
    parts = pair.elbo.terms
    predictive = 0.0 if parts.predictive is None else float(parts.predictive.mean())
    expected = parts.alpha * (parts.paid - parts.log_likelihood.mean()) - (1 - parts.alpha) * predictive
    assert float(loss) / 8 == pytest.approx(float(expected), rel=1e-4)


def test_the_weight_follows_the_share_once_warm():
    pair, windows = build(load_recipe("factor", OPTIONS)), path_windows()
    steering, steps = Steering(lambda_ar=0.1, warmup=6), QUICK.steps(len(windows.train))
    assert steps > 8
    callbacks = steering.callbacks()
    control, weights = callbacks[0], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            weights.append((float(task.elbo.terms.penalties["ar"]), control.persistence.share.weight))

    fit(pair.model, pair.guide, windows, pair.elbo, QUICK, callbacks=[*callbacks, Watch()])
    penalties, moved = zip(*weights, strict=True)
    assert penalties[:6] == (0.0,) * 6
    assert all(penalties[6:])
    assert moved[:5] == (0.1,) * 5
    assert len(set(moved[6:])) == steps - 6


def test_units_without_a_path_are_refused():
    pair = build(load_recipe("paper", OPTIONS | {"path": 1, "prior": "standard"}))
    windows = make_windows(make_panel(), CONTEXT, HORIZON)
    with pytest.raises(ValueError, match="needs a path of at least 2 steps, and no site has one: use --path 2"):
        fit(pair.model, pair.guide, windows, pair.elbo, QUICK, control=Steering(lambda_ar=1, warmup=0))
    with pytest.raises(ValueError, match="a warm-up of 64 steps leaves nothing"):
        fit(pair.model, pair.guide, windows, pair.elbo, QUICK, control=Steering(lambda_ar=1))
    with pytest.raises(ValueError, match="runs over a path: name --path 2 or more, or --model trajectory"):
        build(load_recipe("paper", OPTIONS | {"path": 1, "prior": "ar1"}))
    with pytest.raises(ValueError, match=r"needs \|phi\| <= 0.999999, .* not 1"):
        AR1Prior(StandardPrior(3), 3, phi=1.0)
    with pytest.raises(ValueError, match="at least two steps"):
        AR1Prior(StandardPrior(3), 3)(torch.zeros(2, 1, 4))


def jump(pair, windows, phi=0.95):
    """Mean square of what the posterior's location adds to phi times its value at the previous context."""
    context, future = windows.test[torch.arange(len(windows.test))]
    with torch.no_grad():
        loc = pair.guide.eval().posterior(context, future).mean[..., 0]  # (B, N, 2)
    return float((loc[..., 1] - phi * loc[..., 0]).square().mean())


def test_the_prior_and_the_penalty_make_neighbouring_contexts_agree():
    windows, found = path_windows(), {}
    for name, prior, steering in (
        ("plain", "standard", Steering()),
        ("prior", "ar1", Steering()),
        ("penalty", "standard", Steering(lambda_ar=0.1, warmup=0)),
    ):
        config = load_recipe("paper", OPTIONS | {"prior": prior, "epochs": 6, "learning_rate": 0.01, "monitor": "last"})
        pair = build(config)
        result = fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=steering)
        found[name] = jump(pair, windows)
        assert ("train_ar" in result.history) == (name == "penalty")
    assert found["prior"] < 0.7 * found["plain"], found
    assert found["penalty"] < 0.7 * found["plain"], found


def test_marginals_stay_those_of_the_prior_it_wraps():
    state = torch.randn(2, 4, 7)
    marginals = ContextualPrior(7, UNITS, 2)
    fn = AR1Prior(marginals, UNITS, 0.7)(state)
    torch.testing.assert_close(fn.mean, marginals(state).mean)
    torch.testing.assert_close(fn.stddev, marginals(state).stddev)
