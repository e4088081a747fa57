"""The rivals against closed forms and brute force, and as models like any other."""

from dataclasses import replace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import B, shaken
from scipy import stats

from eve_pyro.bench.lineup import MEMBERS, TRAINED, build_pair, config_of, train
from eve_pyro.bench.rivals import LEVELS, DLinear, Ensemble, MCDropout, foretold, no_units
from eve_pyro.config import load_recipe
from eve_pyro.distributions import FactorNormal, rescaled
from eve_pyro.distributions.dense import DenseNormal, LowRankNormal
from eve_pyro.distributions.integrated import IntegratedFactor
from eve_pyro.distributions.mixture import EqualMixture
from eve_pyro.distributions.quantiles import Quantiles
from eve_pyro.infer.predictive import predict, quantile
from eve_pyro.infer.programs import evaluating
from eve_pyro.infer.scores import window_scores
from eve_pyro.testing import check_model

SMALL = {"context_length": 24, "horizon": 6, "units": 4, "hidden": 8, "features": 12, "batch_size": 64, "epochs": 1}
SMALL |= {"progress": False}
RIVALS = [name for name in TRAINED if name not in ("eve", "twin", "ensemble")]


def built(name, **options):
    pair = build_pair(name, config_of(name, load_recipe("factor", SMALL | options)))
    shaken(pair.model, 0.1)
    return pair


def forecast(pair, context, draws=3):
    with evaluating(pair.model, pair.guide, 0):
        return predict(pair.model, pair.guide, context, draws)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "mc_dropout"])  # its twin's units reach no loss
def test_a_rival_is_a_model_like_any_other(name, batch):
    check_model(built(name).model, batch)


@pytest.mark.parametrize("horizon", [6, 3])  # of lower rank than the horizon, and not
def test_low_rank_is_a_dense_normal(batch, horizon):
    context, future = batch[0], batch[1][:, :horizon]
    pair = built("low_rank", horizon=horizon)
    whole = forecast(pair, context).joint
    with torch.no_grad():
        normalised, instance = pair.model.norm(context)
        state, readout = pair.model.encoder.eval()(normalised), pair.model.head.readout
        loc, scale, gain = (
            readout.loc(state[:, 0]),
            readout.surprise(torch.zeros(B, horizon), state),
            readout.gain(state),
        )
        scale = -loc / scale  # surprise = (0 - loc) / scale
        loadings = 3 * readout.loadings * gain.clamp(-4, 1.5).exp()  # (B, H, N)
        noise = (1 + loadings.square().sum(-1)).rsqrt()
        factor = (scale * noise)[..., None] * loadings * instance.scale
        covariance = factor @ factor.mT + torch.diag_embed((scale * noise * instance.scale[:, 0]).square())
        dense = torch.distributions.MultivariateNormal(instance.loc[:, 0] + instance.scale[:, 0] * loc, covariance)
    torch.testing.assert_close(whole.log_prob(future[:, None])[:, 0], dense.log_prob(future), rtol=1e-4, atol=1e-4)
    components = forecast(pair, context).components
    torch.testing.assert_close(components.scale[0], dense.stddev, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("torchs", [DenseNormal, LowRankNormal])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_normals_draw_what_torch_draws(torchs, shape):
    loc, factor, diagonal = torch.randn(B, 1, 5), torch.randn(B, 1, 5, 2), torch.rand(B, 1, 5) + 0.5
    low_rank = dist.LowRankMultivariateNormal(loc, factor, diagonal)
    parameters = (loc, factor, diagonal) if torchs is LowRankNormal else (loc, low_rank.covariance_matrix)
    draws = []
    for fn in (torchs(*parameters), torchs.__base__(*parameters)):
        torch.manual_seed(1)
        draws.append(fn.sample(shape))
    torch.testing.assert_close(draws[0], draws[1])
    assert torchs(*parameters).expand((3, B, 1)).sample(shape).shape == (*shape, 3, B, 1, 5)


def test_paths_of_a_low_rank_normal_have_its_covariance():
    factor = FactorNormal(
        torch.ones(1, 1, 4), torch.rand(1, 1, 4) + 0.5, torch.randn(4, 2), torch.tensor([[[0.5, 2.0]]]),
        torch.zeros(1, 1, 2), site="z",
    )  # fmt: skip
    units = dist.Normal(torch.zeros(1, 2, 1, 1), 1.0).to_event(2)
    expected, fn = factor.joint({"z": units}), IntegratedFactor(factor)
    paths = fn.sample((100_000,))[:, 0, 0]
    torch.testing.assert_close(paths.T.cov(), expected.covariance_matrix[0, 0], atol=0.03, rtol=0.03)
    torch.testing.assert_close(fn.log_prob(paths[:5, None, None]), expected.log_prob(paths[:5, None, None]))
    activity, gain = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="several patches"):
        IntegratedFactor(FactorNormal(factor.loc, factor.scale, factor.loadings, gain, activity, site="z"))


def test_twin_t_scores_as_scipys_t(batch, windows):
    pair = built("twin_t")
    t = forecast(pair, batch[0]).components
    rows = windows.test.at_most(5)
    scores = window_scores(pair.model, pair.guide, rows, num_draws=3)
    t = forecast(pair, rows[:].context).components
    assert (t.df > 2).all()
    expected = -stats.t.logpdf(rows[:].future, t.df[0], t.loc[0], t.scale[0]).mean(-1)
    np.testing.assert_allclose(scores["log_score"], expected, rtol=1e-4)
    np.testing.assert_allclose(scores["joint_log_score"], expected, rtol=1e-4)


def test_one_scale_a_step_is_global(batch):
    pair = built("twin_global")
    scale = forecast(pair, batch[0]).components.scale[0] / pair.model.norm(batch[0])[1].scale[:, 0]
    torch.testing.assert_close(scale, scale[:1].expand(B, -1))


def test_an_ensemble_is_the_equal_mixture_of_its_twins(windows):
    config = load_recipe("factor", SMALL)
    twins = [build_pair("twin", replace(config, training=replace(config.training, seed=seed))) for seed in range(3)]
    model, rows = Ensemble([(shaken(twin.model), shaken(twin.guide)) for twin in twins]), windows.test.at_most(3)
    context, future = rows[:]
    scores = window_scores(model, no_units, rows, num_draws=4000)
    with evaluating(model, no_units, 0):
        normals = [foretold(twin.model.eval(), twin.guide.eval(), context).base_dist for twin in twins]
        joint = torch.stack([n.log_prob(future[:, None]).sum((-2, -1)) for n in normals])
        expected = -(joint.logsumexp(0) - np.log(3)) / future.shape[-1]
        grid = torch.linspace(-40, 40, 40_001)
        cdf = torch.stack([n.cdf(grid[:, None, None, None]) for n in normals]).mean(0)[:, :, 0]  # (G, N, H)
        crps = (cdf - (grid[:, None, None] >= future).to(cdf)).square().sum(0) * (grid[1] - grid[0])
        prediction = predict(model, no_units, context, 4000)
        at_median = torch.stack([n.cdf(quantile(prediction, 0.5)[:, None]) for n in normals]).mean(0)
    torch.testing.assert_close(scores["joint_log_score"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores["crps"], crps.mean(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(at_median, torch.full_like(at_median, 0.5), atol=1e-3, rtol=0)
    mean = torch.stack([n.mean[:, 0] for n in normals]).mean(0)
    torch.testing.assert_close(prediction.paths.mean(0), mean, atol=0.2, rtol=0)


def test_a_path_of_a_mixture_is_of_one_member():
    members = [dist.Normal(torch.full((2, 1, 5), loc), 0.1).to_event(1) for loc in (-10.0, 10.0)]
    paths = EqualMixture(members).sample((400,))
    assert paths.shape == (400, 2, 1, 5)
    signs = paths.sign().mean(-1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.2


def test_dropout_stays_on_and_without_it_there_is_the_twin(batch):
    twin = built("twin", dropout=0.5)
    model = MCDropout((twin.model, twin.guide), passes=4)
    pair = (model, no_units)
    with evaluating(*pair, 0):
        components = predict(*pair, batch[0], 2).components
        assert not twin.model.training
    assert components.loc.shape[0] == 4
    assert (components.loc.std(0) > 0).all()
    for part in twin.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with evaluating(*pair, 0):
        components = predict(*pair, batch[0], 2).components
        expected = predict(twin.model, twin.guide, batch[0], 2).components
    torch.testing.assert_close(components.loc, expected.loc.expand(4, -1, -1))
    assert config_of("mc_dropout", load_recipe("factor", SMALL)).model.dropout == 0.1


def test_quantiles_score_by_pinball_and_have_no_paths(windows):
    pair = built("quantile")
    rows = windows.test.at_most(4)
    context, future = rows[:]
    scores = window_scores(pair.model, pair.guide, rows, num_draws=3)
    prediction = forecast(pair, context)
    by_level = torch.stack([quantile(prediction, level) for level in LEVELS])
    assert (by_level.diff(dim=0) >= 0).all()
    error, level = future - by_level, torch.tensor(LEVELS)[:, None, None]
    torch.testing.assert_close(
        scores["crps"], 2 * torch.maximum(level * error, (level - 1) * error).mean((0, 2)), rtol=1e-4, atol=1e-5
    )  # fmt: skip
    torch.testing.assert_close(scores["mae"], (future - by_level[9]).abs().mean(-1))
    assert all(scores[name].isnan().all() for name in ("energy_score", "crps_mean", "log_score", "joint_log_score"))


def test_quantiles_by_hand():
    fn = Quantiles(torch.tensor([[0.0, 1.0, 3.0]]), (0.25, 0.5, 0.75))
    assert fn.log_prob(torch.tensor([2.0])).item() == pytest.approx(-(0.25 * 2 + 0.5 * 1 + 0.25 * 1))
    assert [fn.at(level).item() for level in (0.1, 0.25, 0.625, 0.75, 0.9)] == pytest.approx([0.0, 0.0, 2.0, 3.0, 3.0])
    moved = rescaled(fn, torch.tensor([1.0]), torch.tensor([2.0]))
    assert moved.quantiles.tolist() == [[1.0, 3.0, 7.0]]
    assert fn.sample((1000,)).mean().item() == pytest.approx(4 / 3 + 1 / 24, abs=0.15)
    with pytest.raises(ValueError, match="3 quantiles need as many levels, not 2"):
        Quantiles(torch.zeros(1, 3), (0.25, 0.75))


def test_dlinear_by_hand(batch):
    context, _ = batch
    model = DLinear(24, 6, kernel=3)
    y = context[:, 0]
    padded = torch.cat([y[:, :1], y, y[:, -1:]], -1)
    smooth = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    loc = (
        (y - smooth) @ model.seasonal.weight.T + model.seasonal.bias + smooth @ model.trend.weight.T + model.trend.bias
    )
    with torch.no_grad():
        found = predict(model, no_units, context, 2).components
    torch.testing.assert_close(found.loc[0], loc.detach(), rtol=1e-4, atol=1e-5)


def test_five_twins_of_their_own_seeds_make_an_ensemble(windows, monkeypatch):
    seeds = []
    from eve_pyro.bench import lineup

    honest = lineup.build_pair
    monkeypatch.setattr(
        lineup, "build_pair", lambda name, config: (seeds.append(config.training.seed), honest(name, config))[1]
    )
    done = train("ensemble", load_recipe("factor", SMALL | {"seed": 2}), windows)
    assert seeds == [10, 11, 12, 13, 14]
    assert len(done.model.pairs) == MEMBERS == 5
    assert done.seconds > 0
    assert done.val_crps == pytest.approx(
        float(window_scores(done.model, no_units, windows.validation, 2)["crps"].mean()), rel=1e-5
    )


@pytest.mark.parametrize("name", ["eve", *RIVALS])
def test_training_lowers_the_loss(name, windows):
    options = SMALL | {"epochs": 3, "learning_rate": 0.01, "guide": "conjugate", "volatility": True}
    config = config_of(name, load_recipe("factor", options))
    before = window_scores(*build_pair(name, config)[:2], windows.validation, 2)["crps"].mean()
    assert train(name, config, windows).val_crps < before
