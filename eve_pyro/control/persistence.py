"""The paper's persistence as a penalty, where the prior is not AR(1) itself. Source: arXiv 2602.18250."""

import torch
from torch import Tensor

from eve_pyro.control.laws import ArShare
from eve_pyro.infer.terms import ELBOTerms


class ArPenalty:
    """weight * sum_n sum_t>1 (d_nt - phi d_n,t-1)^2 / (2 (1 - phi^2)), in nats a window, d the posterior's shift.

    That is the part of the cross entropy to an AR(1) prior of persistence ``phi`` that the locations answer for, over
    the sites whose units have a path. ``share`` holds the weight and moves it, see ``ArShare``; nothing is asked for
    unless it ``acts``. Raises ValueError where no site has a path.
    """

    def __init__(self, weight: float, phi: float) -> None:
        self.share, self.phi, self.acts = ArShare(weight), phi, True

    def __call__(self, terms: ELBOTerms) -> Tensor:
        """Return the penalty of ``ELBOTerms``."""
        found = [self._of_path(units.path) for units in terms.units.values() if units.path is not None]
        if not found:
            raise ValueError("an AR penalty needs a path of at least 2 steps, and no site has one: use --path 2")
        return self.acts * self.share.weight * torch.stack(found).sum()

    def _of_path(self, path: Tensor) -> Tensor:
        moved = path[..., 1:, :] - self.phi * path[..., :-1, :]
        return moved.square().sum((1, 2, 3)).mean() / (2 * (1 - self.phi**2))
