"""How to steer the units, as options: light to import, shown by the command line as they stand here."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from eve_pyro.infer.training import checked, option

MOVES_ROWS = ("projection", "homeostasis")  # the regimes that act on the guide's rows


@dataclass(frozen=True)
class Steering:
    """A regime and its constants; the defaults are the paper's (arXiv 2602.18250), ``lambda_band`` in nats a window."""

    regime: Literal["off", "penalty", "projection", "homeostasis"] = option(
        "off", "off: plain ELBO; penalty: a hinge on energies; projection, homeostasis: move the guide's rows too."
    )
    target: Annotated[float, Gt(0), Lt(inf)] = option(
        0.03,
        "Target energy of a unit, in squared prior deviations; of exact posteriors lowered to a third of what so many "
        "units can have of so few steps.",
    )
    bands: Literal["homogeneous", "heterogeneous"] = option(
        "homogeneous", "One band for all units, or log-spaced ones."
    )
    spread: Annotated[float, Ge(1), Lt(inf)] = option(
        8.0, "Heterogeneous bands: targets from target / spread to target * spread."
    )
    width: Annotated[float, Gt(1), Lt(inf)] = option(2.0, "Width of a band: its upper edge over its lower edge.")
    lambda_band: Annotated[float, Ge(0), Lt(inf)] = option(1.0, "Weight of the band penalty, in nats a window.")
    eta: Annotated[float, Gt(0), Lt(inf)] = option(0.15, "Strength of the homeostat.")
    aim: Annotated[float, Gt(0), Le(1)] = option(
        0.3, "Homeostasis aims at this inner share of each band, in logs; 1 is the paper's, which ends on the edges."
    )
    thermostat: bool = option(False, "Give every unit a beta that holds its KL within [c-min, c-max].")
    c_min: Annotated[float, Ge(0), Lt(inf)] = option(0.05, "Thermostat: lowest KL of a unit, in nats a window.")
    c_max: Annotated[float, Ge(0), Lt(inf)] = option(0.30, "Thermostat: highest KL of a unit, in nats a window.")
    lambda_ar: Annotated[float, Ge(0), Lt(inf)] = option(
        0.0, "First weight of a penalty that makes paths persist, its share then held near 20 %; 0 is none."
    )
    ar_phi: Annotated[float, Gt(-1), Lt(1)] = option(0.95, "Persistence that the penalty asks for.")
    calibrate: bool = option(False, "Let the bands follow where the units live.")
    warmup: Annotated[int, Ge(0)] = option(64, "Steps before anything acts.")
    ramp: Annotated[int, Ge(0)] = option(96, "Steps over which the band penalty grows to its weight.")

    @property
    def acts(self) -> bool:
        """Whether anything happens once the warm-up is over."""
        return self.regime != "off" or self.thermostat or self.calibrate or self.lambda_ar > 0

    def check(self, steps: int) -> None:
        """Raise ValueError for options out of range or at odds, and for a warm-up as long as ``steps`` of training."""
        checked(Steering, asdict(self))
        if self.c_min > self.c_max:
            raise ValueError(f"the thermostat needs 0 <= c_min <= c_max, not [{self.c_min}, {self.c_max}]")
        if self.acts and self.warmup >= steps:
            raise ValueError(f"a warm-up of {self.warmup} steps leaves nothing of a training of {steps} steps")

    def callbacks(self) -> list[Any]:
        """Return what acts, and then what takes the census, for one ``fit``."""
        from eve_pyro.control.regimes import Control
        from eve_pyro.control.watch import Census

        control = Control(self)
        return [control, Census(control)]
