"""The factor normal against dense Gaussian algebra, and affine moves against the change of variables."""

import pyro.distributions as dist
import pytest
import torch

from eve_pyro.distributions import FactorNormal, rescaled

B, H, N = 4, 7, 3


@pytest.fixture(params=["shared loadings", "loadings by window"])
def factor(request):
    shape = (H, N) if request.param == "shared loadings" else (B, H, N)
    loc, scale = torch.randn(B, 1, H, dtype=torch.float64), torch.rand(B, 1, H, dtype=torch.float64) + 0.5
    loadings, gain = 0.5 * torch.randn(shape, dtype=torch.float64), torch.rand(B, 1, N, dtype=torch.float64) + 0.5
    activity = torch.randn(2, B, 1, N, dtype=torch.float64)
    return FactorNormal(loc, scale, loadings, gain, activity, site="eve.z")


def latents(mean=0.0, deviation=1.0):
    base = dist.Normal(torch.full((B, N, 1, 1), mean).double(), torch.full((B, N, 1, 1), deviation).double())
    return {"eve.z": base.to_event(2)}


def dense(factor, mean, deviation):
    """Mean and covariance of y by the textbook, from the loadings as written in the docstring."""
    loadings = factor.loadings.expand(B, H, N) * factor.gain  # (B, H, N)
    k = 1 / (1 + loadings.square().sum(-1)).sqrt()
    scaled = (factor.scale[:, 0] * k)[..., None] * loadings
    noise = torch.diag_embed((factor.scale[:, 0] * k).square())
    centre = factor.loc[:, 0] + mean * scaled.sum(-1)
    return centre, deviation**2 * scaled @ scaled.mT + noise


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, 0.4)])
def test_joint_and_marginal_are_the_dense_gaussians(factor, mean, deviation):
    centre, covariance = dense(factor, mean, deviation)
    y = torch.randn(B, H, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(centre, covariance).log_prob(y)
    torch.testing.assert_close(factor.joint(latents(mean, deviation)).log_prob(y[:, None])[:, 0], expected)
    marginal = factor.marginal(latents(mean, deviation))
    torch.testing.assert_close(marginal.mean[:, 0], centre)
    torch.testing.assert_close(marginal.variance[:, 0], covariance.diagonal(dim1=-2, dim2=-1))


def test_standard_units_leave_the_marginals_alone(factor):
    marginal = factor.marginal(latents())
    torch.testing.assert_close(marginal.mean, factor.loc)
    torch.testing.assert_close(marginal.stddev, factor.scale)


def test_marginals_teach_a_prior_that_learns_and_happens_to_be_standard(factor):
    loc, scale = (torch.full((N, 1, 1), value, dtype=torch.float64, requires_grad=True) for value in (0.0, 1.0))
    marginal = factor.marginal({"eve.z": dist.Normal(loc, scale).to_event(2)})
    found = torch.autograd.grad(marginal.log_prob(torch.ones(B, 1, H).double()).sum(), (loc, scale))
    assert all((gradient != 0).all() for gradient in found)


def test_conditional_averages_to_the_joint(factor):
    """E_z p(y | z) by brute force over many draws of z equals the closed form."""
    y = factor.joint(latents()).sample()
    draws = torch.randn(200_000, B, 1, N, dtype=torch.float64)
    fields = factor.loc, factor.scale, factor.loadings, factor.gain, draws
    log_prob = FactorNormal(*fields, site="eve.z").log_prob(y)
    estimate = log_prob.logsumexp(0) - torch.tensor(200_000.0).log()
    torch.testing.assert_close(estimate, factor.joint(latents()).log_prob(y), atol=0.05, rtol=0)


def test_no_closed_form_for_units_that_are_no_independent_normals(factor):
    units = {"eve.z": dist.Laplace(torch.zeros(B, N, 1, 1), 1.0).to_event(2)}
    assert factor.marginal(units) is None
    assert factor.joint(units) is None
    assert factor.marginal({}) is None


def test_pooled_latent_dimensions_add_their_variances(factor):
    base = dist.Normal(torch.zeros(B, N, 1, 4).double(), torch.ones(B, N, 1, 4).double()).to_event(2)
    fields = factor.loc, factor.scale, factor.loadings, factor.gain, factor.activity
    halved = FactorNormal(*fields, site="eve.z", pool_weight=0.5).marginal({"eve.z": base})  # 0.5 sum of 4 normals: 1
    torch.testing.assert_close(halved.stddev, factor.scale)


def test_expand_keeps_the_density(factor):
    y = torch.randn(B, 1, H, dtype=torch.float64)
    wide = factor.expand(torch.Size([3, 2, B, 1]))
    assert wide.batch_shape == (3, 2, B, 1)
    torch.testing.assert_close(wide.log_prob(y)[1], factor.log_prob(y))


def families():
    loc, scale = torch.randn(B, 1, H), torch.rand(B, 1, H) + 0.5
    yield "normal", dist.Normal(loc, scale).to_event(1)
    yield "student_t", dist.StudentT(torch.full((H,), 4.0), loc, scale).to_event(1)
    yield "laplace", dist.Laplace(loc, scale).to_event(1)
    yield "multivariate", dist.MultivariateNormal(loc, torch.eye(H))


@pytest.mark.parametrize(("name", "fn"), list(families()), ids=lambda value: value if isinstance(value, str) else "")
def test_rescaled_carries_its_jacobian(name, fn):
    loc, scale = torch.randn(B, 1, 1), torch.rand(B, 1, 1) + 0.5
    y = torch.randn(B, 1, H)
    expected = fn.log_prob((y - loc) / scale) - H * scale[..., 0].log()
    torch.testing.assert_close(rescaled(fn, loc, scale).log_prob(y), expected)


def test_rescaled_factor_normal_carries_its_jacobian(factor):
    loc, scale = torch.randn(B, 1, 1).double(), torch.rand(B, 1, 1).double() + 0.5
    y = torch.randn(B, 1, H, dtype=torch.float64)
    moved = rescaled(factor, loc, scale)
    jacobian = H * scale[..., 0].log()
    torch.testing.assert_close(moved.log_prob(y), factor.log_prob((y - loc) / scale) - jacobian)
    expected = factor.joint(latents()).log_prob((y - loc) / scale) - jacobian
    torch.testing.assert_close(moved.joint(latents()).log_prob(y), expected)
