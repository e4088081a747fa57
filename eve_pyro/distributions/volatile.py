"""The factor normal with a volatility unit: heavy tails, and windows that are calm or wild as a whole."""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from eve_pyro.distributions.factor import FactorNormal, GivenLatents, Held
from eve_pyro.protocols import Latents


class VolatileFactor(GivenLatents):
    """A ``FactorNormal`` whose deviations the activity v of a volatility unit divides by sqrt(v).

    Where v ~ Gamma(c, r) and the units' activity has mean 0, values are p(y_h) = StudentT(2c, loc_h, scale_h sqrt(r/c))
    and paths are multivariate t with the factor normal's dependence, both in closed form.

    Shapes: ``factor`` has batch (..., B, 1) and event (H,), ``volatility`` is (..., B, 1, 1). ``site`` names the latent
    that v comes from.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, factor: FactorNormal, volatility: Tensor, site: str) -> None:
        self.factor, self.volatility, self.site = factor, volatility, site
        shape = torch.broadcast_shapes(factor.batch_shape, volatility.shape[:-1])
        super().__init__(shape, factor.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VolatileFactor":
        """Return the distribution with its activities expanded, so that the batch shape is ``batch_shape``."""
        volatility = self.volatility.expand(*batch_shape, 1)
        return VolatileFactor(self.factor.expand(batch_shape), volatility, self.site)

    def rescaled(self, loc: Tensor, scale: Tensor) -> "VolatileFactor":
        """Return the distribution of ``loc + scale * y``."""
        return VolatileFactor(self.factor.rescaled(loc, scale), self.volatility, self.site)

    @property
    def held(self) -> Held | None:
        """What the densities of paths do not move."""
        return self.factor.held

    def conditional(self) -> dist.Independent:
        """Return the normals p(y_h | z, v): batch (..., B, 1), event (H,)."""
        return self.factor.stretched(self.volatility.rsqrt()).conditional()

    def given(self, volatility: TorchDistribution | None) -> tuple[FactorNormal | None, tuple[Tensor, Tensor] | None]:
        """Return the factor normal under a point ``volatility``, or the one at 1 with df and stretch of a Gamma, each
        (..., B, 1, 1); of any other family None.
        """
        v = volatility.base_dist if isinstance(volatility, torch.distributions.Independent) else volatility
        if isinstance(v, dist.Delta):
            return self.factor.stretched(v.v[..., 0].rsqrt()), None
        if not isinstance(v, dist.Gamma):
            return None, None
        concentration, rate = v.concentration[..., 0], v.rate[..., 0]  # (..., B, 1, 1, 1) for the unit's event (1, 1)
        return self.factor, (2 * concentration, (rate / concentration).sqrt())

    def marginal(self, latents: Latents) -> TorchDistribution | None:
        """Return p(y_h) with Gaussian units and a Gamma volatility integrated out: batch (B, 1), event (H,)."""
        return self._integrated(latents, FactorNormal.marginal, _values)

    def blocks(self, latents: Latents, size: int) -> TorchDistribution | None:
        """Return p(mean of y over a block) with all of them integrated out, see ``Blockwise``."""
        return self._integrated(latents, lambda factor, units: factor.blocks(units, size), _values)

    def joint(self, latents: Latents) -> TorchDistribution | None:
        """Return p(y) with Gaussian units and a Gamma volatility integrated out: batch (B, 1), event (H,)."""
        return self._integrated(latents, FactorNormal.joint, _paths)

    def _integrated(
        self,
        latents: Latents,
        normal_of: Callable[[FactorNormal, Latents], TorchDistribution | None],
        wild_of: Callable[[Tensor, Tensor, TorchDistribution], TorchDistribution],
    ) -> TorchDistribution | None:
        """Return the ``normal_of`` the factor and the units, or with df and stretch of a Gamma the t ``wild_of`` it."""
        units = {site: fn for site, fn in latents.items() if site != self.site}
        factor, wild = self.given(latents.get(self.site))
        normal = None if factor is None else normal_of(factor, units)
        if normal is None or wild is None:
            return normal
        return None if self._moved(units) else wild_of(*wild, normal)

    def _moved(self, units: Latents) -> bool:
        """Whether the units' activity has another mean than 0, or may learn one, which a volatility would scale too."""
        moments = self.factor.activity_moments(units)
        # NaN is no move: it ends as a loss that is not finite.
        return moments is not None and (moments[0].requires_grad or bool((moments[0].abs() > 0).any()))


def _values(df: Tensor, stretch: Tensor, normal: TorchDistribution) -> TorchDistribution:
    return WindowT(df, normal.mean, stretch * normal.stddev, validate_args=False).to_event(1)


def _paths(df: Tensor, stretch: Tensor, normal: TorchDistribution) -> TorchDistribution:
    return MultivariateT(df[..., 0], stretch[..., 0], normal)


class WindowT(dist.StudentT):  # type: ignore[misc]  # untyped in Pyro
    """Student's t whose degrees of freedom are the same for all steps of a window, the last axis.

    The density's constants, which are dear, are computed once a window.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every step, in nats."""
        df, away = self.df[..., :1], (value - self.loc) / self.scale
        constant = torch.lgamma(0.5 * (df + 1)) - torch.lgamma(0.5 * df) - 0.5 * (math.pi * df).log()
        return constant - self.scale.log() - 0.5 * (df + 1) * torch.log1p(away.square() / df)


class MultivariateT(TorchDistribution):
    """y = loc + stretch * sqrt(df / chi2(df)) * (x - loc), x ~ a multivariate ``normal``: a t with its shape.

    ``df`` and ``stretch`` broadcast to the normal's batch. All algebra is the normal's own, low rank or dense.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, df: Tensor, stretch: Tensor, normal: Any) -> None:
        self.df, self.stretch, self.normal = df, stretch, normal
        super().__init__(normal.batch_shape, normal.event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw paths, (*sample_shape, ..., H)."""
        away = self.normal.rsample(sample_shape) - self.normal.mean  # drawn first, as the normal alone would draw them
        half = 0.5 * self.df.expand(self.normal.batch_shape)
        wild = self.stretch * dist.Gamma(half, half, validate_args=False).rsample(sample_shape).rsqrt()
        return self.normal.mean + wild.unsqueeze(-1) * away

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y), in nats per window."""
        size, df = self.event_shape[0], self.df
        # The normal's density at its mode is its determinant, and what it loses from there the squared distance.
        mode = self.normal.log_prob(self.normal.mean)
        distance = 2 * (mode - self.normal.log_prob(value)) / self.stretch.square()
        constant = torch.lgamma(0.5 * (df + size)) - torch.lgamma(0.5 * df) - 0.5 * size * (0.5 * df).log()
        return mode - size * self.stretch.log() + constant - 0.5 * (df + size) * torch.log1p(distance / df)

    @property
    def mean(self) -> Tensor:
        """Mean, (..., H)."""
        return self.normal.mean

    @property
    def variance(self) -> Tensor:
        """Variance, (..., H): infinite for df <= 2."""
        return self.normal.variance * self._tail.unsqueeze(-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance, (..., H, H): infinite for df <= 2."""
        covariance: Tensor = self.normal.covariance_matrix
        return covariance * self._tail[..., None, None]

    @property
    def _tail(self) -> Tensor:
        tail = torch.where(self.df > 2, self.df / (self.df - 2).clamp(min=1e-12), torch.inf)
        return self.stretch.square() * tail


@singledispatch
def volatile(fn: TorchDistribution, volatility: Tensor, site: str) -> TorchDistribution:
    """Return likelihood ``fn`` with its deviations divided by sqrt(v), v (..., B, 1, 1) drawn at ``site``.

    Raises ValueError for a family that is neither independent normals nor a ``FactorNormal``.
    """
    raise ValueError(f"a volatility unit divides the deviations of a normal likelihood, not of {type(fn).__name__}")


@volatile.register
def _(fn: FactorNormal, volatility: Tensor, site: str) -> TorchDistribution:
    return VolatileFactor(fn, volatility, site)


@volatile.register
def _(fn: dist.Independent, volatility: Tensor, site: str) -> TorchDistribution:
    base = fn.base_dist
    if not isinstance(base, dist.Normal):
        return volatile.dispatch(object)(base, volatility, site)
    return dist.Normal(base.loc, base.scale * volatility.rsqrt(), validate_args=False).to_event(1)
