"""Sample paths that stop at the free boundary: what the solution is worth when it is used, and something to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ..errors import InputError
from .problem import evaluated
from .solution import Solution

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Paths:
    """Simulated paths under a solution's stopping rule.

    Attributes:
        times: (S,) from 0 on.
        states: (S, n, d); a path that has stopped stays where it did.
        stopped: (n,) when each stopped; infinite for a path still going at the last time.
        losses: (n,) what each path cost, discounted to time 0; one still going is charged the value of where it is.
        held: share of the paths that were held at the edge of the box, as the scheme holds them.
    """

    times: Float[Array, " S"]
    states: Float[Array, "S n d"]
    stopped: Float[Array, " n"]
    losses: Float[Array, " n"]
    held: float

    def __str__(self) -> str:
        error = self.losses.std(ddof=1) / np.sqrt(len(self.losses)) if len(self.losses) > 1 else float("inf")
        said = f"mean loss {self.losses.mean():.5g} ± {error:.1g} over {len(self.losses):,} paths"
        if going := np.isinf(self.stopped).mean():
            said += f", {going:.1%} of them still going at time {self.times[-1]:g}"
        return said + (f", {self.held:.1%} held at the edge of the box" if self.held else "")


def sample_paths(
    solution: Solution, start: ArrayLike, *, samples: int, seed: int, steps: int = 1000, until: float | None = None
) -> Paths:
    """Simulates paths (Euler and Maruyama) that stop where the solution says.

    Args:
        start: (d,) state at time 0.
        steps: of time, at equal distances; dates are added to them.
        until: when to end; the horizon if not given, needed where that is infinite.

    Raises:
        InputError: a start that the grid does not hold, no end, or a solution that did not converge.
    """
    problem = solution.problem
    end = problem.horizon if until is None else until
    if not (0 < end < np.inf and end <= problem.horizon):
        raise InputError(f"until is {end:g}; give a finite time > 0, at most the horizon {problem.horizon:g}")
    begin = np.asarray(start, dtype=np.float64)
    if begin.shape != (len(solution.grid.axes),):
        raise InputError(
            f"start {begin.tolist()}: give {len(solution.grid.axes)}, a coordinate for each axis of the box"
        )
    if samples < 1 or steps < 1:
        raise InputError(f"samples {samples}, steps {steps}: at least 1 each")
    dates = [] if problem.dates is None else [date for date in problem.dates if date <= end]
    times = np.unique(np.concatenate([np.linspace(0.0, end, steps + 1), dates]))
    allowed = np.full(len(times), True) if problem.dates is None else np.isin(times, dates)
    random = np.random.default_rng(seed)
    walk = _Walk(solution, np.repeat(solution.grid_points(begin[None]), samples, axis=0))
    states = [walk.state]
    for k, time in enumerate(times):
        if allowed[k] or time == problem.horizon:
            walk.stop(float(time))
        if k + 1 < len(times):
            walk.move(float(time), float(times[k + 1] - time), random)
            states.append(walk.state)
    walk.charge(float(times[-1]))
    return Paths(times, np.array(states), walk.stopped, walk.losses, float(walk.held.mean()))


class _Walk:
    """Where the paths are, which have stopped, and what they have cost so far."""

    def __init__(self, solution: Solution, state: Float[Array, "n d"]) -> None:
        self.solution, self.state = solution, state
        self.stopped = np.full(len(state), np.inf)
        self.losses, self.discount = np.zeros(len(state)), np.ones(len(state))
        self.held = np.zeros(len(state), dtype=bool)

    def stop(self, time: float) -> None:
        """Stops the paths for which the solution says so."""
        going = np.flatnonzero(np.isinf(self.stopped))
        if len(going) == 0:
            return
        here = self.state[going]
        last = time == self.solution.problem.horizon
        leaving = going if last else going[self.solution.gain_at(here, time) <= 0]
        loss = evaluated(self.solution.problem, time, self.state[leaving]).loss if len(leaving) else 0.0
        self.losses[leaving] += self.discount[leaving] * loss
        self.stopped[leaving] = time

    def move(self, time: float, step: float, random: np.random.Generator) -> None:
        """One step of the paths still going; those that would leave the box are held at its edge."""
        going = np.flatnonzero(np.isinf(self.stopped))
        self.state = self.state.copy()
        if len(going) == 0:
            return
        at = evaluated(self.solution.problem, time, self.state[going])
        shocks = random.standard_normal((len(going), at.noise.shape[2])) * np.sqrt(step)
        moved = self.state[going] + at.drift * step + np.einsum("ndm,nm->nd", at.noise, shocks)
        low, high = (np.array([axis[end] for axis in self.solution.grid.axes]) for end in (0, -1))
        self.state[going] = np.clip(moved, low, high)
        self.held[going] |= (self.state[going] != moved).any(axis=1)
        self.losses[going] += self.discount[going] * at.price * step
        self.discount[going] *= np.exp(-at.discount * step)

    def charge(self, time: float) -> None:
        """What lies ahead of the paths still going."""
        going = np.flatnonzero(np.isinf(self.stopped))
        if len(going):
            self.losses[going] += self.discount[going] * self.solution.at(self.state[going], time)
