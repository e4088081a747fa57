"""The volatility unit against SciPy's Student's t, and its conjugate posterior against quadrature."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, shaken
from dense import EXACT
from scipy import stats
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from eve_pyro.builder import build
from eve_pyro.config import load_recipe
from eve_pyro.distributions import AR1, FactorNormal, rescaled
from eve_pyro.distributions.volatile import MultivariateT, VolatileFactor, volatile
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import forecast_trace, predict
from eve_pyro.infer.scores import importance_log_weights

B, H, SITE, VOLATILITY = 3, 4, "eve.z", "volatility.z"
SMALL = {"context_length": CONTEXT, "horizon": HORIZON, "units": 4, "hidden": 8, "features": 12, "dropout": 0.0}
TRAJECTORY = {"model": "trajectory", "patches": 3, "prior": "ar1", "learn_phi": True}


def factor(units, patches=1, particles=(), horizon=H, by_window=False):
    """A factor normal of random fields in double precision."""
    loc, scale = torch.randn(B, 1, horizon).double(), torch.rand(B, 1, horizon).double() + 0.5
    loadings = torch.randn(*([B] if by_window else []), horizon, units).double()
    gain = torch.rand(B, patches, units).double() + 0.5
    activity = torch.randn(*particles, B, patches, units).double()
    return FactorNormal(loc, scale, loadings, gain, activity, site=SITE, pool_weight=0.7)


def units_of(units, patches=1, mean=0.0, particles=()):
    loc = torch.full((*particles, B, units, patches, 2), mean).double()
    if patches == 1:
        return dist.Normal(loc, torch.rand(B, units, 1, 2).double() + 0.5).to_event(2)
    return AR1(loc, torch.tensor([[0.8]]).double(), torch.rand(B, units, patches, 2).double() + 0.5)


def gamma(concentration, rate):
    """A Gamma volatility of other parameters in every window, batch (B, 1)."""
    spread = torch.tensor([1.0, 1.5, 2.0]).double().view(B, 1, 1, 1)
    return dist.Gamma(concentration * spread, rate * spread.flip(0)).to_event(2)


def shape_of(fn, units):
    """Covariance of y at v = 1, (B, H, H): every product written out."""
    covariance = 0.49 * torch.stack([by_window(units, b) for b in range(B)])  # (B, N, P, P)
    patch = torch.arange(H) * fn.activity.shape[-2] // H
    weights = fn.loadings * fn.gain[:, patch]  # (B, H, N)
    read = torch.einsum("bhn,bnhi,bin->bhi", weights, covariance[:, :, patch][..., patch], weights)
    k = (1 + (fn.loadings.square() * fn.gain[:, patch].square()).sum(-1)).rsqrt()
    noise = fn.scale[:, 0] * k
    return noise[:, :, None] * (read + torch.eye(H)) * noise[:, None, :]


def by_window(units, b):
    if isinstance(units, AR1):
        return units.covariance[b].sum(-3)
    return torch.diag_embed(units.variance[b].sum(-1))


CASES = [(2, 1), (8, 1), (1, 2), (5, 2)]  # units and patches: low rank and dense


@pytest.mark.parametrize("particles", [(), (5,)])
@pytest.mark.parametrize(("units", "patches"), CASES)
def test_values_and_paths_are_students_t(units, patches, particles):
    normal, prior = factor(units, patches, particles), units_of(units, patches)
    v = gamma(1.3, 0.8)
    fn = VolatileFactor(normal, torch.rand(*particles, B, 1, 1).double() + 0.5, VOLATILITY)
    latents = {VOLATILITY: v, SITE: prior}
    marginal, joint = fn.marginal(latents), fn.joint(latents)
    kind = LowRankMultivariateNormal if units * patches < H else MultivariateNormal
    assert isinstance(joint.normal, kind)
    assert joint.batch_shape == marginal.batch_shape == (B, 1)
    c, r = v.base_dist.concentration.view(B), v.base_dist.rate.view(B)
    y = 2 * torch.randn(7, B, 1, H).double()
    shape = (r / c).view(B, 1, 1) * shape_of(normal, prior)
    for b in range(B):
        loc, df = normal.loc[b, 0].numpy(), 2 * float(c[b])
        scale = shape[b].diagonal().sqrt().numpy()
        each = torch.as_tensor(stats.t.logpdf(y[:, b, 0].numpy(), df, loc, scale))
        whole = torch.as_tensor(stats.multivariate_t.logpdf(y[:, b, 0].numpy(), loc, shape[b].numpy(), df))
        torch.testing.assert_close(marginal.base_dist.log_prob(y)[:, b, 0], each, **EXACT)
        torch.testing.assert_close(joint.log_prob(y)[:, b, 0], whole, **EXACT)


@pytest.mark.parametrize("units", [2, 8])
def test_a_given_volatility_leaves_normals(units):
    normal, prior, v = factor(units), units_of(units, mean=0.3), torch.rand(B, 1, 1, 1).double() + 0.5
    fn = VolatileFactor(normal, v[..., 0], VOLATILITY)
    latents = {VOLATILITY: dist.Delta(v, event_dim=2), SITE: prior}
    joint, marginal = fn.joint(latents), fn.marginal(latents)
    torch.testing.assert_close(joint.covariance_matrix[:, 0], shape_of(normal, prior) / v[..., 0], **EXACT)
    torch.testing.assert_close(marginal.mean, joint.mean, **EXACT)
    torch.testing.assert_close(marginal.variance, joint.variance, **EXACT)
    y = torch.randn(B, 1, H).double()
    expected = dist.Normal(fn.mean, fn.variance.sqrt()).log_prob(y).sum(-1)
    torch.testing.assert_close(fn.log_prob(y), expected, **EXACT)
    away = (normal.conditional().mean - normal.loc) * v[..., 0].rsqrt()
    torch.testing.assert_close(fn.mean - normal.loc, away, **EXACT)


def test_where_units_do_not_have_mean_zero_or_volatility_is_no_gamma_there_is_no_closed_form():
    fn = VolatileFactor(factor(2), torch.ones(B, 1, 1).double(), VOLATILITY)
    wild = dist.LogNormal(torch.zeros(B, 1, 1, 1), 1.0).to_event(2)
    none = [
        {VOLATILITY: gamma(2.0, 2.0), SITE: units_of(2, mean=0.1)},
        {VOLATILITY: wild, SITE: units_of(2)},
        {VOLATILITY: gamma(2.0, 2.0), SITE: None},
        {VOLATILITY: None, SITE: units_of(2)},
        {VOLATILITY: gamma(2.0, 2.0), SITE: units_of(2), "other": gamma(2.0, 2.0)},
    ]
    for latents in none:
        assert fn.marginal(latents) is None
        assert fn.joint(latents) is None


def test_a_mean_that_may_learn_leaves_no_closed_form_even_where_it_still_is_zero():
    fn = volatile(factor(3), torch.ones(B, 1, 1, 1).double(), VOLATILITY)
    mean = torch.zeros(B, 3, 1, 2).double().requires_grad_()
    latents = {SITE: dist.Normal(mean, 1.0).to_event(2), VOLATILITY: gamma(2.0, 2.0)}
    assert fn.marginal(latents) is None
    assert fn.joint(latents) is None


def test_particles_of_the_units_prior_keep_the_closed_form():
    latents = {VOLATILITY: gamma(2.0, 2.0), SITE: units_of(2, particles=(5,))}
    fn = VolatileFactor(factor(2), torch.ones(B, 1, 1).double(), VOLATILITY)
    assert fn.joint(latents).batch_shape == fn.marginal(latents).batch_shape == (5, B, 1)
    y = torch.randn(B, 1, H).double()
    single = {VOLATILITY: latents[VOLATILITY], SITE: units_of(2)}
    assert fn.joint(latents).log_prob(y).shape == (5, B, 1)
    assert fn.joint(single).log_prob(y).shape == (B, 1)


def test_moving_and_expanding_it():
    normal, v = factor(3), torch.rand(B, 1, 1).double() + 0.5
    fn = VolatileFactor(normal, v, VOLATILITY)
    loc, scale = torch.randn(B, 1, 1).double(), torch.rand(B, 1, 1).double() + 0.5
    latents, y = {VOLATILITY: gamma(1.5, 1.0), SITE: units_of(3)}, torch.randn(B, 1, H).double()
    moved, jacobian = rescaled(fn, loc, scale), scale[..., 0].log()
    assert isinstance(moved, VolatileFactor)
    away = (y - loc) / scale
    torch.testing.assert_close(moved.log_prob(y), fn.log_prob(away) - H * jacobian, **EXACT)
    for name in ("marginal", "joint"):
        ours, plain = (getattr(each, name)(latents) for each in (moved, fn))
        torch.testing.assert_close(ours.log_prob(y), plain.log_prob(away) - H * jacobian, **EXACT)
    larger = fn.expand((6, B, 1))
    assert larger.batch_shape == (6, B, 1)
    assert larger.rsample().shape == (6, B, 1, H)
    torch.testing.assert_close(larger.log_prob(y), fn.log_prob(y).expand(6, B, 1), **EXACT)


@pytest.mark.parametrize("units", [2, 8])
def test_draws_of_a_multivariate_t_have_its_covariance(units):
    fn = VolatileFactor(factor(units), torch.ones(B, 1, 1).double(), VOLATILITY)
    joint = fn.joint({VOLATILITY: gamma(6.0, 4.0), SITE: units_of(units)})
    draws = joint.rsample((100_000,))[:, :, 0]
    covariance = torch.stack([torch.cov(draws[:, b].mT) for b in range(B)])
    tail = joint.stretch.square() * joint.df / (joint.df - 2)
    expected = tail[..., None] * joint.normal.covariance_matrix[:, 0]
    torch.testing.assert_close(covariance, expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(joint.variance[:, 0], expected.diagonal(dim1=-2, dim2=-1), **EXACT)
    torch.testing.assert_close(draws.mean(0), joint.mean[:, 0], atol=0.02, rtol=0)
    # Squared distances over H are F(H, df): the tails are right too, which a covariance does not tell.
    root = torch.linalg.cholesky(joint.stretch.square()[..., None, None] * joint.normal.covariance_matrix)[:, 0]
    away = torch.linalg.solve_triangular(root, (draws - joint.mean[:, 0]).unsqueeze(-1), upper=False)
    ratio = away.square().sum((-1, -2))[:20_000] / H
    for b in range(B):
        assert stats.kstest(ratio[:, b].numpy(), stats.f(H, float(joint.df[b])).cdf).pvalue > 1e-3


def test_a_t_of_two_degrees_or_less_has_no_variance():
    normal = dist.MultivariateNormal(torch.zeros(2, 1, H), torch.eye(H))
    t = MultivariateT(torch.tensor([[2.0], [4.0]]), torch.ones(2, 1), normal)
    assert t.variance[0].isinf().all()
    torch.testing.assert_close(t.variance[1], torch.full((1, H), 2.0))


def test_other_families_are_refused_by_name():
    v = torch.ones(B, 1, 1)
    with pytest.raises(ValueError, match="of a normal likelihood, not of StudentT"):
        volatile(dist.StudentT(3.0, torch.zeros(B, 1, H), 1.0).to_event(1), v, VOLATILITY)
    with pytest.raises(ValueError, match="not of MultivariateNormal"):
        volatile(dist.MultivariateNormal(torch.zeros(B, 1, H), torch.eye(H)), v, VOLATILITY)


def pair(**options):
    """A conjugate pair in double precision with windows of it."""
    made = build(load_recipe("factor", {**SMALL, "guide": "conjugate", "volatility": True, **options}))
    model, guide = shaken(made.model, 0.1).double().eval(), made.guide.double().eval()
    context = torch.randn(B, 1, CONTEXT).double().cumsum(-1)
    return model, guide, context, context[:, 0, -1:] + 3 * torch.randn(B, HORIZON).double()


KINDS = {"forecaster": {}, "dense": {"units": 12}, "two latents": {"latent_dim": 2}, "trajectory": TRAJECTORY}


@pytest.mark.parametrize("kind", KINDS)
def test_the_conjugate_guide_is_exact_with_a_volatility_unit(kind):
    model, guide, context, future = pair(**KINDS[kind])
    prediction = predict(model, guide, context, 20)
    assert prediction.exact
    assert isinstance(prediction.components, dist.StudentT)
    exact = prediction.joint.log_prob(future[:, None])[:, 0]
    with torch.no_grad():
        weights = importance_log_weights(model, guide, context, future, 5)
    torch.testing.assert_close(weights, exact.expand(5, B), **EXACT)
    with torch.no_grad():
        loss = float(LocalELBO(num_particles=20_000).loss(model, guide, context, future))
    assert -loss == pytest.approx(float(exact.sum()), abs=0.2)


def test_the_gradient_of_the_conjugate_elbo_is_that_of_the_joint_density():
    """Though the parameters of the volatility's posterior are constants to it."""
    model, guide, context, future = pair(units=3)
    elbo = LocalELBO(num_particles=20_000)
    loss = elbo.differentiable_loss(model, guide, context, future)
    fn, latents = joint_of(model, guide, context)
    exact = -fn.joint(latents).log_prob(future[:, None]).sum()
    names, leaves = zip(*model.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(each, leaves, allow_unused=True) for each in (loss, exact))
    for name, mine, its in zip(names, ours, theirs, strict=True):
        assert (mine is None) == (its is None), name
        if its is not None:
            torch.testing.assert_close(mine, its, atol=0.03 * float(its.abs().max()) + 0.01, rtol=0.05, msg=name)


def joint_of(model, guide, context):
    trace, _ = forecast_trace(model, guide, context)
    return trace.nodes["y"]["fn"], {site: trace.nodes[site]["fn"] for site in (VOLATILITY, SITE)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_of_volatility_is_bayes_rule_by_quadrature(kind):
    model, guide, context, future = pair(**KINDS[kind])
    grid = torch.linspace(1e-4, 40.0, 40_001).double()
    v = grid.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        fn, latents = joint_of(model, guide, context)
        q = guide.posterior(context, future).base_dist
        normal = fn.factor.joint({SITE: latents[SITE]})
        # p(y | v), the units integrated out: a normal whose deviations are divided by sqrt(v).
        away = normal.mean + v[..., 0].sqrt() * (future[:, None] - normal.mean)
        log_prob = normal.log_prob(away) + 0.5 * HORIZON * v[..., 0, 0].log()
        log_prob = (log_prob + latents[VOLATILITY].log_prob(v))[..., 0]
        found = q.log_prob(v)[..., 0, 0, 0].exp()
    density = np.exp((log_prob - log_prob.amax(0)).numpy())
    density /= np.trapezoid(density, grid, axis=0)
    torch.testing.assert_close(found, torch.as_tensor(density), rtol=1e-4, atol=1e-6)
    mean = np.trapezoid(density * grid[:, None].numpy(), grid, axis=0)
    torch.testing.assert_close(q.mean.flatten(), torch.as_tensor(mean), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options", [{"prior": "contextual"}, {"prior": "learned"}, {**TRAJECTORY, "prior": "contextual_ar1"}]
)
def test_below_units_of_another_mean_elbo_and_gradients_are_those_of_quadrature(options):
    """There the posterior of volatility is amortized; given v the units are integrated out exactly all the same."""
    model, guide, context, future = pair(units=3, **options)
    shaken(guide, 0.03)
    assert not predict(model, guide, context, 5).exact
    elbo = LocalELBO(num_particles=20_000)
    loss = elbo.differentiable_loss(model, guide, context, future)

    q = guide.posterior(context, future)
    v = torch.linspace(1e-4, 12.0, 6_001).double().view(-1, 1, 1, 1, 1) * q.mean.detach()  # (grid, B, 1, 1, 1)
    fn, latents = joint_of(model, guide, context)
    normal, loc = fn.factor.joint({SITE: latents[SITE]}), fn.factor.loc
    assert (normal.mean - loc).abs().max() > 1e-3
    # p(y | v): deviations from loc, the units' part of the mean among them, are divided by sqrt(v).
    evidence = normal.log_prob(loc + v[..., 0].sqrt() * (future[:, None] - loc)) + 0.5 * HORIZON * v[..., 0, 0].log()
    weight = q.log_prob(v)
    value = weight.exp() * (evidence + latents[VOLATILITY].log_prob(v) - weight)  # (grid, B, 1)
    exact = -torch.trapezoid(value, v[..., 0, 0], dim=0).sum()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), abs=0.2)

    names, leaves = zip(*[*model.named_parameters(), *guide.named_parameters()], strict=True)
    ours, theirs = (torch.autograd.grad(each, leaves, allow_unused=True) for each in (loss, exact))
    assert any(name.startswith("heads.volatility.net") for name in names)
    for name, mine, its in zip(names, ours, theirs, strict=True):
        assert (mine is None) == (its is None), name
        if its is not None:
            torch.testing.assert_close(mine, its, atol=0.03 * float(its.abs().max()) + 0.01, rtol=0.05, msg=name)
