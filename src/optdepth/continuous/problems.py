"""Stopping problems whose solutions are known, or published: to test the solver, to draw, to start from.

Each gives the problem, a box and nodes that suit it, where paths start, and what is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .problem import StoppingProblem

Array = np.ndarray
RATE, STRIKE = 0.06, 40.0
"""Of the puts: those of Longstaff and Schwartz (2001), table 1. Prices of the share are in logarithms throughout."""
_SHARE = "logarithm of the share price"


@dataclass(frozen=True, eq=False)
class Example:
    """A problem ready to be solved.

    Attributes:
        problem: what to solve.
        box, nodes: a grid for it.
        start: (d,) where paths start.
        until: when paths end.
        value: its value in closed form, states (n, d) -> (n,); None where there is none.
        boundary: places of the free boundary in closed form; none where unknown.
        state: what the state is, for the axes of a picture.
    """

    problem: StoppingProblem
    box: Sequence[tuple[float, float]]
    nodes: int
    start: Sequence[float]
    until: float
    value: Callable[[Float[Array, "n d"]], Float[Array, " n"]] | None = None
    boundary: tuple[float, ...] = ()
    state: str = "state"


def deterministic_flow(price: float = 0.25, *, rate: float = 1.0, dimensions: int = 1) -> Example:
    """dx = -a x dt, g = |x|² / 2, price c: stop within |x| <= sqrt(c / a), reached after ln(|x| / x*) / a."""
    if not price >= 0:
        raise InputError(f"price is {price:g}; it must be >= 0")
    edge = math.sqrt(price / rate)

    def value(x: Float[Array, "n d"]) -> Float[Array, " n"]:
        size = np.maximum(np.linalg.norm(x, axis=1), 1e-300)
        waits = np.log(np.maximum(size / edge, 1.0)) / rate
        return np.where(size > edge, edge**2 / 2 + price * waits, size**2 / 2)

    problem = StoppingProblem(loss=lambda t, x: (x**2).sum(axis=1) / 2, drift=lambda t, x: -rate * x, price=price)
    start = [2.5] if dimensions == 1 else [2.5, 1.5]
    places = (-edge, edge) if dimensions == 1 else ()
    return Example(problem, [(-3.0, 3.0)] * dimensions, 401 if dimensions == 1 else 121, start, 3.0, value, places)


def perpetual_put(sigma: float = 0.2) -> Example:
    """The American put without end: S* = K γ / (1 + γ), γ = 2 r / σ², V = (K - S*) (S / S*)^-γ (McKean 1965)."""
    gamma = 2 * RATE / sigma**2
    edge = STRIKE * gamma / (1 + gamma)

    def value(x: Float[Array, "n d"]) -> Float[Array, " n"]:
        share = np.exp(x[:, 0])
        waits = (STRIKE - edge) * np.maximum(share / edge, 1.0) ** -gamma
        return -np.where(share > edge, waits, STRIKE - share)

    box = [(math.log(edge) - 1.0, math.log(edge) + 6.0)]
    return Example(_put(sigma, math.inf), box, 1401, [math.log(36.0)], 10.0, value, (math.log(edge),), _SHARE)


def american_put(sigma: float = 0.2, years: float = 1.0, *, dates: int | None = None) -> Example:
    """The put with an end, exercised at any time, or at so many dates a year, as in Longstaff and Schwartz (2001)."""
    wide = 6 * sigma * math.sqrt(years)
    box = [(math.log(STRIKE) - wide, math.log(STRIKE) + wide)]
    times = None if dates is None else np.arange(1, round(dates * years) + 1) / dates
    return Example(_put(sigma, years, times), box, 601, [math.log(36.0)], years, state=_SHARE)


def ornstein_uhlenbeck(
    price: float = 0.25, *, rate: float = 1.0, sigma: float = 0.5, horizon: float = math.inf, dates: int | None = None
) -> Example:
    """dX = -a X dt + σ dW, g = x² / 2, price c: stop near the middle. No closed form for an infinite horizon."""
    times = None if dates is None else np.linspace(0.0, horizon, dates)
    problem = StoppingProblem(
        loss=lambda t, x: x[:, 0] ** 2 / 2,
        drift=lambda t, x: -rate * x,
        diffusion=sigma,
        price=price,
        horizon=horizon,
        dates=times,
    )
    return Example(problem, [(-3.5, 3.5)], 401, [2.0], min(horizon, 4.0))


def _put(sigma: float, horizon: float, dates: Array | None = None) -> StoppingProblem:
    return StoppingProblem(
        loss=lambda t, x: -np.maximum(STRIKE - np.exp(x[:, 0]), 0.0),
        drift=RATE - sigma**2 / 2,
        diffusion=sigma,
        discount=RATE,
        horizon=horizon,
        dates=dates,
    )


_PRICED: dict[str, Callable[..., Example]] = {
    "deterministic-flow": deterministic_flow,
    "flow-in-the-plane": partial(deterministic_flow, dimensions=2),
    "ornstein-uhlenbeck": ornstein_uhlenbeck,
}
_FREE: dict[str, Callable[[], Example]] = {"perpetual-put": perpetual_put, "american-put": american_put}
EXAMPLES = (*_PRICED, *_FREE)


def example(name: str, price: float | None = None) -> Example:
    """A built-in problem by name.

    Args:
        price: of a unit of waiting, where the problem has one; its own if not given.
    """
    if name in _PRICED:
        return _PRICED[name]() if price is None else _PRICED[name](price)
    if name not in _FREE:
        raise InputError(f"no problem {name!r}; choose from {', '.join(EXAMPLES)}")
    if price is not None:
        raise InputError(f"{name} has no price to set: waiting costs its discount alone")
    return _FREE[name]()
