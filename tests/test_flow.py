"""Flows of units against autograd and against their base."""

import pyro.distributions as dist
import pytest
import torch
from conftest import CONTEXT, HORIZON, make_model, shaken
from dense import EXACT, B, N
from pyro.nn import DenseNN

from eve_pyro.distributions.flow import FlowUnits
from eve_pyro.guides import Flow


def couplings(size):
    """Two affine couplings with random nets, as the flow guide chains them, and the nets."""
    half = size // 2
    nets = [shaken(DenseNN(half, [8], [size - half] * 2), 0.4).double() for _ in range(2)]
    first, second = (dist.transforms.AffineCoupling(half, net) for net in nets)
    flip = dist.transforms.Permute(torch.arange(size - 1, -1, -1))
    return [first, flip, second, flip], nets


def by_hand(x, nets):
    """The chain on x (N, T, K), a step at a time: one half moves given the other, then the other way round."""
    steps = []
    for flat in x.transpose(0, 1).flatten(1):
        for net in nets:
            shift, log_scale = net(flat[: len(flat) // 2])
            flat = torch.cat([flat[: len(flat) // 2], log_scale.exp() * flat[len(flat) // 2 :] + shift]).flip(0)
        steps.append(flat.view(x.shape[0], x.shape[2]))
    return torch.stack(steps, 1)


@pytest.mark.parametrize(("steps", "dims"), [(1, 1), (2, 2)])
def test_flow_density_is_the_change_of_variables(steps, dims):
    transforms, nets = couplings(N * dims)
    loc, scale = torch.randn(B, N, steps, dims).double(), torch.rand(B, N, steps, dims).double() + 0.5
    q, shape = FlowUnits(loc, scale, transforms), (N, steps, dims)
    assert (q.batch_shape, q.event_shape) == ((B, N), (steps, dims))
    x = torch.randn(B, *shape).double()
    for window in range(B):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: by_hand(flat.view(shape), nets).flatten(), x[window].flatten()
        )
        z = by_hand(x[window], nets).detach()
        expected = dist.Normal(loc[window], scale[window]).log_prob(x[window]).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(q.log_prob(z)[window].sum(), expected, **EXACT)


def test_flow_draws_are_the_base_carried_forward_and_come_back():
    transforms, nets = couplings(2 * N)
    loc, scale = torch.randn(B, N, 2, 2).double(), torch.rand(B, N, 2, 2).double() + 0.5
    q = FlowUnits(loc, scale, transforms)
    torch.manual_seed(3)
    z = q.rsample((4,))
    torch.manual_seed(3)
    x = dist.Normal(loc, scale).rsample((4,))
    expected = torch.stack([torch.stack([by_hand(window, nets) for window in draw]) for draw in x])
    torch.testing.assert_close(z, expected, **EXACT)
    torch.testing.assert_close(q.mean, torch.stack([by_hand(window, nets) for window in loc]), **EXACT)
    back = z.detach().clone().transpose(-3, -2).flatten(-2)
    for transform in reversed(transforms):
        back = transform.inv(back)
    torch.testing.assert_close(back.unflatten(-1, (N, 2)).transpose(-3, -2), x, **EXACT)


def test_flow_variance_is_the_same_at_every_look_and_leaves_the_random_state_alone():
    transforms, _ = couplings(N)
    q = FlowUnits(torch.randn(300, N, 1, 1).double(), torch.rand(300, N, 1, 1).double() + 0.5, transforms)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    variance = q.variance
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(q.variance, variance)
    drawn = q.rsample((2000,)).detach().var(0)
    torch.testing.assert_close((variance / drawn).mean(0), torch.ones(N, 1, 1).double(), atol=0.1, rtol=0)


def test_flow_expands_with_particles_in_front():
    transforms, _ = couplings(N)
    q = FlowUnits(torch.randn(B, N, 1, 1).double(), torch.ones(B, N, 1, 1).double(), transforms)
    wide = q.expand(torch.Size([4, B, N]))
    z = wide.rsample()
    assert z.shape == (4, B, N, 1, 1)
    assert not torch.isclose(z[0], z[1]).any()
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))


def test_a_fresh_flow_is_its_base():
    model = make_model(latent_dim=2)
    guide = Flow(model, hidden=8)
    for part in (guide.heads["eve"].loc, guide.heads["eve"].log_scale):
        shaken(part)
    q = guide.posterior(torch.randn(4, 1, CONTEXT), torch.randn(4, HORIZON))
    z = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(z), q.base.log_prob(z))
    torch.testing.assert_close(q.mean, q.base.mean)
    shaken(guide.heads["eve"].couplings)
    moved = guide.posterior(torch.randn(4, 1, CONTEXT), torch.randn(4, HORIZON))
    assert not torch.isclose(moved.mean, moved.base.mean).all()
