"""Distributions the forecasters are made of."""

from eve_pyro.distributions.ar1 import AR1
from eve_pyro.distributions.factor import FactorNormal, rescaled

__all__ = ["AR1", "FactorNormal", "rescaled"]
