"""A linear-Gaussian model as plain functions in double precision, guides that know its posterior, and wrong ones.

r = y - mean(x) = W z + noise e with z ~ Normal(0, I): everything the diagnostics estimate has a closed form here.
"""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from eve_pyro.data.tabular import Table
from eve_pyro.distributions.conjugate import ConjugateUnits
from eve_pyro.distributions.joint import JointUnits
from eve_pyro.protocols import Information

UNITS, HORIZON = 3, 4


class Truth(NamedTuple):
    """Loadings (H, N) and the noise's deviation."""

    loadings: Tensor
    noise: float

    def precision(self) -> Tensor:
        """Of the posterior, (N, N)."""
        return torch.eye(self.loadings.shape[1]).double() + self.loadings.mT @ self.loadings / self.noise**2

    def mean(self, context: Tensor, future: Tensor) -> Tensor:
        """Of the posterior, (B, N)."""
        pull = (future - context[:, 0, :1]) @ self.loadings / self.noise**2
        return torch.linalg.solve(self.precision(), pull.mT).mT

    def posterior(self, context: Tensor, future: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.mean(context, future), precision_matrix=self.precision())

    def evidence(self, context: Tensor, future: Tensor) -> Tensor:
        """log p(y | x), (B,)."""
        noise = self.noise**2 * torch.eye(len(self.loadings)).double()
        loc = context[:, 0, :1].expand_as(future)
        return dist.MultivariateNormal(loc, self.loadings @ self.loadings.mT + noise).log_prob(future)

    def correlation(self) -> float:
        """Of the first two units in the posterior."""
        precision = self.precision()
        return float(-precision[0, 1] / (precision[0, 0] * precision[1, 1]).sqrt())

    def divergence(self, kind: str = "mean_field", stretch: float = 1.0, shift: float = 0.0) -> float:
        """KL(q || p(z | x, y)) in nats, q as ``independent`` makes it: the same for every window."""
        scale = self.deviations(kind)
        q = dist.MultivariateNormal(shift * scale, torch.diag_embed((stretch * scale).square()))
        p = dist.MultivariateNormal(torch.zeros_like(scale), precision_matrix=self.precision())
        return float(torch.distributions.kl_divergence(q, p))

    def deviations(self, kind: str) -> Tensor:
        """Of each unit: of its ``marginal``, or of the best ``mean_field``, (N,)."""
        variance = (
            torch.linalg.inv(self.precision()).diagonal() if kind == "marginal" else 1 / self.precision().diagonal()
        )
        return variance.sqrt()


def collinear() -> Truth:
    """Two units that the data can hardly tell apart: their posterior correlation is about -0.94."""
    return Truth(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.9], [1.0, 1.1]]).double(), 0.5)


def truth(noise: float = 0.6, units: int = UNITS, seed: int = 1) -> Truth:
    generator = torch.Generator().manual_seed(seed)
    return Truth(0.8 * torch.randn(HORIZON, units, generator=generator).double(), noise)


def model_of(truth: Truth) -> Any:
    units = truth.loadings.shape[1]

    def model(context: Tensor, future: Tensor | None = None) -> None:
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", units, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1, 1).double(), 1.0).to_event(2))  # (..., B, N, 1, 1)
            loc = (context[:, 0, :1] + z[..., 0, 0] @ truth.loadings.mT).unsqueeze(-2)
            observed = None if future is None else future.unsqueeze(-2)
            pyro.sample("y", dist.Normal(loc, truth.noise).to_event(1), obs=observed)

    return model


def guide_of(units: int, posterior: Any) -> Any:
    """A guide that samples ``posterior(context, future)``, batch (B, N) and event (1, 1)."""

    def guide(context: Tensor, future: Tensor | None = None) -> None:
        if future is not None:
            with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", units, dim=-1):
                pyro.sample("z", posterior(context, future))

    return guide


def exact(truth: Truth) -> Any:
    def posterior(context: Tensor, future: Tensor) -> JointUnits:
        windows = len(context)
        prior = dist.Normal(torch.zeros(windows, truth.loadings.shape[1], 1, 1).double(), 1.0).to_event(2)
        loadings = truth.loadings.expand(windows, -1, -1).unsqueeze(-1)
        noise = torch.full_like(future, truth.noise)
        return ConjugateUnits(prior, Information.of_linear(future - context[:, 0, :1], loadings, noise), 1.0)

    return guide_of(truth.loadings.shape[1], posterior)


def independent(truth: Truth, kind: str = "mean_field", stretch: float = 1.0, shift: float = 0.0) -> Any:
    """Independent normals, moved and stretched by multiples of the deviations of a ``kind``."""

    def posterior(context: Tensor, future: Tensor) -> Any:
        scale = truth.deviations(kind)
        loc = truth.mean(context, future) + shift * scale
        return dist.Normal(loc[..., None, None], stretch * scale[:, None, None]).to_event(2)

    return guide_of(truth.loadings.shape[1], posterior)


def rows(truth: Truth, count: int, seed: int = 0) -> Table:
    """Contexts (N, 1, 2) and futures that the model itself gives."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(count, 1, 2, generator=generator).double()
    z = torch.randn(count, truth.loadings.shape[1], generator=generator).double()
    noise = truth.noise * torch.randn(count, HORIZON, generator=generator).double()
    future = context[:, 0, :1] + z @ truth.loadings.mT + noise
    zero, one = torch.zeros(HORIZON), torch.ones(HORIZON)
    return Table(context, future, ("a", "b"), tuple("uvwx"), zero, one)
