"""The paper's persistence as a penalty, where the prior is not AR(1) itself. Source: arXiv 2602.18250."""

import torch
from torch import Tensor

from eve_pyro.control.laws import ArShare
from eve_pyro.infer.terms import ELBOTerms


class ArPenalty:
    """weight * sum_n sum_t>1 (d_nt - phi d_n,t-1)^2 / (2 (1 - phi^2)), in nats a window, d the posterior's shift.

    That is the part of the cross entropy to an AR(1) prior of persistence ``phi`` that the locations answer for.
    ``share`` holds the weight and moves it, see ``ArShare``. Raises ValueError for units without a path.
    """

    def __init__(self, weight: float, phi: float) -> None:
        self.share, self.phi = ArShare(weight), phi

    def __call__(self, terms: ELBOTerms) -> Tensor:
        """Return the penalty of ``ELBOTerms``."""
        found = [self._of_path(units.path, site) for site, units in terms.units.items()]
        return self.share.weight * torch.stack(found).sum()

    def act(self, terms: ELBOTerms, name: str) -> None:
        """Move the weight after a step in which the penalty called ``name`` had some share of the loss."""
        parts = [terms.log_likelihood.mean().abs(), *(units.kl.sum(-1).mean() for units in terms.units.values())]
        whole = float(sum(parts, start=sum(terms.penalties.values())))
        self.share.act(float(terms.penalties[name]) / whole)

    def _of_path(self, path: Tensor | None, site: str) -> Tensor:
        if path is None:
            raise ValueError(
                f"an AR penalty needs a path of at least 2 steps, and site {site!r} has none: use --path 2"
            )
        moved = path[..., 1:, :] - self.phi * path[..., :-1, :]
        return moved.square().sum((1, 2, 3)).mean() / (2 * (1 - self.phi**2))
