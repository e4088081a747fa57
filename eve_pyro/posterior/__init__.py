"""Draws of a trained pair as ArviZ takes them: a labelled DataTree, in memory or on disk."""

from eve_pyro.posterior.arviz import stack_observed, to_inferencedata
from eve_pyro.posterior.sampling import GROUPS
from eve_pyro.posterior.tree import datatree_size, to_datatree

__all__ = ["GROUPS", "datatree_size", "stack_observed", "to_datatree", "to_inferencedata"]
