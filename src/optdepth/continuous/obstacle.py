"""The free boundary: an optimal stopping problem in one or two dimensions, solved on a grid (theory, section 8).

The value solves the variational inequality min( V_t + f·∇V + ½ tr(σσᵀ∇²V) - r V + c, g - V ) = 0, with V = g at the
horizon. In space the scheme of `grid.py`, which is monotone. In time, backwards, BDF2 with an implicit Euler step first
(after every date, where stopping is allowed at dates only): L-stable, so the kinks of g do no harm, and never explicit,
so no step is beyond stability. Steps grow linearly away from the horizon, as Forsyth and Vetzal (2002) show that second
order needs: the boundary moves like a square root there. Each step, and the infinite horizon, is a complementarity
problem for `complementarity.py`; the infinite horizon is solved from coarse grids to fine, each starting the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.interpolate import RegularGridInterpolator

from ..errors import InputError
from .complementarity import Complementarity, linear, policy_iteration
from .grid import Grid
from .problem import Coefficients, StoppingProblem, evaluated
from .solution import Solution

Array = np.ndarray


def free_boundary(
    problem: StoppingProblem,
    *,
    box: Sequence[tuple[float, float]],
    nodes: int | Sequence[int],
    steps: int = 200,
    most: int = 200,
) -> Solution:
    """Solves an optimal stopping problem on a grid.

    Args:
        problem: with one or two state dimensions, as many as the box.
        box: (low, high) of each dimension. At its edge the noise across it and any drift out of it are dropped: make
            it so large that this does not matter where the value does.
        nodes: along each axis; one number counts for all. With correlated noise, spacings about in the ratio of the
            standard deviations.
        steps: of time in all, at least two between dates; not used where the horizon is infinite.
        most: iterations of the solver in each step.

    Returns:
        The solution; its `status` says whether the solver converged.

    Raises:
        InputError: a box or a function of the wrong shape; an infinite horizon in which waiting costs nothing, or whose
            functions depend on the time; correlated noise that the spacings do not suit.

    Example:
        >>> decay = od.StoppingProblem(loss=lambda t, x: x[:, 0] ** 2 / 2, drift=lambda t, x: -x, price=0.25)
        >>> solution = od.free_boundary(decay, box=[(-2.0, 2.0)], nodes=401)
        >>> bool(abs(solution.at([0.4])[0] - 0.08) < 1e-3)  # within the boundary, at 0.5: stop at once
        True
    """
    if steps < 2 or most < 1:
        raise InputError(f"steps {steps}, most {most}: at least 2 and 1")
    grid = Grid.of(box, nodes)
    if math.isinf(problem.horizon):
        return _stationary(problem, grid, most)
    return _backwards(problem, grid, steps, most)


def _stationary(problem: StoppingProblem, grid: Grid, most: int) -> Solution:
    """One complementarity problem, its first policy taken from a grid with half the nodes, and so on."""
    at = evaluated(problem, 0.0, grid.points)
    _check_stationary(problem, grid, at)
    stop = np.ones(len(grid.points), dtype=bool)
    spent = 0
    if min(grid.shape) >= 20:
        axes = tuple(np.linspace(axis[0], axis[-1], len(axis) // 2 + 1) for axis in grid.axes)
        coarse = _stationary(problem, Grid(axes), most)
        nearest = RegularGridInterpolator(axes, coarse.stop[0].astype(float), method="nearest")
        stop, spent = nearest(grid.points) > 0.5, coarse.iterations
    a = sp.diags_array(at.discount) - grid.generator(at)
    found = policy_iteration(a.tocsr(), at.price, at.loss, stop, most=most)
    shape = (1, *grid.shape)
    return Solution(
        problem=problem,
        grid=grid,
        times=np.zeros(1),
        residual=found.residual,
        iterations=found.iterations + spent,
        status="converged" if found.settled else "not converged",
        stop=found.stop.reshape(shape),
        gain=(at.loss - found.value).reshape(shape),
        _value=found.value.reshape(shape),
    )


def _check_stationary(problem: StoppingProblem, grid: Grid, at: Coefficients) -> None:
    free = np.flatnonzero((at.price <= 0) & (at.discount <= 0))
    if len(free):
        raise InputError(
            f"price is {at.price[free[0]]:g} and discount 0 at state {grid.points[free[0]]}, and the horizon is "
            "infinite: where waiting costs nothing it may never end; give a price or a discount > 0, or a horizon"
        )
    later = evaluated(problem, 1.0, grid.points)
    for name in ("loss", "drift", "noise", "price", "discount"):
        if not np.array_equal(getattr(at, name), getattr(later, name)):
            raise InputError(f"{name} depends on the time, and the horizon is infinite; give a finite horizon")


@dataclass(frozen=True)
class _Step:
    """One step backwards: to `time`; a new segment begins where `first`; stopping is allowed where `allowed`."""

    time: float
    size: float
    first: bool
    allowed: bool


def _schedule(problem: StoppingProblem, steps: int) -> list[_Step]:
    """The steps from the horizon back to 0: in each segment between dates, sizes that grow linearly."""
    ends = [problem.horizon, 0.0]
    dates = [] if problem.dates is None else [float(date) for date in problem.dates]
    if dates:
        ends = [problem.horizon, *reversed([date for date in dates if 0 < date < problem.horizon]), 0.0]
    each = max(2, round(steps / (len(ends) - 1)))
    plan = []
    for late, early in itertools.pairwise(ends):
        times = late - (late - early) * (np.arange(each + 1) / each) ** 2
        times[-1] = early
        for j in range(each):
            allowed = problem.dates is None or (j == each - 1 and early in dates)
            plan.append(_Step(float(times[j + 1]), float(times[j] - times[j + 1]), j == 0, allowed))
    return plan


def _backwards(problem: StoppingProblem, grid: Grid, steps: int, most: int) -> Solution:
    march = _March(problem, grid, most)
    plan = _schedule(problem, steps)
    slices = [(problem.horizon, march.loss, np.ones(len(grid.points), dtype=bool), np.zeros(len(grid.points)))]
    for step in plan:
        march.go(step)
        slices.append((step.time, march.value, march.stop, march.gain))
        if not march.settled:
            break
    slices.reverse()
    shape = (len(slices), *grid.shape)
    return Solution(
        problem=problem,
        grid=grid,
        times=np.array([time for time, *_ in slices]),
        residual=march.residual,
        iterations=march.iterations,
        status="converged" if march.settled else "not converged",
        stop=np.array([stop for _, _, stop, _ in slices]).reshape(shape),
        gain=np.array([gain for *_, gain in slices]).reshape(shape),
        _value=np.array([value for _, value, _, _ in slices]).reshape(shape),
    )


class _March:
    """The value, step by step backwards from the horizon."""

    def __init__(self, problem: StoppingProblem, grid: Grid, most: int) -> None:
        self.problem, self.grid, self.most = problem, grid, most
        self.at = evaluated(problem, problem.horizon, grid.points)
        self.motion = grid.generator(self.at)
        self.loss = self.value = self.at.loss
        self.stop: Bool[Array, " n"] = np.zeros(len(grid.points), dtype=bool)
        self.gain: Float[Array, " n"] = np.zeros(len(grid.points))
        self.before: tuple[Array, float] | None = None
        self.residual, self.iterations, self.settled = 0.0, 0, True

    def go(self, step: _Step) -> None:
        """One step; `value`, `stop` and `gain` are then those at `step.time`."""
        at = evaluated(self.problem, step.time, self.grid.points)
        if not at.same_motion(self.at):
            self.motion = self.grid.generator(at)
        self.at = at
        rate, history = self._differences(step)
        a = (sp.diags_array(rate + at.discount) - self.motion).tocsr()
        b = history + at.price
        before = self.value
        if self.problem.dates is None:
            self._take(policy_iteration(a, b, at.loss, np.zeros_like(self.stop), most=self.most))
            self.gain = at.loss - self.value
        else:
            self._take(linear(a, b))
            self.gain = at.loss - self.value if step.allowed else np.full_like(self.value, np.inf)
            self.stop = self.gain <= 0
            self.value = np.minimum(self.value, at.loss) if step.allowed else self.value
        self.before = (before, step.size)

    def _differences(self, step: _Step) -> tuple[float, Float[Array, " n"]]:
        """BDF2 on unequal steps as (rate, history): V_t ≈ history - rate V; implicit Euler where a segment begins."""
        if step.first or self.before is None:
            return 1 / step.size, self.value / step.size
        earlier, size = self.before
        ratio = step.size / size
        scale = (1 + ratio) * step.size
        return (1 + 2 * ratio) / scale, ((1 + ratio) ** 2 * self.value - ratio**2 * earlier) / scale

    def _take(self, found: Complementarity) -> None:
        self.value, self.stop = found.value, found.stop
        self.residual = max(self.residual, found.residual)
        self.iterations += found.iterations
        self.settled = self.settled and found.settled
