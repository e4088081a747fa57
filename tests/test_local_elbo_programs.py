"""Programs of all kinds under the local ELBO: what it refuses by name, and what it counts."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import UNITS, B
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from eve_pyro.infer.local_elbo import LocalELBO


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


def test_an_auxiliary_site_of_all_units_together_is_counted_once():
    loc, tril = torch.tensor([0.3, -0.2, 0.5]), torch.tensor([[0.8, 0.0, 0.0], [0.3, 0.7, 0.0], [-0.2, 0.1, 0.9]])

    def model():
        with pyro.plate("windows", 4, dim=-2):
            with pyro.plate("units", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.ones(4, 1))

    def guide():
        with pyro.plate("windows", 4, dim=-2):
            joint = dist.MultivariateNormal(loc, scale_tril=tril)
            z = pyro.sample("z_joint", joint.expand([4, 1]), infer={"is_auxiliary": True})
            with pyro.plate("units", 3, dim=-1):
                pyro.sample("z", dist.Delta(z[..., 0, :]))

    losses = []
    for elbo in (LocalELBO(sample_kl=True), Trace_ELBO()):
        torch.manual_seed(3)
        losses.append(float(elbo.differentiable_loss(model, guide)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    elbo = LocalELBO(sample_kl=True)
    elbo.loss(model, guide)
    units = elbo.terms.units["z"]
    torch.testing.assert_close(units.energy, loc.square())
    torch.testing.assert_close(units.scale, (tril @ tril.T).diagonal().sqrt())


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
