"""Every fault of a model is named by ``check_model``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import HORIZON, UNITS, B, make_model
from programs import Plain, latent, observe, windows
from torch import nn

from eve_pyro.testing import check_model


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.extra = make_model(), nn.Linear(2, 2)

    def forward(self, context, future=None):
        return self.inner(context, future)


MODEL_FAULTS = {
    "no y": ({"observed": "x"}, "the model samples no site 'y' to forecast"),
    "no event": (
        {"likelihood": lambda loc, noise: dist.Normal(loc.mean(-1), 1.0)},
        r"'y' needs batch \(windows, 1\) and event \(horizon,\), not .*\.to_event\(1\)",
    ),
    "another horizon": (
        {"likelihood": lambda loc, noise: dist.Normal(loc[..., :2], 1.0).to_event(1)},
        r"'y' has event \(2,\), not the horizon \(6,\)",
    ),
    "y outside the plate": (observe, "'y' needs batch .*sample it in the windows plate at dim -2"),
    "B by B": ({"read": lambda features: features}, r"'y' needs batch \(windows, 1\).* not \(4, 4\) and \(6,\)"),
    "observed B by H": ({"observe": lambda future: future}, "'y' does not observe the future: pass obs=future.uns"),
    "observed never": ({"observe": lambda future: None}, "'y' does not observe the future"),
    "observed always": (
        {"observe": lambda future: torch.zeros(B, 1, HORIZON) if future is None else future.unsqueeze(-2)},
        "'y' does not observe the future: .* and obs=None without one",
    ),
    "infinite": ({"read": lambda features: torch.nan}, "log p of site 'y' is not finite"),
    "latent outside plates": (
        latent(dist.Normal(0.0, 1.0)),
        "the model's site 'w' stands in no plate: sample it in pyro.plate",
    ),
    "windows at dim -1": (
        latent(dist.Normal(torch.zeros(UNITS, 1), 1.0), pyro.plate("windows", B, dim=-1)),
        r"'w' stands in plate 'windows' \(dim -1, size 4\): sample it in pyro.plate",
    ),
    "another number of windows": (
        latent(dist.Normal(0.0, 1.0), pyro.plate("rows", 7, dim=-2)),
        r"'w' stands in plate 'rows' \(dim -2, size 7\): .* here of size 4",
    ),
    "a third plate": (
        latent(dist.Normal(0.0, 1.0), pyro.plate("rows", B, dim=-2), pyro.plate("groups", 2, dim=-3)),
        r"'w' stands in .* and plate 'groups' \(dim -3, size 2\): .*all further axes as event dims",
    ),
    "units without a plate": (
        latent(dist.Normal(torch.zeros(UNITS), 1.0), pyro.plate("rows", B, dim=-2)),
        r"'w' has batch \(4, 5\) in plate 'rows' \(dim -2, size 4\), not \(4, 1\): open a plate",
    ),
    "plate's size": (
        {"plates": (("windows", 7, -2), ("units", UNITS, -1))},
        "the model fails with a future, in plates 'windows' of size 7",
    ),
    "without a future": (
        {"observe": lambda future: future.unsqueeze(-2)},
        "the model fails without a future, .*AttributeError",
    ),
    "other sites without a future": (
        latent(dist.Normal(0.0, 1.0), pyro.plate("rows", B, dim=-2), with_future_only=True),
        r"samples \['w'\] with a future and \[\] without one",
    ),
    "batch size baked in": (
        {"read": lambda features: (features + torch.zeros(B, 1)).unsqueeze(-2)},
        r"the model fails on 2 of 4 windows alone, in plates 'windows' of size 2.*: take the number of windows",
    ),
    "neighbours": (
        {"read": lambda features: (features - features.mean(-2, keepdim=True)).unsqueeze(-2)},
        "'y' is distributed otherwise on 4 windows together than on 2 of 4 windows alone",
    ),
    "unread": (Unread, "no gradient reaches the parameter 'model.extra.weight': let a distribution of the model"),
    "detached": (
        {"read": lambda features: features.detach().unsqueeze(-2)},
        r"no gradient reaches the parameter 'loadings\$\$\$weight'",
    ),
    "fails under draws": (
        {"read": lambda features: features.view(len(features), 1, HORIZON)},
        "the model fails under a plate of 2 draws at dim -3, in plates .*: index dims from the right",
    ),
    "mixes draws": (
        {"read": lambda features: features.reshape(-1, *features.shape[-2:])[0].unsqueeze(-2)},
        "'y' is distributed otherwise under a plate of 2 draws at dim -3 than for one draw alone",
    ),
    "B by B under draws": (
        {"read": lambda features: features.unsqueeze(1)},
        r"'y' has batch \(2, 4, 4\) under a plate of 2 draws at dim -3 and \(4, 1\) for one draw alone: index dims",
    ),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_models_fault_is_named(fault):
    broken, message = MODEL_FAULTS[fault]
    model = Plain(**broken).model if isinstance(broken, dict) else broken() if broken is Unread else broken
    with pytest.raises(ValueError, match=message):
        check_model(model, windows())


def test_a_model_that_reads_the_future_is_named():
    class Leak(Plain):
        def model(self, context, future=None):
            self.prior = lambda: dist.Normal(0.0 if future is None or self.into == "y" else future[:, :1], 1.0)
            self.likelihood = lambda loc, noise: dist.Normal(
                loc if future is None or self.into == "z" else 0.1 * loc + 0.9 * future.unsqueeze(-2), noise
            ).to_event(1)
            super().model(context, future)

    for into in ("y", "z"):
        leak = Leak()
        leak.into = into
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=f"'{into}' .*it may depend on the future only through obs"):
            check_model(leak.model, windows())


def test_a_gradient_that_is_always_zero_is_named():
    pair = Plain(read=lambda features: 0 * features.unsqueeze(-2))
    with pytest.raises(ValueError, match=r"reaches the parameter 'loadings\$\$\$weight': its gradient is 0"):
        check_model(pair.model, windows())


def test_parameters_that_are_no_numbers_are_named():
    model = make_model()
    with torch.no_grad():
        model.readout.loc.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'model.readout.loc.weight' is not finite"):
        check_model(model, windows())
