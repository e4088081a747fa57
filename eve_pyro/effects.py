"""What an option acts through: without it, naming the option changes nothing, and is refused where it is named."""

from collections.abc import Callable
from typing import Any

from eve_pyro.config import Config
from eve_pyro.infer.local_elbo import FORECASTING

IDLE = {  # what a regime has no use for
    "off": {"eta", "aim", "lambda_band", "ramp"},
    "penalty": {"eta", "aim"},
    "projection": {"eta", "aim"},
}
NEEDS: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "depth": ("model 'stack'", lambda config: config.model.model == "stack"),
    "patches": ("model 'trajectory'", lambda config: config.model.model == "trajectory"),
    "phi": ("an AR(1) prior", lambda config: config.model.prior.endswith("ar1")),
    "learn_phi": ("an AR(1) prior", lambda config: config.model.prior.endswith("ar1")),
    "pooling": ("latent_dim above 1", lambda config: config.model.latent_dim > 1),
    "head_scale": ("a decoded readout", lambda config: config.model.readout != "factor"),
    "rank": ("guide 'low_rank'", lambda config: config.guide.guide == "low_rank"),
    "guide_scale": ("guide 'context'", lambda config: config.guide.guide == "context"),
    "alpha": ("objective 'composite' or 'predictive'", lambda config: config.objective.objective in FORECASTING),
    "held": ("alpha above 0", lambda config: config.objective.alpha > 0),
    "objective": (
        "num_particles above 1, a mixture of one draw being the elbo",
        lambda config: config.objective.objective != "mixture" or config.objective.num_particles > 1,
    ),
    "validation": ("the split by fractions, without rows", lambda config: config.data.rows is None),
    "test": ("the split by fractions, without rows", lambda config: config.data.rows is None),
    "stride": ("a path above 1", lambda config: config.data.path > 1),
    "spread": ("heterogeneous bands", lambda config: config.control.bands == "heterogeneous"),
    "warmup": ("a regime, the thermostat, calibrate or lambda_ar", lambda config: config.control.acts),
    "c_min": ("the thermostat", lambda config: config.control.thermostat),
    "c_max": ("the thermostat", lambda config: config.control.thermostat),
    "ar_phi": ("lambda_ar above 0", lambda config: config.control.lambda_ar > 0),
    "patience": ("a monitor other than 'last'", lambda config: config.training.monitor != "last"),
}


def check_acts(option: str, value: Any, config: Config) -> None:
    """Raise ValueError for an option without effect in ``config``, naming what it needs."""
    what, acts = NEEDS.get(option, ("", None))
    if option in IDLE.get(config.control.regime, set()):
        what, acts = f"another regime than {config.control.regime!r}", lambda _: False
    if acts is not None and not acts(config):
        raise ValueError(f"{option} = {value!r} changes nothing here: it needs {what}")
