"""What `free_boundary` found: value, free boundary, how well the inequality holds, and whether the solver converged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from contourpy import contour_generator
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.interpolate import RegularGridInterpolator

from ..errors import InputError
from .grid import Grid
from .problem import StoppingProblem

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved stopping problem, on nodes of shape (n1,) or (n1, n2), at M times (M = 1 for an infinite horizon).

    Attributes:
        times: (M,) increasing, from 0 to the horizon.
        stop: (M, n1[, n2]) where stopping is optimal.
        gain: (M, n1[, n2]) of going on, in units of loss: g - V; where stopping is allowed at dates only, g minus the
            value of going on, negative where stopping is better, and infinite between dates.
        residual: the largest violation of the discrete inequality at any node and time, in units of loss.
        iterations: linear systems solved.
        status: whether there is a value.
    """

    problem: StoppingProblem
    grid: Grid
    times: Float[Array, " M"]
    stop: Bool[Array, " M *nodes"]
    gain: Float[Array, " M *nodes"]
    residual: float
    iterations: int
    status: Literal["converged", "not converged"]
    _value: Float[Array, " M *nodes"]

    @property
    def value(self) -> Float[Array, " M *nodes"]:
        """V at every time and node.

        Raises:
            InputError: the solver did not converge, so there is none.
        """
        if self.status != "converged":
            raise InputError(str(self))
        return self._value

    def at(self, points: ArrayLike, time: float = 0.0) -> Float[Array, " m"]:
        """V at points (m, d) (or (m,) in one dimension) at one time, linear between nodes.

        Raises:
            InputError: a point that the grid does not hold, or a time outside [0, horizon].
        """
        places = self.grid_points(points)
        return self._slice(self.value, time)(places)

    def gain_at(self, points: ArrayLike, time: float = 0.0) -> Float[Array, " m"]:
        """The signed `level` at points, linear between nodes: stopping is optimal where it is not positive."""
        self._check_converged()
        return self._slice(self.level, time)(self.grid_points(points))

    def grid_points(self, points: ArrayLike) -> Float[Array, "m d"]:
        """Points as (m, d), all of which the grid holds."""
        places = np.asarray(points, dtype=np.float64)
        if places.ndim == 1 and len(self.grid.axes) == 1:
            places = places[:, None]
        if places.ndim != 2 or places.shape[1] != len(self.grid.axes):
            raise InputError(f"points of shape {places.shape}; give (m, {len(self.grid.axes)}), a coordinate an axis")
        outside = np.flatnonzero(~self.grid.holds(places))
        if len(outside):
            sides = " x ".join(f"[{axis[0]:g}, {axis[-1]:g}]" for axis in self.grid.axes)
            raise InputError(f"the grid on {sides} does not hold {places[outside[0]]}; solve again on a larger box")
        return places

    @cached_property
    def level(self) -> Float[Array, " M *nodes"]:
        """Positive where going on is optimal, not positive where stopping is, with the free boundary at zero.

        Where any time may be the last, the gain touches zero like a parabola (smooth fit), so its root is taken, which
        is a straight line there, and that line is continued into the nodes that stop.
        """
        if np.isfinite(self.problem.horizon) and self.problem.dates is not None:
            return np.minimum(self.gain, 1e300)
        smallest = np.finfo(np.float64).tiny  # where there is nothing to choose, there is no boundary either
        root = np.where(self.stop, 0.0, np.sqrt(np.maximum(self.gain, smallest)))
        return np.where(self.stop, _continued(root, self.stop), root)

    def boundary(self, time: float = 0.0) -> tuple[Float[Array, "m d"], ...]:
        """The free boundary at one of the solution's times: curves of points (m, d); in one dimension single points."""
        self._check_converged()
        level = self.level[self._nearest(time)]
        if len(self.grid.axes) == 1:
            return tuple(np.array([[place]]) for place in _crossings(self.grid.axes[0], level))
        x, y = self.grid.axes
        return _zero_lines(x, y, level)

    def curve(self) -> tuple[Float[Array, "m 2"], ...]:
        """In one dimension with a finite horizon: the free boundary as curves of (time, place)."""
        self._check_converged()
        if len(self.grid.axes) != 1 or len(self.times) == 1:
            raise InputError("curve() is for one dimension and a finite horizon; boundary(time) is for the others")
        allowed = np.isfinite(self.gain).all(axis=1)
        # At the horizon everything stops; the curve is of the times before it.
        kept = np.flatnonzero(allowed & (self.times < self.problem.horizon))
        if len(kept) < 2:
            return ()
        return _zero_lines(self.times[kept], self.grid.axes[0], self.level[kept])

    def __str__(self) -> str:
        size = " x ".join(map(str, self.grid.shape))
        over = f" and {len(self.times):,} times" if len(self.times) > 1 else ""
        spent = f"on {size} nodes{over}, {self.iterations:,} linear systems"
        if self.status == "not converged":
            return (
                f"not converged {spent}: the inequality is violated by {self.residual:.2g}, so there is no value; "
                "allow more iterations, or make sure that from every state stopping is reached"
            )
        share = self.stop[0].mean()
        return (
            f"converged {spent}: the inequality holds to {self.residual:.2g}; {share:.0%} of the nodes stop at time 0"
        )

    def _check_converged(self) -> None:
        _ = self.value

    def _nearest(self, time: float) -> int:
        if not 0 <= time <= max(self.times[-1], 0.0) and len(self.times) > 1:
            raise InputError(f"time {time:g} is outside [0, {self.times[-1]:g}]")
        return int(np.abs(self.times - time).argmin())

    def _slice(self, values: Array, time: float) -> Any:
        """Interpolates a field in space, at one time; linear between times."""
        if len(self.times) == 1:
            return RegularGridInterpolator(self.grid.axes, values[0])
        self._nearest(time)
        after = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1))
        share = (time - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return RegularGridInterpolator(self.grid.axes, (1 - share) * values[after - 1] + share * values[after])


def _continued(root: Array, stop: Array) -> Array:
    """Beyond the edge of the nodes that go on, the straight line through the last two of them; far from it -1 times the
    largest root. Axis 0 is time."""
    total, count = np.zeros_like(root), np.zeros_like(root)
    for axis in range(1, root.ndim):
        for direction in (1, -1):
            near, next_ = _shifted(root, axis, direction), _shifted(root, axis, 2 * direction)
            goes = ~_shifted(stop, axis, direction, True) & ~_shifted(stop, axis, 2 * direction, True) & stop
            line = np.minimum(2 * near - next_, -1e-3 * near)
            total += np.where(goes, line, 0.0)
            count += goes
            alone = ~_shifted(stop, axis, direction, True) & _shifted(stop, axis, 2 * direction, True) & stop
            total -= np.where(alone, near, 0.0)
            count += alone
    return np.where(count > 0, total / np.maximum(count, 1), -float(root.max() or 1.0))


def _shifted(field: Array, axis: int, by: int, beyond: float | bool = 0) -> Array:
    """field at the node `by` places further along an axis; `beyond` outside the grid."""
    moved = np.full_like(field, beyond)
    here = [slice(None)] * field.ndim
    there = [slice(None)] * field.ndim
    here[axis] = slice(None, -by) if by > 0 else slice(-by, None)
    there[axis] = slice(by, None) if by > 0 else slice(None, by)
    moved[tuple(here)] = field[tuple(there)]
    return moved


def _zero_lines(x: Array, y: Array, level: Float[Array, "x y"]) -> tuple[Float[Array, "m 2"], ...]:
    """The curves on which a level over the plane is zero."""
    lines: Any = contour_generator(x, y, level.T).lines(0.0)
    return tuple(lines)


def _crossings(axis: Array, level: Array) -> list[float]:
    """Where a level changes sign along an axis."""
    going = level > 0
    at = np.flatnonzero(going[1:] != going[:-1])
    share = level[at] / (level[at] - level[at + 1])
    return list(axis[at] + share * (axis[at + 1] - axis[at]))
