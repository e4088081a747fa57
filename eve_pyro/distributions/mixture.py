"""An equal mixture of whole forecasts."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class EqualMixture(TorchDistribution):
    """A path of one of several ``members``, each as likely as the others: their batch (...) and event (H,).

    A call of ``sample`` picks a member for each draw, which all windows of the batch share.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, members: Sequence[TorchDistribution]) -> None:
        if not members:
            raise ValueError("a mixture needs at least one member")
        self.members = tuple(members)
        super().__init__(members[0].batch_shape, members[0].event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "EqualMixture":
        """Return the same mixture for a larger batch."""
        return EqualMixture([member.expand(batch_shape) for member in self.members])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of whole paths, (...)."""
        log_prob = torch.stack([member.log_prob(value) for member in self.members])
        return log_prob.logsumexp(0) - math.log(len(self.members))

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw paths (*sample_shape, ..., H)."""
        shape = Size(sample_shape)
        chosen = torch.randint(len(self.members), (shape.numel(),))
        draws = torch.stack([self.members[int(number)].sample() for number in chosen])
        return draws.reshape(shape + draws.shape[1:])


def stacked(members: Sequence[TorchDistribution | None]) -> TorchDistribution | None:
    """Return normals, or Student's t, of one shape side by side: the members leftmost. None for other families."""
    if all(isinstance(member, dist.Normal) for member in members):
        loc, scale = _stack(members, "loc", "scale")
        return dist.Normal(loc, scale, validate_args=False)
    if all(isinstance(member, dist.StudentT) for member in members):
        df, loc, scale = _stack(members, "df", "loc", "scale")
        return dist.StudentT(df, loc, scale, validate_args=False)
    return None


def _stack(members: Sequence[TorchDistribution | None], *names: str) -> list[Tensor]:
    return [torch.stack([getattr(member, name) for member in members]) for name in names]
