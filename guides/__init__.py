"""Amortized guides. Swapping one is changing one argument."""

from eve_pyro.guides.autoregressive import Autoregressive
from eve_pyro.guides.base import AmortizedGuide, Head
from eve_pyro.guides.conjugate import Conjugate
from eve_pyro.guides.delta import PointGuide
from eve_pyro.guides.flow import Flow
from eve_pyro.guides.low_rank import LowRank
from eve_pyro.guides.mean_field import ContextMeanField, FutureAware

__all__ = [
    "AmortizedGuide", "Autoregressive", "Conjugate", "ContextMeanField", "Flow", "FutureAware", "Head", "LowRank",
    "PointGuide",
]  # fmt: skip
