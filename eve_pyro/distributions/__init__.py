"""Distributions the forecasters are made of."""

from eve_pyro.distributions.factor import FactorNormal, rescaled

__all__ = ["FactorNormal", "rescaled"]
