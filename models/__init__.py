"""Models: plain Pyro programs whose neurons are sample sites."""

from eve_pyro.models.forecaster import Forecaster
from eve_pyro.models.regression import Regression
from eve_pyro.models.stack import Stack
from eve_pyro.models.trajectory import Trajectory

__all__ = ["Forecaster", "Regression", "Stack", "Trajectory"]
