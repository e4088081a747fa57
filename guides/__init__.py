"""Amortized guides. Swapping one is changing one argument."""

from eve_pyro.guides.base import AmortizedGuide
from eve_pyro.guides.delta import PointGuide
from eve_pyro.guides.mean_field import ContextMeanField, FutureAware

__all__ = ["AmortizedGuide", "ContextMeanField", "FutureAware", "PointGuide"]
