"""The local ELBO against Pyro's own and against loops over units."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import HORIZON, UNITS, B, make_pair
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict


def losses(elbos, model, guide, batch):
    """Loss and gradients of each ELBO from the same draws."""
    module = nn.ModuleList([model, guide])
    for elbo in elbos:
        torch.manual_seed(7)
        module.zero_grad()
        loss = elbo.differentiable_loss(model, guide, *batch)
        loss.backward()
        yield loss.item(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("guide", ["future_aware", "context"])
@pytest.mark.parametrize("options", [{}, {"readout": "student_t", "prior": "learned", "latent_dim": 3}])
def test_at_beta_one_it_is_pyros_mean_field_elbo(batch, guide, options, num_particles):
    model, guide = make_pair(guide, **options)
    theirs = TraceMeanField_ELBO(num_particles, max_plate_nesting=2, vectorize_particles=True)
    (loss, grads), (expected, expected_grads) = losses(
        [LocalELBO(num_particles=num_particles), theirs], model, guide, batch
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-5, atol=1e-5 * float(grad.abs().max()))


def test_a_delta_guide_is_the_map_estimate_as_pyro_has_it(batch):
    model, guide = make_pair("delta")
    (loss, grads), (expected, expected_grads) = losses([LocalELBO(), Trace_ELBO()], model, guide, batch)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5 * float(grad.abs().max()))


def traced(model, guide, batch, seed=7):
    torch.manual_seed(seed)
    guide_trace = poutine.trace(guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    model_trace.compute_log_prob()
    return model_trace, guide_trace


def test_every_unit_pays_its_own_beta(batch):
    model, guide = make_pair(latent_dim=2)
    model_trace, guide_trace = traced(model, guide, batch)
    q, p = guide_trace.nodes["eve.z"]["fn"].base_dist, model_trace.nodes["eve.z"]["fn"].base_dist
    beta = torch.linspace(0.1, 2.0, UNITS)
    expected = -model_trace.nodes["y"]["log_prob"].sum()
    for b in range(B):
        for n in range(UNITS):
            for k in range(2):
                m, s = q.loc[b, n, 0, k], q.scale[b, n, 0, k]
                ratio = s / p.scale[b, n, 0, k]
                shift = (m - p.loc[b, n, 0, k]) / p.scale[b, n, 0, k]
                expected = expected + beta[n] * 0.5 * (ratio**2 + shift**2 - 1 - 2 * ratio.log())
    for form in (beta, {"eve.z": beta}):
        torch.manual_seed(7)
        loss = LocalELBO(beta=form).differentiable_loss(model, guide, *batch)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_terms_hold_kl_by_window_and_unit_and_energy_by_unit(batch):
    model, guide = make_pair(prior="contextual", readout="normal", latent_dim=2)
    elbo = LocalELBO()
    model_trace, guide_trace = traced(model, guide, batch)
    torch.manual_seed(7)
    elbo.differentiable_loss(model, guide, *batch)
    units = elbo.terms.units["eve.z"]
    q, p = guide_trace.nodes["eve.z"]["fn"], model_trace.nodes["eve.z"]["fn"]
    torch.testing.assert_close(units.kl, torch.distributions.kl_divergence(q, p))
    assert units.kl.shape == (B, UNITS)
    torch.testing.assert_close(units.energy, ((q.mean - p.mean) / p.stddev).square().mean((0, 2, 3)))
    torch.testing.assert_close(units.scale, q.stddev.mean((0, 2, 3)))
    torch.testing.assert_close(elbo.terms.log_likelihood, model_trace.nodes["y"]["log_prob"][:, 0])
    assert not units.kl.requires_grad


def per_draw(model, guide, batch, num_particles, seed=7):
    """log p(y | z_s) of the vectorised run, (S, B), and the KL."""
    torch.manual_seed(seed)
    vectorise = pyro.plate("num_particles_vectorized", num_particles, dim=-3)
    guide_trace = poutine.trace(vectorise(guide)).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(vectorise(model), trace=guide_trace)).get_trace(*batch)
    model_trace.compute_log_prob()
    kl = torch.distributions.kl_divergence(guide_trace.nodes["eve.z"]["fn"], model_trace.nodes["eve.z"]["fn"])
    return model_trace.nodes["y"]["log_prob"][..., 0], kl[0].sum()


def test_mixture_is_the_log_of_the_mean_over_draws(batch):
    model, guide = make_pair()
    log_prob, kl = per_draw(model, guide, batch, 5)
    torch.manual_seed(7)
    loss = LocalELBO("mixture", num_particles=5).differentiable_loss(model, guide, *batch)
    assert float(loss) == pytest.approx(
        float(kl - torch.stack([w.double().exp() for w in log_prob]).mean(0).log().sum()), rel=1e-5
    )


@pytest.mark.parametrize("guide", ["future_aware", "context"])
def test_predictive_adds_the_exact_marginals_of_the_factor_readout(batch, guide):
    model, guide = make_pair(guide)
    torch.manual_seed(7)
    elbo = float(LocalELBO().differentiable_loss(model, guide, *batch))
    torch.manual_seed(7)
    loss = LocalELBO("predictive", alpha=0.3).differentiable_loss(model, guide, *batch)
    marginals = predict(model, guide, batch[0]).components.log_prob(batch[1]).sum()
    assert float(loss) == pytest.approx(0.3 * elbo - 0.7 * float(marginals), rel=1e-5)


def test_predictive_mixes_draws_of_the_prior_where_there_is_no_closed_form(batch):
    """With many particles the term converges to the marginal density that brute force over the prior gives."""
    model, guide = make_pair(readout="normal", prior="learned")
    elbo = LocalELBO("predictive", num_particles=50_000)
    elbo.differentiable_loss(model, guide, *batch)
    with torch.no_grad():
        components = predict(model, guide, batch[0], 50_000).components
        expected = (components.log_prob(batch[1]).logsumexp(0) - math.log(50_000)).sum(-1)
    torch.testing.assert_close(elbo.terms.predictive, expected, atol=0.1, rtol=0)


def test_penalties_are_nats_a_window_and_kept_apart(batch):
    model, guide = make_pair()
    torch.manual_seed(7)
    plain = float(LocalELBO().differentiable_loss(model, guide, *batch))
    torch.manual_seed(7)
    elbo = LocalELBO(penalties={"band": lambda terms: 2.0 * terms.units["eve.z"].energy.mean()})
    loss = float(elbo.differentiable_loss(model, guide, *batch))
    assert loss == pytest.approx(plain + B * float(elbo.terms.penalties["band"]), rel=1e-5)
    assert float(elbo.terms.penalties["band"]) == pytest.approx(2 * float(elbo.terms.units["eve.z"].energy.mean()))


def test_scaled_and_masked_sites_count_as_in_pyro(batch):
    model, guide = make_pair()

    def scaled(program):
        return poutine.mask(poutine.scale(program, 0.25), torch.tensor([[True], [False], [True], [True]]))

    def loss(elbo):
        torch.manual_seed(7)
        return float(elbo.differentiable_loss(scaled(model), scaled(guide), *batch))

    assert loss(LocalELBO()) == pytest.approx(loss(TraceMeanField_ELBO(max_plate_nesting=2)), rel=1e-5)


def y_of(loc=0.0, transform=None):
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            y = None if future is None else (transform or (lambda x: x))(future).unsqueeze(-2)
            pyro.sample("y", dist.Normal(torch.full((HORIZON,), loc), 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        lambda model: poutine.scale(model, 0.1),
        lambda model: poutine.mask(model, torch.tensor([[True], [False], [True], [True]])),
        lambda model: y_of(transform=torch.exp),
    ],
    ids=["plain", "scaled", "masked", "transformed"],
)
def test_without_units_the_predictive_term_is_the_elbo(batch, change):
    model = change(y_of())
    nothing = lambda context, future=None: None  # noqa: E731
    elbo = LocalELBO().differentiable_loss(model, nothing, *batch)
    predictive = LocalELBO("predictive", alpha=0.0).differentiable_loss(model, nothing, *batch)
    assert float(predictive) == pytest.approx(float(elbo), rel=1e-5)


def test_the_predictive_term_never_sees_the_future(batch):
    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            y = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(z[..., None].expand(*z.shape, HORIZON), 1.0).to_event(1), obs=y)

    def guide(context, future=None):
        loc = torch.zeros(len(context), 1) if future is None else future.mean(-1, keepdim=True)
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
            pyro.sample("z", dist.Delta(loc))

    loss = LocalELBO("predictive", alpha=0.0).differentiable_loss(model, guide, *batch)
    assert float(loss) == pytest.approx(-float(dist.Normal(0.0, 1.0).log_prob(batch[1]).sum()), rel=1e-5)
