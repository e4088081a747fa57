"""The conjugate posterior against Bayes' rule, and what a linear reading says of the units."""

import pyro.distributions as dist
import pytest
import torch
from dense import EXACT, LINEAR, B, H, N, conditioned, linear_model, prior_of, read_by, reading
from torch.distributions import kl_divergence

from eve_pyro.distributions import AR1
from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.protocols import Information


def test_what_a_linear_reading_says_is_its_likelihood_up_to_a_constant():
    (_, _, _), (loadings, noise, value) = linear_model("normal", 3, 2, 1)
    weights, activity = loadings.transpose(-2, -1), torch.randn(2, B, N, 2).double()
    known = Information.of_linear(value, weights, noise)
    square = known.strength * torch.einsum("sbnp,bnpmq,sbmq->sb", activity, known.precision, activity) + known.square
    found = (known.pull * activity).sum((-1, -2)) - 0.5 * square
    read = dist.Normal(torch.einsum("bhnp,sbnp->sbh", weights, activity), noise)
    constant = dist.Normal(value, noise).log_prob(value).sum(-1)
    torch.testing.assert_close(found + constant, read.log_prob(value).sum(-1), **EXACT)


@pytest.mark.parametrize("shape", LINEAR)
def test_the_evidence_is_what_the_conjugate_elbo_says_for_every_draw_and_on_average(shape):
    (prior, dense, _), (loadings, noise, value) = linear_model(*shape)
    matrix = reading(loadings, *prior.event_shape)
    posterior, evidence = conditioned(dense, matrix, noise, value)
    q, expected = ConjugateUnits(prior, *read_by(loadings, noise, value)), evidence.log_prob(value)

    def likelihood(z):
        return dist.Normal((matrix @ z.flatten(-3)[..., None])[..., 0], noise).log_prob(value).sum(-1)

    z = q.rsample((5,))
    weight = likelihood(z) + (prior.log_prob(z) - q.log_prob(z)).sum(-1)
    torch.testing.assert_close(weight, expected.expand(5, B), **EXACT)
    spread = (matrix @ posterior.covariance_matrix @ matrix.mT).diagonal(dim1=-2, dim2=-1)
    average = likelihood(q.mean) - 0.5 * (spread / noise.square()).sum(-1)
    torch.testing.assert_close(average - kl_divergence(q, prior).sum(-1), expected, **EXACT)


def test_a_prior_that_varies_over_particles_gives_every_particle_its_own_posterior():
    (prior, _, _), given = linear_model("ar1", 3, 3, 2)
    other, _, _ = prior_of("ar1", 3, 2)
    locs = torch.stack([prior.mean, other.mean])
    q = ConjugateUnits(AR1(locs, prior.phi, prior.scale), *read_by(*given))
    assert q.batch_shape == (2, B, N)
    for particle, loc in enumerate(locs):
        single = ConjugateUnits(AR1(loc, prior.phi, prior.scale), *read_by(*given))
        torch.testing.assert_close(q.mean[particle], single.mean)
        z = single.rsample()
        torch.testing.assert_close(q.log_prob(z)[particle], single.log_prob(z))


def test_a_conjugate_unit_that_is_not_read_keeps_its_prior_and_pays_nothing():
    (prior, _, _), (loadings, noise, value) = linear_model("ar1", 3, 3, 2)
    read = torch.tensor([0.0, 1.0, 1.0]).double()
    q = ConjugateUnits(prior, *read_by(loadings * read, noise, value))
    torch.testing.assert_close(q.mean[:, 0], prior.mean[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(kl_divergence(q, prior)[:, 0], torch.zeros(B).double(), rtol=0, atol=1e-12)


def test_units_that_are_no_gaussian_paths_are_refused():
    given = read_by(torch.ones(B, H, 1, N), torch.ones(B, H), torch.zeros(B, H))
    with pytest.raises(ValueError, match=r"needs Gaussian units, not a prior of Independent"):
        ConjugateUnits(dist.Laplace(torch.zeros(B, N, 1, 1), 1.0).to_event(2), *given)
