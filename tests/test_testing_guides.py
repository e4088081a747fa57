"""Every fault of a guide is named by ``check_guide``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import UNITS, B
from programs import Plain, latent, observe, stack, windows
from pyro.infer.autoguide import AutoNormal
from torch import nn

from eve_pyro.distributions import AR1
from eve_pyro.guides import AmortizedGuide, Head
from eve_pyro.testing import check_guide


class Score(dist.Normal):
    has_rsample = False


GUIDE_FAULTS = {
    "missing": ({"sites": ()}, "does not sample the model's site 'z': add it"),
    "added": ({"sites": ("z", "w")}, "the guide samples 'w', which is no latent site of the model: remove or rename"),
    "score": ({"posterior": Score}, r"'z' \(Score\) has no reparameterised draws"),
    "plate's name": (
        {"plates": (("windows", None, -2), ("neurons", UNITS, -1))},
        r"'z' stands in .*'neurons' \(dim -1, size 5\), the model's in .*: open the model's plates",
    ),
    "plate's dim": (
        {
            "plates": (("windows", None, -1), ("units", UNITS, -2)),
            "posterior": lambda loc, scale: dist.Normal(loc.mT, scale.mT),
        },
        r"'z' stands in plate 'windows' \(dim -1, size 4\) and plate 'units' \(dim -2, size 5\)",
    ),
    "plate's size": (
        {"plates": (("windows", None, -2), ("units", 3, -1))},
        "the guide fails with a future, in plates 'windows' of size 4, 'units' of size 3 .*Shape mismatch",
    ),
    "a smaller layer": (
        {"plates": (("windows", None, -2), ("units", 2, -1)), "posterior": lambda m, s: dist.Normal(m[:, :2], 1.0)},
        r"stands in .*'units' \(dim -1, size 2\), the model's in .*'units' \(dim -1, size 5\)",
    ),
    "event": (
        {"posterior": lambda loc, scale: dist.Normal(loc[..., None], scale[..., None]).to_event(1)},
        r"'z' has batch \(4, 5\) and event \(1,\), the model's \(4, 5\) and \(\): reshape it",
    ),
    "negative scale": (
        {"posterior": lambda loc, scale: dist.Normal(loc, -scale)},
        "'z' has a scale that is not positive: use exp or softplus",
    ),
    "infinite location": (
        {"posterior": lambda loc, scale: dist.Normal(loc / 0, scale)},
        "'z' has a location or draws that are not finite",
    ),
    "infinite loss": (
        {"posterior": lambda loc, scale: dist.Normal(loc, 1e-30 * scale)},
        "the loss is not finite, for the KL of site 'z' is not",
    ),
    "detached": (
        {"posterior": lambda loc, scale: dist.Normal(loc.detach(), scale.detach())},
        r"no gradient reaches the parameter 'net\$\$\$weight'.*or freeze it",
    ),
    "unread": (
        {"posterior": lambda loc, scale: (pyro.param("unread", torch.ones(1)), dist.Normal(loc, scale))[1]},
        "no gradient reaches the parameter 'unread'",
    ),
    "infinite gradient": (
        {"posterior": lambda loc, scale: dist.Normal(loc + (0 * loc).abs().sqrt(), scale)},
        r"the gradient of the parameter 'net\$\$\$weight' is not finite",
    ),
    "batch size baked in": (
        {"posterior": lambda loc, scale: dist.Normal(loc + torch.zeros(B, 1), scale)},
        r"the guide fails on 2 of 4 windows alone, in plates 'windows' of size 2.*: take the number of windows",
    ),
    "plate's size baked in": (
        {
            "plates": (("windows", B, -2), ("units", UNITS, -1)),
            "posterior": lambda loc, scale: dist.Normal(loc[0], 1.0),
        },
        r"'z' has batch \(4, 5\) on 4 windows together and \(4, 5\) on 2 of 4 windows alone",
    ),
    "neighbours": (
        {"posterior": lambda loc, scale: dist.Normal(loc - loc.mean(0), scale)},
        "'z' is distributed otherwise on 4 windows together than on 2 of 4 windows alone.*none hear of its neighbours",
    ),
    "by place": (
        {"posterior": lambda loc, scale: dist.Normal(loc + torch.arange(B)[: len(loc), None], scale)},
        "'z' is distributed otherwise on 4 windows together than on 2 of 4 windows alone",
    ),
    "not amortised": (
        {"posterior": lambda loc, scale: dist.Normal(0 * loc + pyro.param("loc", torch.zeros(UNITS)), 1.0)},
        "'z' is the same in every window: let it read context or future",
    ),
}


@pytest.mark.parametrize("fault", GUIDE_FAULTS)
def test_a_guides_fault_is_named(fault):
    options, message = GUIDE_FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        check_guide(Plain().model, Plain(**options).guide, windows())


def test_draws_outside_the_priors_support_are_named():
    pair = Plain(prior=lambda: dist.HalfNormal(1.0))
    with pytest.raises(ValueError, match=r"LocalELBO\(num_particles=2, sample_kl=True\) fails .*site 'z'.* support"):
        check_guide(pair.model, pair.guide, windows())


def two_layers():
    """A guide of two sites over a stack; ``alone`` is what it samples without a future."""
    model = stack("factor")

    def guide(alone, mixed=False):
        class Layer(Head):
            def __init__(self, layer):
                super().__init__(layer)
                self.net = nn.Linear(20, layer.num_units)

            def forward(self, state, evidence):
                if mixed:  # the first draw alone is read
                    state = state.reshape(-1, *state.shape[-3:])[0]
                return dist.Normal(self.by_unit(self.net(state)), 1.0).to_event(2)

        full = AmortizedGuide(model, Layer)

        def program(context, future=None):
            pyro.module("full", full)
            hidden = () if future is not None else {"low.z", "top.z"} - set(alone)
            with pyro.poutine.block(hide=hidden):
                full(context, future)

        return program

    return model, guide


@pytest.mark.parametrize("alone", [(), ("low.z",), ("low.z", "top.z")])
def test_a_leading_part_of_the_sites_without_a_future_passes(alone):
    model, guide = two_layers()
    check_guide(model, guide(alone), windows())


def test_what_a_guide_may_not_do_without_a_future_is_named():
    model, guide = two_layers()
    with pytest.raises(ValueError, match=r"without a future the guide samples \['top.z'\].*none or the first of"):
        check_guide(model, guide(("top.z",)), windows())
    pair = Plain()
    with pytest.raises(ValueError, match=r"the guide fails without a future .*missing 1 required positional"):
        check_guide(pair.model, lambda context, future: pair.guide(context, future), windows())


def test_a_guide_that_mixes_draws_is_named():
    model, guide = two_layers()
    with pytest.raises(ValueError, match=r"'top.z' is distributed otherwise under a plate of 2 draws.*index dims"):
        check_guide(model, guide((), mixed=True), windows())


def test_an_autoguide_keeps_a_posterior_by_place():
    pair = Plain()
    guide = AutoNormal(pyro.poutine.block(pair.model, hide=["y"]))
    with pytest.raises(ValueError, match=r"the guide fails on 2 of 4 windows alone, in plates .*'windows' of size 4 "):
        check_guide(pair.model, guide, windows())


def test_a_guide_is_not_blamed_for_its_models_faults():
    with pytest.raises(ValueError, match="the model's site 'w' stands in no plate"):
        check_guide(latent(dist.Normal(0.0, 1.0)), Plain().guide, windows())


def test_a_guides_mask_is_named():
    pair = Plain()
    with pytest.raises(ValueError, match="'z' is masked where the model's is not"):
        check_guide(pair.model, pyro.poutine.mask(pair.guide, mask=False), windows())
    check_guide(pyro.poutine.mask(pair.model, mask=True), pair.guide, windows())


def test_a_unit_that_reads_nothing_is_named():
    def posterior(loc, scale):
        mask = torch.arange(UNITS) != 2
        return dist.Normal(loc * mask, (scale.log() * mask).exp())

    with pytest.raises(ValueError, match=r"'z' is the same in every window for the units \[2\]"):
        check_guide(Plain().model, Plain(posterior=posterior).guide, windows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "an AR\\(1\\) whose scale must lie above 0"),
        ({"innovation": -1.0}, "an AR\\(1\\) whose innovation must lie above 0"),
        ({"phi": torch.nan}, "an AR\\(1\\) whose phi is not finite"),
    ],
)
def test_a_paths_arguments_are_named(options, message):
    def path(loc):
        args = {name: torch.full((1, 1), value) for name, value in ({"phi": 0.5, "scale": 1.0} | options).items()}
        return AR1(loc, **args, validate_args=False)

    def model(context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", UNITS, dim=-1):
                pyro.sample("z", AR1(torch.zeros(2, 1), torch.full((1, 1), 0.5), torch.ones(1, 1)))
            observe(context, future)

    def guide(context, future=None):
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", UNITS, dim=-1):
            pyro.sample("z", path(context[:, :, :2].unsqueeze(-1).expand(-1, UNITS, -1, -1)))

    with pytest.raises(ValueError, match=message):
        check_guide(model, guide, windows())
