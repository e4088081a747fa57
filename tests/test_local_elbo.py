"""The local ELBO against Pyro's own, against loops over units, and against what it must refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import GUIDES, HORIZON, UNITS, make_model, shaken
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.predictive import predict

B = 4


def pair(guide="future_aware", **model_options):
    model = shaken(make_model(**model_options), 0.05)
    return model, shaken(GUIDES[guide](model), 0.05)


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
    model, guide = pair(guide, **options)
    theirs = TraceMeanField_ELBO(num_particles, max_plate_nesting=2, vectorize_particles=True)
    (loss, grads), (expected, expected_grads) = losses(
        [LocalELBO(num_particles=num_particles), theirs], model, guide, batch
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-5, atol=1e-5 * float(grad.abs().max()))


def test_a_delta_guide_is_the_map_estimate_as_pyro_has_it(batch):
    model, guide = pair("delta")
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
    model, guide = pair(latent_dim=2)
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
    model, guide = pair(prior="contextual", readout="normal", latent_dim=2)
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
    model, guide = pair()
    log_prob, kl = per_draw(model, guide, batch, 5)
    torch.manual_seed(7)
    loss = LocalELBO("mixture", num_particles=5).differentiable_loss(model, guide, *batch)
    assert float(loss) == pytest.approx(
        float(kl - torch.stack([w.double().exp() for w in log_prob]).mean(0).log().sum()), rel=1e-5
    )


@pytest.mark.parametrize("guide", ["future_aware", "context"])
def test_predictive_adds_the_exact_marginals_of_the_factor_readout(batch, guide):
    model, guide = pair(guide)
    torch.manual_seed(7)
    elbo = float(LocalELBO().differentiable_loss(model, guide, *batch))
    torch.manual_seed(7)
    loss = LocalELBO("predictive", alpha=0.3).differentiable_loss(model, guide, *batch)
    marginals = predict(model, guide, batch[0]).components.log_prob(batch[1]).sum()
    assert float(loss) == pytest.approx(0.3 * elbo - 0.7 * float(marginals), rel=1e-5)


def test_predictive_mixes_draws_of_the_prior_where_there_is_no_closed_form(batch):
    """With many particles the term converges to the marginal density that brute force over the prior gives."""
    model, guide = pair(readout="normal", prior="learned")
    elbo = LocalELBO("predictive", num_particles=50_000)
    elbo.differentiable_loss(model, guide, *batch)
    with torch.no_grad():
        components = predict(model, guide, batch[0], 50_000).components
        expected = (components.log_prob(batch[1]).logsumexp(0) - math.log(50_000)).sum(-1)
    torch.testing.assert_close(elbo.terms.predictive, expected, atol=0.1, rtol=0)


def test_penalties_are_nats_a_window_and_kept_apart(batch):
    model, guide = pair()
    torch.manual_seed(7)
    plain = float(LocalELBO().differentiable_loss(model, guide, *batch))
    torch.manual_seed(7)
    elbo = LocalELBO(penalties={"band": lambda terms: 2.0 * terms.units["eve.z"].energy.mean()})
    loss = float(elbo.differentiable_loss(model, guide, *batch))
    assert loss == pytest.approx(plain + B * float(elbo.terms.penalties["band"]), rel=1e-5)
    assert float(elbo.terms.penalties["band"]) == pytest.approx(2 * float(elbo.terms.units["eve.z"].energy.mean()))


def test_scaled_and_masked_sites_count_as_in_pyro(batch):
    model, guide = pair()

    def scaled(program):
        return poutine.mask(poutine.scale(program, 0.25), torch.tensor([[True], [False], [True], [True]]))

    def loss(elbo):
        torch.manual_seed(7)
        return float(elbo.differentiable_loss(scaled(model), scaled(guide), *batch))

    assert loss(LocalELBO()) == pytest.approx(loss(TraceMeanField_ELBO(max_plate_nesting=2)), rel=1e-5)


# --- what it refuses -------------------------------------------------------------------------------------------------


def program(*sites, observed=False, draw=None):
    """Sample ``sites`` of a small model or guide, in this order, and observe their sum in a model."""

    def run():
        with pyro.plate("windows", B, dim=-2):
            with pyro.plate("units", UNITS, dim=-1):
                fn = draw() if draw else dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0)
                z = sum(pyro.sample(name, fn) for name in sites)
            if observed:
                pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(B, 1))

    return run


def evaluate(model, guide, **options):
    return LocalELBO(**options).differentiable_loss(model, guide)


def test_a_missing_site_is_named():
    with pytest.raises(ValueError, match="does not sample the model's site 'z'"):
        evaluate(program("z", observed=True), lambda: None)


def test_an_added_site_is_named():
    with pytest.raises(ValueError, match="the guide samples 'w'"):
        evaluate(program("z", observed=True), program("z", "w"))


def test_sites_in_another_order_are_refused():
    with pytest.raises(ValueError, match=r"another order \(b, a\) than the model \(a, b\)"):
        evaluate(program("a", "b", observed=True), program("b", "a"))


def test_draws_without_a_gradient_are_refused():
    def coin():
        return dist.Bernoulli(pyro.param("p", torch.tensor(0.4)))

    with pytest.raises(ValueError, match=r"site 'z' \(Bernoulli\) has no reparameterised draws"):
        evaluate(program("z", observed=True, draw=coin), program("z", draw=coin))


def test_a_kl_without_closed_form_is_refused_unless_sampling_is_asked_for():
    model = program("z", observed=True, draw=lambda: dist.StudentT(5.0, torch.zeros(()), 1.0))
    with pytest.raises(ValueError, match="'z' has no closed form: q is Normal, p is StudentT; pass sample_kl=True"):
        evaluate(model, program("z"))
    elbo = LocalELBO(num_particles=40_000, sample_kl=True)
    loss = elbo.differentiable_loss(model, program("z"))
    assert elbo.terms.sampled_sites == ("z",)
    q, p = torch.distributions.Normal(0.0, 1.0), torch.distributions.StudentT(5.0)
    grid = torch.linspace(-12, 12, 20_001)
    kl = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid)
    torch.testing.assert_close(elbo.terms.units["z"].kl, kl.expand(B, UNITS), atol=0.02, rtol=0)
    assert torch.isfinite(loss)


def test_an_autoguides_auxiliary_site_is_refused_and_counted_right_when_sampled():
    model = program("z", observed=True)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    guide()
    with pytest.raises(ValueError, match="through the auxiliary site 'z_unconstrained'"):
        evaluate(model, guide)
    torch.manual_seed(3)
    ours = float(LocalELBO(sample_kl=True).differentiable_loss(model, guide))
    torch.manual_seed(3)
    assert ours == pytest.approx(float(Trace_ELBO().differentiable_loss(model, guide)), rel=1e-5)


def test_a_model_that_observes_nothing_is_refused():
    with pytest.raises(ValueError, match="observes nothing"):
        evaluate(program("z"), program("z"))


@pytest.mark.parametrize("beta", [torch.ones(UNITS + 1), torch.ones(2, UNITS)])
def test_a_beta_of_another_shape_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta for site 'z' is a number or {UNITS} values"):
        evaluate(program("z", observed=True), program("z"), beta=beta)


@pytest.mark.parametrize("wrong", [{"objective": "map"}, {"alpha": 1.5}, {"num_particles": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LocalELBO(**wrong)


def test_a_beta_for_an_unknown_site_or_below_zero_is_refused():
    with pytest.raises(ValueError, match="beta names 'w', the latent sites are z"):
        evaluate(program("z", observed=True), program("z"), beta={"w": torch.ones(UNITS)})
    for beta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="finite and not negative"):
            evaluate(program("z", observed=True), program("z"), beta=beta)


def test_further_plates_are_refused():
    def grouped(observed):
        with pyro.plate("groups", 2, dim=-3):
            program("z", observed=observed)()

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="plate 'groups' at dim -3"):
        evaluate(lambda: grouped(True), lambda: grouped(False))


def test_what_is_observed_outside_the_windows_counts_once():
    def model():
        pyro.sample("w", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
        pyro.factor("f", torch.tensor(-2.0))
        program("z", observed=True)()

    torch.manual_seed(7)
    ours = float(evaluate(model, program("z")).detach())
    torch.manual_seed(7)
    theirs = TraceMeanField_ELBO(max_plate_nesting=2).differentiable_loss(model, program("z"))
    assert ours == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_auxiliary_sites_find_the_longest_name_they_serve():
    model = program("z", "z_a", observed=True)
    guide = AutoNormal(poutine.block(model, hide=["y"]))
    guide()
    torch.manual_seed(3)
    ours = float(LocalELBO(sample_kl=True).differentiable_loss(model, guide).detach())
    torch.manual_seed(3)
    assert ours == pytest.approx(float(Trace_ELBO().differentiable_loss(model, guide).detach()), rel=1e-5)


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
