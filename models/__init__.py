"""Models: plain Pyro programs whose neurons are sample sites."""

from eve_pyro.models.forecaster import Forecaster

__all__ = ["Forecaster"]
