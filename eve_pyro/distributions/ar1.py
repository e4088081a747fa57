"""A path with memory: the Gaussian AR(1) over the steps of a unit, and its closed-form divergences."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl


class AR1(TorchDistribution):
    """K independent Gaussian chains of T steps: batch (...), event (T, K).

    Without ``innovation``, every step is z_t ~ Normal(loc_t, scale_t^2) exactly, and the standardised path
    u_t = (z_t - loc_t) / scale_t is a stationary AR(1)::

        u_1 ~ Normal(0, 1),   u_t = phi_t u_{t-1} + sqrt(1 - phi_t^2) e_t,   e_t ~ Normal(0, 1)

    With ``innovation``, ``scale`` is the deviation of the first step alone, and the later ones follow::

        z_1 ~ Normal(loc_1, scale_1^2),   z_t - loc_t = phi_t (z_{t-1} - loc_{t-1}) + innovation_t e_t

    Either way z_t - loc_t = transition_t (z_{t-1} - loc_{t-1}) + noise_t e_t with transition_1 = 0, the form everything
    here is computed from, in log2(T) vectorised steps where a recurrence must be solved.

    Shapes: ``loc`` (..., T, K); ``phi``, ``scale`` and ``innovation`` broadcast against it, their steps axis (-2) being
    1 or T, or they are numbers. scale > 0, innovation > 0 and, without ``innovation``, |phi| < 1, at unused steps as
    well: phi_1 and innovation_1 have no effect. With ``innovation`` a path may grow: phi is any number.

    Raises ValueError for shapes that do not broadcast and paths of one step, and, where arguments are validated, for
    values out of bounds.
    """

    # Without innovation, which may be None: torch's own check and repr ask for tensors. _check_values covers it.
    arg_constraints: ClassVar = {
        "loc": constraints.independent(constraints.real, 2),
        "phi": constraints.independent(constraints.real, 2),  # below 1 without innovation, see _check_values
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        phi: Tensor | float,
        scale: Tensor | float,
        innovation: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        phi, scale = _tensor(phi, loc), _tensor(scale, loc)
        innovation = None if innovation is None else _tensor(innovation, loc)
        given = {"loc": loc, "phi": phi, "scale": scale, "innovation": innovation}
        shape = _path_shape({name: value for name, value in given.items() if value is not None})
        if self._validate_args if validate_args is None else validate_args:
            _check_values(phi, scale, innovation)
        # Only loc takes the whole batch: what does not vary over it is computed once.
        self.loc = loc.expand(shape)
        self.phi, self.scale = _with_event(phi, shape[-2:]), _with_event(scale, shape[-2:])
        self.innovation = None if innovation is None else _with_event(innovation, shape[-2:])
        first = torch.arange(shape[-2], device=loc.device).unsqueeze(-1) == 0  # (T, 1)
        phi = self.phi.masked_fill(first, 0.0)
        if self.innovation is None:
            self.transition = phi * self.scale / self.scale.roll(1, -2)  # (..., T, K)
            self.noise = self.scale * ((1 - phi) * (1 + phi)).sqrt()  # 1 - phi^2 would cancel near 1
        else:
            self.transition = phi
            self.noise = torch.where(first, self.scale, self.innovation)
        super().__init__(shape[:-2], shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AR1":
        """Return the distribution with ``loc`` expanded, so that the batch shape is ``batch_shape``."""
        new = self._get_checked_instance(AR1, _instance)
        new.loc = self.loc.expand(*batch_shape, *self.event_shape)
        new.phi, new.scale, new.innovation = self.phi, self.scale, self.innovation
        new.transition, new.noise = self.transition, self.noise
        super(AR1, new).__init__(new.loc.shape[:-2], self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw paths (*sample_shape, ..., T, K), reparameterised."""
        shape = self._extended_shape(sample_shape)
        shocks = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + _solve(self.transition, self.noise * shocks)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) of whole paths (..., T, K), in nats, of batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        shocks = innovations(value - self.loc, self.transition) / self.noise
        log_density = -0.5 * shocks.square() - self.noise.log() - 0.5 * math.log(2 * math.pi)
        return log_density.sum((-2, -1))

    def entropy(self) -> Tensor:
        """Return the entropy in nats, of batch shape."""
        steps = 0.5 * (1 + math.log(2 * math.pi)) + self.noise.log()
        return steps.sum((-2, -1)).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Mean, (..., T, K)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each step, (..., T, K)."""
        if self.innovation is None:
            variance = self.scale.square()
        else:
            variance = _solve(self.transition.square(), self.noise.square())
        return variance.expand(self.loc.shape)

    @property
    def lag_covariance(self) -> Tensor:
        """Cov(z_t, z_{t-1}), (..., T, K); 0 at the first step."""
        return self.transition * delayed(self.variance)

    @property
    def covariance(self) -> Tensor:
        """Dense covariance of each chain over its steps, (..., K, T, T)."""
        impulses = torch.diag_embed(self.noise.mT)  # a column per shock: what it does to the later steps is Cholesky's
        factor = _solve(self.transition.mT.unsqueeze(-1), impulses)
        return (factor @ factor.mT).expand(*self.batch_shape, *factor.shape[-3:])


def _kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) of paths, either side an AR1 or independent normals, in nats and of the broadcast batch shape.

    With a and s the transition and noise of each, and r = E_q z - E_p z, the sum over steps and dimensions of::

        log(s_p / s_q) - 1/2 + [s_q^2 + (a_q - a_p)^2 Var_q(z_{t-1}) + (r_t - a_p r_{t-1})^2] / (2 s_p^2)

    which is E_q (z_t - a_p z_{t-1})^2 without the differences of large numbers that phi near 1 would bring.
    """
    (q_transition, q_noise), (p_transition, p_noise) = dynamics(q), dynamics(p)
    if q.event_shape != p.event_shape:
        shapes = f"{tuple(q.event_shape)} for q, {tuple(p.event_shape)} for p"
        raise ValueError(f"KL(q || p) compares paths of one shape (T, K), not {shapes}")
    ratio = (q_noise / p_noise).square()
    moved = innovations(q.mean - p.mean, p_transition).square()
    spread = (q_transition - p_transition).square() * delayed(q.variance)
    return 0.5 * (ratio - ratio.log() - 1 + (moved + spread) / p_noise.square()).sum((-2, -1))


for _families in ((AR1, AR1), (Independent, AR1), (AR1, Independent)):  # pyro's Independent is a subclass of torch's
    register_kl(*_families)(_kl)


def dynamics(fn: Distribution) -> tuple[Tensor, Tensor]:
    """Return transition and noise of an AR1 or of independent normals, the chain without memory."""
    if isinstance(fn, AR1):
        return fn.transition, fn.noise
    if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 2 and isinstance(fn.base_dist, Normal):
        return fn.base_dist.scale.new_zeros(()), fn.base_dist.scale
    raise NotImplementedError(f"no closed-form KL of Gaussian paths with {fn}")


def delayed(path: Tensor, steps: int = 1) -> Tensor:
    """Return x_{t - steps}, zero before the path begins."""
    return F.pad(path[..., :-steps, :], (0, 0, steps, 0))


def innovations(path: Tensor, transition: Tensor) -> Tensor:
    """Return x_t - a_t x_{t-1}."""
    return path - transition * delayed(path)


def _solve(transition: Tensor, shocks: Tensor) -> Tensor:
    """Solve d_t = a_t d_{t-1} + b_t along axis -2 by doubling: after each pass a step sees twice as far back."""
    reach = 1
    while reach < shocks.shape[-2]:
        shocks = shocks + transition * delayed(shocks, reach)
        transition = transition * delayed(transition, reach)
        reach *= 2
    return shocks


def _tensor(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _path_shape(given: dict[str, Tensor]) -> Size:
    """Return the shape (..., T, K) that the arguments broadcast to."""
    try:
        shape = torch.broadcast_shapes(*(value.shape for value in given.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise ValueError(f"the arguments of AR1 must broadcast to (..., T, K), these do not: {shapes}") from None
    if len(shape) < 2 or shape[-2] < 2:
        raise ValueError(
            f"an AR(1) path needs at least two steps, these arguments make (..., T, K) = {tuple(shape)}: use "
            "independent normals for a single step"
        )
    return shape


def _with_event(value: Tensor, event: Size) -> Tensor:
    return value.expand(torch.broadcast_shapes(value.shape, event))


def _check_values(phi: Tensor, scale: Tensor, innovation: Tensor | None) -> None:
    if innovation is None:
        _require("|phi| < 1", phi, phi.abs() < 1, "squash it, with tanh for one")
    _require("a scale > 0", scale, scale > 0, "take its exp or softplus")
    if innovation is not None:
        _require("an innovation > 0", innovation, innovation > 0, "take its exp or softplus")


def _require(what: str, value: Tensor, valid: Tensor, fix: str) -> None:
    if not valid.all():
        raise ValueError(f"AR(1) needs {what}, not {value[~valid].flatten()[0].item():g}: {fix}")
