"""Neuron, priors, encoders, readouts: shapes and values by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, UNITS, make_model, shaken
from pyro import poutine

from eve_pyro.guides import LowRank
from eve_pyro.likelihoods import FactorReadout, NormalReadout, StudentTReadout, bounded_scale
from eve_pyro.nets import InstanceNorm, LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import ContextualPrior, LearnedPrior, StandardPrior

B, T, F, K = 3, 2, 6, 4


@pytest.mark.parametrize(("pooling", "weight"), [("mean", 1 / K), ("sum", 1.0), ("sqrt", 1 / math.sqrt(K))])
def test_a_layer_is_one_site_in_a_plate_and_pools_its_dimensions(pooling, weight):
    layer = EveLayer(StandardPrior(UNITS, K), UNITS, K, pooling, name="first")
    trace = poutine.trace(lambda: in_windows(layer, torch.randn(B, T, F))).get_trace()
    site = trace.nodes["first.z"]
    assert site["value"].shape == (B, UNITS, T, K)
    assert {(frame.name, frame.dim, frame.size) for frame in site["cond_indep_stack"]} == {
        ("first.units", -1, UNITS),
        ("windows", -2, B),
    }
    expected = weight * site["value"].sum(-1).transpose(1, 2)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], expected)


def in_windows(layer, state):
    with pyro.plate("windows", len(state), dim=-2):
        return layer(state)


@pytest.mark.parametrize(
    "wrong", [{"num_units": 0}, {"num_units": 2, "latent_dim": 0}, {"num_units": 2, "pooling": "max"}]
)
def test_a_layer_refuses_what_it_cannot_be(wrong):
    with pytest.raises(ValueError, match="layer 'eve'"):
        EveLayer(StandardPrior(2), **wrong)


def test_priors_have_units_in_the_batch_and_path_and_latents_in_the_event():
    state = torch.randn(B, T, F)
    for prior in (StandardPrior(UNITS, K), LearnedPrior(UNITS, K), ContextualPrior(F, UNITS, K)):
        p = shaken(prior)(state)
        assert (p.batch_shape, p.event_shape) == ((B, UNITS), (T, K))
        assert (p.stddev > 0).all()
    standard = StandardPrior(UNITS, K)(state)
    torch.testing.assert_close(standard.mean, torch.zeros(B, UNITS, T, K))
    torch.testing.assert_close(standard.stddev, torch.ones(B, UNITS, T, K))


def test_a_learned_prior_is_the_same_for_every_window_and_a_contextual_one_is_not():
    state = torch.randn(B, T, F)
    learned, contextual = shaken(LearnedPrior(UNITS))(state), shaken(ContextualPrior(F, UNITS))(state)
    assert (learned.mean == learned.mean[:1]).all()
    assert not (contextual.mean == contextual.mean[:1]).all()


def test_contextual_prior_is_linear_in_the_state_of_each_step():
    prior = shaken(ContextualPrior(F, UNITS, K))
    state = torch.randn(B, T, F)
    by_hand = (state[1, 0] @ prior.loc.weight.T + prior.loc.bias).reshape(UNITS, K)
    torch.testing.assert_close(prior(state).mean[1, :, 0], by_hand)


def test_instance_norm_uses_the_last_window_and_its_floor():
    context = torch.randn(B, T, CONTEXT) * 3 + 7
    normalised, (loc, scale) = InstanceNorm(0.5)(context)
    torch.testing.assert_close(loc[:, 0, 0], context[:, -1].mean(-1))
    torch.testing.assert_close(scale[:, 0, 0], (context[:, -1].var(-1, correction=0) + 0.25).sqrt())
    torch.testing.assert_close(normalised * scale + loc, context)
    flat, (_, floor) = InstanceNorm(0.5)(torch.full((1, 1, CONTEXT), 4.0))
    assert (flat == 0).all()
    assert float(floor) == 0.5
    with pytest.raises(ValueError, match="floor"):
        InstanceNorm(0.0)


@pytest.mark.parametrize("length", [2, 3, 8, 25, 60])
def test_the_encoder_takes_any_context_length(length):
    encoder = LinearEncoder(length, hidden=4, features=6)
    assert encoder(torch.randn(B, T, length)).shape == (B, T, encoder.out_features) == (B, T, 10)


@pytest.mark.parametrize(("layers", "widths"), [(1, [4]), (3, [6, 6, 4])])
def test_the_last_of_the_encoders_layers_is_the_hidden_one(layers, widths):
    encoder = LinearEncoder(CONTEXT, hidden=4, features=6, layers=layers)
    assert [part.out_features for part in encoder.branch if isinstance(part, torch.nn.Linear)] == widths
    assert encoder(torch.randn(B, T, CONTEXT)).shape == (B, T, 10)


def test_the_encoders_first_features_are_affine_in_the_context():
    encoder = LinearEncoder(CONTEXT, hidden=4, features=6).eval()
    x, y = torch.randn(2, 1, 1, CONTEXT)
    middle = encoder((x + y) / 2)[..., :6]
    torch.testing.assert_close(middle, (encoder(x)[..., :6] + encoder(y)[..., :6]) / 2)


def test_scales_are_bounded_on_both_sides():
    scales = bounded_scale(torch.tensor([-1e4, 0.0, 1e4]))
    torch.testing.assert_close(scales, torch.tensor([0.01, math.log(2) + 0.01, 5.0]))


@pytest.mark.parametrize("head", [NormalReadout, StudentTReadout])
@pytest.mark.parametrize("scale", ["read", "global"])
def test_decoded_heads(head, scale):
    readout = shaken(head(MLPDecoder(UNITS, 8), HORIZON, scale))
    activity = torch.randn(2, B, 1, UNITS)
    fn = readout(activity, torch.randn(B, 1, F))
    assert (fn.batch_shape, fn.event_shape) == ((2, B, 1), (HORIZON,))
    varies = fn.base_dist.scale.std((0, 1, 2)).max() > 1e-6
    assert bool(varies) == (scale == "read")
    with pytest.raises(ValueError, match="'global' or 'read'"):
        head(MLPDecoder(UNITS, 8), HORIZON, "local")


def test_the_factor_readout_without_loadings_is_its_own_marginal():
    layer = EveLayer(StandardPrior(UNITS), UNITS)
    readout = shaken(FactorReadout(layer, F, HORIZON))
    state, activity = torch.randn(B, 1, F), torch.randn(B, 1, UNITS)
    units = {"eve.z": layer.prior(state)}
    marginal = readout(activity, state).marginal(units)
    readout.loadings = None
    twin = readout(activity, state)
    assert isinstance(twin.base_dist, dist.Normal)
    torch.testing.assert_close(marginal.mean, twin.mean)
    torch.testing.assert_close(marginal.stddev, twin.stddev)


def test_the_surprise_is_the_standardised_residual_of_the_marginal():
    layer = EveLayer(StandardPrior(UNITS), UNITS)
    readout = shaken(FactorReadout(layer, F, HORIZON))
    state, y = torch.randn(B, 1, F), torch.randn(B, HORIZON)
    marginal = readout(torch.zeros(B, 1, UNITS), state).marginal({"eve.z": layer.prior(state)})
    expected = (y - marginal.mean[:, 0]) / marginal.stddev[:, 0]
    torch.testing.assert_close(readout.surprise(y, state), expected)


@pytest.mark.parametrize("readout", ["factor", "normal", "student_t"])
def test_a_forecast_moves_and_stretches_with_its_context(readout):
    """Instance normalisation makes a model equivariant: p(a + b y | a + b x) = p(y | x) / b where the floor is nil."""
    model = shaken(make_model(readout)).eval()
    model.norm.floor = 1e-8
    context, future = torch.randn(B, 1, CONTEXT).double(), torch.randn(B, HORIZON).double()
    model = model.double()
    density = [log_likelihood(model, 5 + b * context, 5 + b * future) for b in (1.0, 3.0)]
    torch.testing.assert_close(density[1], density[0] - HORIZON * math.log(3.0))


def log_likelihood(model, context, future):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trace = poutine.trace(model).get_trace(context, future)
    trace.compute_log_prob()
    return trace.nodes["y"]["log_prob"]


def test_a_horizon_below_one_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="horizon"):
        type(model)(model.encoder, model.layer, model.readout, 0)


@pytest.mark.parametrize("prior", [LearnedPrior(1), LearnedPrior(UNITS, 2), StandardPrior(UNITS + 1)])
def test_a_prior_of_another_shape_than_its_layer_is_refused(prior):
    layer = EveLayer(prior, UNITS)
    with (
        pyro.plate("windows", 3, dim=-2),
        pytest.raises(ValueError, match=rf"num_units={UNITS} and latent_dim=1, and a prior of batch .* and event"),
    ):
        layer(torch.zeros(3, 1, 12))


def test_a_rank_that_is_no_whole_number_is_refused():
    with pytest.raises(ValueError, match=r"a whole number, not 2\.5"):
        LowRank(make_model(), rank=2.5)
