"""An optimal stopping problem in continuous time: what moves, what waiting costs, what stopping costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError

Array = np.ndarray
Coefficient = float | Callable[[float, Float[Array, "n d"]], Any]
"""A number, or a function of the time and of n states at once."""


@dataclass(frozen=True, eq=False)
class StoppingProblem:
    """The least, over all stopping times τ <= T, of E[ ∫_0^τ D_s c(X_s) ds + D_τ g(X_τ) ],  dX = f dt + σ dW.

    D_t = exp(-∫_0^t r ds) discounts. Everything is a loss: a reward is a negative loss, as in a trace. Functions take
    the time and states x of shape (n, d), d = 1 or 2.

    Attributes:
        loss: g(t, x) -> (n,), of stopping.
        drift: f, a number or f(t, x) -> (n, d); per unit of time.
        diffusion: σ, a number; σ(t, x) -> (n, d), each dimension with a noise of its own; or (n, d, m) with m noises
            that dimensions share.
        price: c, a number or c(t, x) -> (n,); loss that a unit of waiting costs.
        discount: r >= 0, a number or r(t, x) -> (n,); per unit of time.
        horizon: T, when stopping is forced; infinite if not given, and then nothing may depend on the time.
        dates: times in [0, T] at which alone stopping is allowed, T always among them; at any time if not given.

    Raises:
        InputError: a horizon that is not positive, or dates that are not increasing times within it.

    Example:
        >>> put = od.StoppingProblem(
        ...     loss=lambda t, x: -np.maximum(1 - x[:, 0], 0),
        ...     drift=lambda t, x: 0.05 * x,
        ...     diffusion=lambda t, x: 0.2 * x,
        ...     discount=0.05,
        ...     horizon=1.0,
        ... )
        >>> put.horizon
        1.0
    """

    loss: Callable[[float, Float[Array, "n d"]], Any]
    drift: Coefficient = 0.0
    diffusion: Coefficient = 0.0
    price: Coefficient = 0.0
    discount: Coefficient = 0.0
    horizon: float = math.inf
    dates: Sequence[float] | Float[Array, " dates"] | None = None

    def __post_init__(self) -> None:
        if not self.horizon > 0:
            raise InputError(f"horizon is {self.horizon:g}; it must be > 0, or math.inf")
        if self.dates is None:
            return
        if math.isinf(self.horizon):
            raise InputError("dates need a finite horizon; give one, or leave the dates out")
        dates = np.asarray(self.dates, dtype=np.float64)
        if dates.ndim != 1 or len(dates) == 0 or not np.isfinite(dates).all() or not (np.diff(dates) > 0).all():
            raise InputError(f"dates {self.dates} must be a list of increasing times")
        if dates[0] < 0 or dates[-1] > self.horizon:
            raise InputError(f"dates from {dates[0]:g} to {dates[-1]:g} are not within [0, {self.horizon:g}]")
        object.__setattr__(self, "dates", tuple(dates.tolist()))


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A problem's functions at one time, at n states, checked.

    Attributes:
        loss, price, discount: (n,).
        drift: (n, d).
        noise: (n, d, m), σ.
    """

    loss: Float[Array, " n"]
    drift: Float[Array, "n d"]
    noise: Float[Array, "n d m"]
    price: Float[Array, " n"]
    discount: Float[Array, " n"]

    @cached_property
    def covariance(self) -> Float[Array, "n d d"]:
        """σσᵀ."""
        return self.noise @ self.noise.transpose(0, 2, 1)

    def same_motion(self, other: Coefficients) -> bool:
        """Whether both describe the same drift and noise."""
        return np.array_equal(self.drift, other.drift) and np.array_equal(self.noise, other.noise)


def evaluated(problem: StoppingProblem, time: float, x: Float[Array, "n d"]) -> Coefficients:
    """The functions of a problem at one time.

    Raises:
        InputError: a shape other than asked for, a value that is not finite, or a negative discount.
    """
    n, d = x.shape
    sigma = _called("diffusion", problem.diffusion, time, x, (n, d), (n, d, -1))
    found = Coefficients(
        loss=_called("loss", problem.loss, time, x, (n,)),
        drift=_called("drift", problem.drift, time, x, (n, d)),
        noise=sigma if sigma.ndim == 3 else sigma[:, :, None] * np.eye(d),
        price=_called("price", problem.price, time, x, (n,)),
        discount=_called("discount", problem.discount, time, x, (n,)),
    )
    if found.discount.min() < 0:
        raise InputError(f"discount is {found.discount.min():g} at {_at(x, found.discount.argmin())}; it must be >= 0")
    return found


def _called(name: str, given: Coefficient, time: float, x: Array, *shapes: tuple[int, ...]) -> Array:
    if isinstance(given, int | float):
        if not np.isfinite(given):
            raise InputError(f"{name} is {given}; it must be finite")
        return np.full(shapes[0], float(given))
    value = np.asarray(given(time, x), dtype=np.float64)
    fits = (
        value.ndim == len(shape) and all(wanted in (-1, size) for wanted, size in zip(shape, value.shape, strict=True))
        for shape in shapes
    )
    if not any(fits):
        wanted = " or ".join(str(shape).replace("-1", "m") for shape in shapes)
        raise InputError(f"{name} gives shape {value.shape} for states of shape {x.shape}; it must give {wanted}")
    bad = np.flatnonzero(~np.isfinite(value.reshape(len(x), -1)).all(axis=1))
    if len(bad):
        raise InputError(f"{name} is not finite at time {time:g}, state {_at(x, bad[0])}; shrink the box, or mend it")
    return value


def _at(x: Array, i: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in x[int(i)]) + ")"
