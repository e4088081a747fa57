"""The factor normal, whose units carry dependence and whose marginals do not pay, and how likelihoods are rescaled."""

from collections.abc import Callable
from copy import copy
from functools import singledispatch
from typing import Any, ClassVar, Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions import transforms as T
from torch.nn.functional import one_hot

from eve_pyro.distributions.blocks import block_lengths, block_means, by_block, with_whole
from eve_pyro.distributions.dense import DenseNormal, LowRankNormal
from eve_pyro.distributions.paths import path_moments
from eve_pyro.protocols import Latents

Held = Literal["locations", "scales"]


class GivenLatents(TorchDistribution):
    """p(y | z) with its latents drawn: draws, density and moments are those of ``conditional``, unless overridden."""

    def conditional(self) -> dist.Independent:
        """Return independent values, p(y_h | z): batch (..., B, 1), event (H,)."""
        raise NotImplementedError

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw y given the latents, reparameterised."""
        return self.conditional().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y | z), in nats per window."""
        return self.conditional().log_prob(value)

    @property
    def mean(self) -> Tensor:
        """Mean given the latents, (..., B, 1, H)."""
        return self.conditional().mean

    @property
    def variance(self) -> Tensor:
        """Variance given the latents, (..., B, 1, H)."""
        return self.conditional().variance


class FactorNormal(GivenLatents):
    """A normal whose dependence is carried by latent units, and whose marginals do not pay for it.

    With loadings A (H, N), a gain g (N) per window and the units' activity a::

        A_h <- A_h * g,   k_h = 1 / sqrt(1 + |A_h|^2),   B_h = k_h A_h
        y_h | a ~ Normal(loc_h + scale_h * B_h a, (scale_h * k_h)^2)

    so that p(y_h) = Normal(loc_h, scale_h^2) exactly when a ~ Normal(0, I), whatever the loadings, and p(y) is a normal
    with correlation B B' + diag(k^2). Under another Gaussian activity (a learned or contextual prior, pooling ``sum``
    or ``mean`` over K > 1) the marginals are normals of another location and deviation. Where the units' path runs over
    P patches of the horizon, step h reads the activity and the gain of its own patch, h P // H.

    Shapes: ``loc`` and ``scale`` (B, 1, H), ``loadings`` (H, N) or (B, H, N), ``gain`` (B, P, N), ``activity``
    (..., B, P, N). ``site`` names the latent whose last P path steps the activity comes from, and ``pool_weight`` how:
    a = weight * sum_k z_k. What is ``held``, the locations or the scales, is a constant to the gradients of the paths'
    densities, p(y | z) and p(y), and learns from the marginals alone.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        loadings: Tensor,
        gain: Tensor,
        activity: Tensor,
        *,
        site: str,
        pool_weight: float = 1.0,
        held: Held | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.loadings, self.gain, self.activity = loc, scale, loadings, gain, activity
        self.path_loc, self.path_scale = hold(loc, scale, held)
        self.site, self.pool_weight, self.held = site, pool_weight, held
        self.patch = patches_of(loadings.shape[-2], activity.shape[-2], loadings.device)
        self.noise = (1 + self._read(gain.square(), loadings.square())).rsqrt()  # k, (B, 1, H)
        self.shift = self.noise * self._read(gain * activity, loadings)  # B a, (..., B, 1, H)
        shape = torch.broadcast_shapes(loc.shape, scale.shape, self.shift.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FactorNormal":
        """Return the distribution with ``activity`` expanded, so that the batch shape is ``batch_shape``."""
        activity = self.activity.expand(*batch_shape[:-1], *self.activity.shape[-2:])
        expanded = FactorNormal(
            self.loc, self.scale, self.loadings, self.gain, activity, site=self.site, pool_weight=self.pool_weight,
            held=self.held, validate_args=False,
        )  # fmt: skip
        expanded.path_loc, expanded.path_scale = self.path_loc, self.path_scale
        return expanded

    def rescaled(self, loc: Tensor, scale: Tensor) -> "FactorNormal":
        """Return the distribution of ``loc + scale * y``: dependence has no units, so the loadings stay."""
        return self._moved(lambda own: loc + scale * own, lambda own: scale * own)

    def stretched(self, factor: Tensor) -> "FactorNormal":
        """Return the distribution with its scale multiplied by ``factor``, which broadcasts to (..., B, 1, H)."""
        return self._moved(lambda own: own, lambda own: own * factor)

    def conditional(self) -> dist.Independent:
        """Return the normals p(y_h | z): batch (..., B, 1), event (H,)."""
        loc, scale = self.path_loc + self.path_scale * self.shift, self.path_scale * self.noise
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def marginal(self, latents: Latents) -> TorchDistribution | None:
        """Return the normals p(y_h) with Gaussian units integrated out: batch (B, 1), event (H,)."""
        moments = self.activity_moments(latents)
        if moments is None:
            return None
        mean, covariance = moments
        variance = covariance.diagonal(dim1=-2, dim2=-1).mT  # (..., P, N)
        if _constant(mean, 0) and _constant(variance, 1):
            return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
        shift = self.noise * self._read(self.gain * mean, self.loadings)
        spread = self._read(self.gain.square() * variance, self.loadings.square())
        return dist.Normal(self.loc + self.scale * shift, self.scale * self.noise * (1 + spread).sqrt()).to_event(1)

    def blocks(self, latents: Latents, size: int) -> dist.Independent | None:
        """Return the normals p(mean of y over a block) with Gaussian units integrated out, see ``Blockwise``."""
        moments = self.activity_moments(latents)
        if moments is None:
            return None
        mean, covariance = moments
        noise = (self.scale * self.noise).squeeze(-2)  # (..., B, H)
        lengths = block_lengths(noise.shape[-1], size).to(noise)
        loadings = by_block(self._by_patch(), size, dim=-2)  # (J, size, N P)
        weights = torch.einsum("...jm,...jmk->...jk", by_block(noise, size, dim=-1), loadings)
        weights = with_whole(weights, dim=-2) / lengths.unsqueeze(-1)  # (..., B, J + 1, N P)
        weights = weights * self.gain.mT.flatten(-2).unsqueeze(-2)
        shift = (weights * mean.mT.flatten(-2).unsqueeze(-2)).sum(-1)
        own = block_means(noise.square(), size) / lengths
        scale = (own + _quadratic(weights, covariance)).sqrt()
        loc = block_means(self.loc, size) + shift.unsqueeze(-2)
        return dist.Normal(loc, scale.unsqueeze(-2), validate_args=False).to_event(1)

    def joint(self, latents: Latents) -> TorchDistribution | None:
        """Return the normal p(y) with Gaussian units integrated out: batch (B, 1), event (H,)."""
        moments = self.activity_moments(latents)
        if moments is None:
            return None
        mean, covariance = moments
        loc = self.path_loc + self.path_scale * self.noise * self._read(self.gain * mean, self.loadings)
        root = torch.linalg.cholesky(covariance)  # (..., N, P, P)
        weights = self.loadings * self.gain[..., self.patch, :]  # (B, H, N)
        noise = self.path_scale * self.noise
        factor = weights[..., None] * root[..., self.patch, :].transpose(-3, -2)  # (B, H, N, P)
        factor = noise[..., None] * factor.flatten(-2).unsqueeze(-3)  # (B, 1, H, N P)
        if factor.shape[-1] < factor.shape[-2]:
            return LowRankNormal(loc, factor, noise.square(), validate_args=False)
        covariance = factor @ factor.mT + torch.diag_embed(noise.square())
        return DenseNormal(loc, covariance, validate_args=False)

    def _moved(self, loc: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor]) -> "FactorNormal":
        """Return the distribution with its location and scale moved; units and loadings are not read again."""
        moved = copy(self)
        moved.loc, moved.scale = loc(self.loc), scale(self.scale)
        moved.path_loc = moved.loc if self.path_loc is self.loc else loc(self.path_loc)
        moved.path_scale = moved.scale if self.path_scale is self.scale else scale(self.path_scale)
        moved._batch_shape = torch.broadcast_shapes(moved.loc.shape, moved.scale.shape, self.shift.shape)[:-1]
        return moved

    def _read(self, weights: Tensor, loadings: Tensor) -> Tensor:
        """Return sum_n loadings_hn weights_pn for every step h and its patch p: (..., P, N) -> (..., 1, H)."""
        by_patch = weights @ loadings.mT  # (..., P, H)
        if by_patch.shape[-2] == 1:
            return by_patch
        steps = torch.arange(by_patch.shape[-1], device=by_patch.device)
        return by_patch[..., self.patch, steps].unsqueeze(-2)

    def _by_patch(self) -> Tensor:
        """Return the loadings of every unit in every patch, 0 for steps of other patches: (..., H, N P)."""
        own = one_hot(self.patch, self.activity.shape[-2]).to(self.loadings)  # (H, P)
        return (self.loadings.unsqueeze(-1) * own.unsqueeze(-2)).flatten(-2)

    def activity_moments(self, latents: Latents) -> tuple[Tensor, Tensor] | None:
        """Mean (..., P, N) and covariance (..., N, P, P) of the activity that is read, where the units are independent
        Gaussian paths and nothing else was drawn that their distribution may depend on.
        """
        others = [fn for site, fn in latents.items() if site != self.site]
        moments = path_moments(latents.get(self.site))
        if moments is None or not all(isinstance(fn, dist.Delta) for fn in others):
            return None
        mean, covariance = moments
        steps = self.activity.shape[-2]
        mean = self.pool_weight * mean.sum(-1)[..., -steps:].mT
        return mean, self.pool_weight**2 * covariance.sum(-3)[..., -steps:, -steps:]


def _quadratic(weights: Tensor, covariance: Tensor) -> Tensor:
    """Return sum_n w_n' C_n w_n of ``weights`` (..., J, N P), C being (..., N, P, P): (..., J)."""
    if covariance.shape[-1] == 1:  # far cheaper than as many products of single numbers
        return (weights.square() * covariance[..., 0, 0].unsqueeze(-2)).sum(-1)
    by_unit = weights.unflatten(-1, covariance.shape[-3:-1])
    return torch.einsum("...jnp,...npq,...jnq->...j", by_unit, covariance, by_unit)


def _constant(moment: Tensor, value: float) -> bool:
    """Whether a moment is ``value`` and stays so in training."""
    return not moment.requires_grad and bool((moment == value).all())


def hold(loc: Tensor, scale: Tensor, held: Held | None) -> tuple[Tensor, Tensor]:
    """Return ``loc`` and ``scale``, the one that is ``held`` as a constant to gradients."""
    if held not in (None, *get_args(Held)):
        raise ValueError(f"what is held is {' or '.join(get_args(Held))}, not {held!r}")
    return loc.detach() if held == "locations" else loc, scale.detach() if held == "scales" else scale


def patches_of(horizon: int, num_patches: int, device: torch.device) -> Tensor:
    """Return the patch that each step of the horizon belongs to, (H,)."""
    return torch.arange(horizon, device=device) * num_patches // horizon


@singledispatch
def rescaled(fn: TorchDistribution, loc: Tensor, scale: Tensor) -> TorchDistribution:
    """Return the distribution of ``loc + scale * y`` for y ~ ``fn``, its Jacobian in the log density.

    ``loc`` and ``scale`` broadcast against y. Location-scale families come back as themselves, and so does a
    distribution with a method ``rescaled(loc, scale)``; anything else as a transformed distribution.
    """
    if hasattr(fn, "rescaled"):
        return fn.rescaled(loc, scale)
    # Expanded by hand: the transform counts the Jacobian of the scale's own shape, not of the event it broadcasts to.
    shape = torch.broadcast_shapes(loc.shape, scale.shape, fn.event_shape)
    affine = T.AffineTransform(loc.expand(shape), scale.expand(shape), event_dim=fn.event_dim)
    return dist.TransformedDistribution(fn, affine)


@rescaled.register
def _(fn: dist.Independent, loc: Tensor, scale: Tensor) -> TorchDistribution:
    base = fn.base_dist
    if isinstance(base, dist.Normal):
        moved: TorchDistribution = dist.Normal(loc + scale * base.loc, scale * base.scale, validate_args=False)
    elif isinstance(base, dist.StudentT):
        moved = dist.StudentT(base.df, loc + scale * base.loc, scale * base.scale, validate_args=False)
    else:
        return rescaled.dispatch(object)(fn, loc, scale)
    return moved.to_event(fn.reinterpreted_batch_ndims)
