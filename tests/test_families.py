"""Likelihoods of any family: the log score of their values, by quadrature over the one unit they share."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, B
from torch.distributions import transforms as T

from eve_pyro.data.tabular import Table
from eve_pyro.distributions import rescaled
from eve_pyro.infer.predictive import mixture_log_prob, predict
from eve_pyro.infer.scores import evaluate, marginal_scores

SLOPES = torch.linspace(-1.0, 1.0, HORIZON)
INSTANCE = torch.linspace(-2.0, 2.0, B).view(B, 1, 1), torch.linspace(0.5, 2.0, B).view(B, 1, 1)


def moved_log_prob(loc, y):
    shift, stretch = (each[:, 0] for each in INSTANCE)
    return dist.Laplace(loc, 0.5).log_prob((y - shift) / stretch) - stretch.log()


FAMILIES = {  # of loc (..., B, 1, H), and log p(y_h | loc_h) by hand
    "laplace": (
        lambda loc: dist.Laplace(loc, 0.5).to_event(1),
        lambda loc, y: -2 * (y - loc).abs(),
    ),
    "log normal": (
        lambda loc: dist.LogNormal(loc, 0.5).to_event(1),
        lambda loc, y: dist.Normal(loc, 0.5).log_prob(y.log()) - y.log(),
    ),
    "exp of laplace": (
        lambda loc: dist.TransformedDistribution(dist.Laplace(loc, 0.5).to_event(1), T.ExpTransform()),
        lambda loc, y: dist.Laplace(loc, 0.5).log_prob(y.log()) - y.log(),
    ),
    "moved laplace": (lambda loc: rescaled(dist.Laplace(loc, 0.5).to_event(1), *INSTANCE), moved_log_prob),
}


def model_of(family):
    """One unit that all steps of the horizon read, each with a slope of its own."""

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(context), 1), 1.0))
            pyro.sample("y", family(z[..., None] * SLOPES), obs=None if future is None else future.unsqueeze(-2))

    return model


def nothing(context, future=None):
    """Leave all to the prior."""


def of_the_prior(context, future=None):
    """Propose from the prior."""
    with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(context), 1), 1.0))


def truth():
    return torch.rand(B, HORIZON) + 0.3  # in the support of every family


@pytest.mark.parametrize("name", FAMILIES)
def test_the_log_score_of_a_mixture_is_the_marginal_density(name):
    family, log_prob = FAMILIES[name]
    prediction, y = predict(model_of(family), nothing, torch.zeros(B, 1, CONTEXT), 20_000), truth()
    assert prediction.components is None
    grid = torch.linspace(-8, 8, 2001).view(-1, 1, 1)
    density = (log_prob(grid * SLOPES, y) + dist.Normal(0.0, 1.0).log_prob(grid)).exp()
    expected = torch.trapezoid(density, grid[:, 0, 0], dim=0).log()
    scores = marginal_scores(prediction, y)
    torch.testing.assert_close(scores["log_score"], -expected.mean(-1), atol=0.02, rtol=0)
    assert all(torch.isfinite(values).all() for values in scores.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_values_separate_given_the_units(name):
    family, log_prob = FAMILIES[name]
    z, y = torch.randn(5, B, 1), truth()
    each = log_prob(z * SLOPES, y)  # (S, B, H)
    expected = (each.logsumexp(0) - math.log(5)).sum(-1)
    torch.testing.assert_close(mixture_log_prob(family(z[..., None] * SLOPES), y.unsqueeze(-2)), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_log_score_of_a_points_forecast_is_exact(name):
    family, log_prob = FAMILIES[name]

    def point(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
            pyro.sample("z", dist.Delta(torch.full((len(context), 1), 0.7)))

    prediction, y = predict(model_of(family), point, torch.zeros(B, 1, CONTEXT), 3), truth()
    torch.testing.assert_close(prediction.log_prob(y), log_prob(0.7 * SLOPES, y)[None])
    torch.testing.assert_close(prediction.joint.log_prob(y.unsqueeze(-2))[:, 0], log_prob(0.7 * SLOPES, y).sum(-1))


def test_values_that_hear_of_one_another_have_no_log_score():
    def family(loc):
        swapped = dist.transforms.Permute(torch.arange(HORIZON).flip(0))
        return dist.TransformedDistribution(dist.Normal(loc, 1.0).to_event(1), swapped)

    prediction = predict(model_of(family), nothing, torch.zeros(B, 1, CONTEXT), 10)
    assert prediction.log_prob(truth()) is None
    assert torch.isnan(marginal_scores(prediction, truth())["log_score"]).all()


def test_the_log_score_of_classes_is_that_of_their_mean_probability():
    slopes, classes = torch.tensor([[-1.0, 0.0, 2.0]]), torch.tensor([[0.0], [1.0], [2.0], [2.0]])

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(context), 1), 1.0))
            likelihood = dist.Categorical(logits=(z[..., None] * slopes).unsqueeze(-2)).to_event(1)
            pyro.sample("y", likelihood, obs=None if future is None else future.unsqueeze(-2))

    prediction = predict(model, nothing, torch.zeros(B, 1, CONTEXT), 20_000)
    expected = (torch.randn(200_000, 1) * slopes).softmax(-1).mean(0)[classes[:, 0].long()].log()
    torch.testing.assert_close(marginal_scores(prediction, classes)["log_score"], -expected, atol=0.03, rtol=0)
    table = Table(torch.zeros(B, 1, CONTEXT), classes, ("x",), ("y",), torch.zeros(1), torch.ones(1))
    scores = evaluate(model, of_the_prior, table, num_draws=1000)
    assert scores["log_score"] == pytest.approx(float(-expected.mean()), abs=0.1)
    assert scores["joint_log_score"] == pytest.approx(scores["log_score"], abs=0.1)
    probs = (torch.randn(200_000, 1) * slopes).softmax(-1).mean(0)
    assert scores["accuracy"] == pytest.approx(float((classes == probs.argmax()).float().mean()))
    assert not {"mse", "mae", "crps", "coverage_90", "energy_score", "crps_mean"} & set(scores)
    for label in (0.5, 3.0, -1.0, math.nan):
        wrong = torch.tensor([[0.0], [label], [2.0], [9.0]])
        with pytest.raises(ValueError, match=f"from 0 to 2; found {label:g}"):
            marginal_scores(prediction, wrong)
