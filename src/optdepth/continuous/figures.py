"""Pictures of a solution: its value, its free boundary, and paths that stop there."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..palette import BLUE, INK, ORANGE, SKY, STYLE
from .paths import Paths
from .solution import Solution

_SHOWN = 12
"""Paths drawn; more hide each other."""


def draw(solution: Solution, paths: Paths | None = None, *, state: str = "state") -> Figure:
    """In one dimension the value at time 0, and the boundary over time; in two, both in the plane.

    Args:
        paths: that stop at the boundary, to draw as well.
        state: what the state is called on the axes.

    Raises:
        InputError: the solver did not converge, so there is no value to draw.
    """
    with matplotlib.rc_context(STYLE):
        if len(solution.grid.axes) == 2:
            figure = Figure(figsize=(5.6, 4.6), layout="constrained")
            _draw_plane(figure.subplots(), solution, paths, state)
            return figure
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        value, places = figure.subplots(1, 2)
        _draw_value(value, solution, state)
        _draw_boundary(places, solution, paths, state)
        return figure


def _draw_value(axes: Any, solution: Solution, state: str) -> None:
    x = solution.grid.axes[0]
    problem = solution.problem
    axes.plot(x, np.asarray(problem.loss(0.0, x[:, None])), color=ORANGE, ls="--", label="loss of stopping, g")
    axes.plot(x, solution.value[0], color=BLUE, lw=1.8, label="value, V")
    _shade(axes.axvspan, x, solution.stop[0])
    for curve in solution.boundary(0.0):
        axes.axvline(curve[0, 0], color=INK, lw=1)
    axes.set_xlabel(state)
    axes.set_ylabel("loss")
    axes.set_title("value at time 0; stopping is optimal where shaded")
    axes.legend()


def _draw_boundary(axes: Any, solution: Solution, paths: Paths | None, state: str) -> None:
    x, times = solution.grid.axes[0], solution.times
    infinite = len(times) == 1
    if infinite:
        _shade(axes.axhspan, x, solution.stop[0])
        for curve in solution.boundary(0.0):
            axes.axhline(curve[0, 0], color=INK, lw=1.2)
    elif solution.problem.dates is None:
        axes.contourf(times, x, (solution.level <= 0).T, levels=[0.5, 1.5], colors=[SKY], alpha=0.25)
        for line in solution.curve():
            axes.plot(line[:, 0], line[:, 1], color=INK, lw=1.2)
    else:
        for date in solution.problem.dates:
            for curve in solution.boundary(float(date)):
                axes.plot(date, curve[0, 0], color=INK, marker="_", ms=5)
    if paths is not None:
        _draw_paths_over_time(axes, paths)
    axes.set_ylim(x[0], x[-1])
    axes.set_xlabel("time")
    axes.set_ylabel(state)
    axes.set_title("free boundary" + ("" if paths is None else ", and paths that stop there"))


def _draw_paths_over_time(axes: Any, paths: Paths) -> None:
    for i in range(min(_SHOWN, len(paths.stopped))):
        alive = paths.times <= paths.stopped[i]
        axes.plot(paths.times[alive], paths.states[alive, i, 0], color=BLUE, lw=0.7, alpha=0.8)
        if np.isfinite(paths.stopped[i]):
            axes.plot(paths.stopped[i], paths.states[-1, i, 0], color=ORANGE, marker="o", ms=4, ls="")


def _draw_plane(axes: Any, solution: Solution, paths: Paths | None, state: str) -> None:
    x, y = solution.grid.axes
    filled = axes.contourf(x, y, solution.value[0].T, levels=20, cmap="Blues")
    axes.figure.colorbar(filled, ax=axes, label="value, V, at time 0")
    for curve in solution.boundary(0.0):
        axes.plot(curve[:, 0], curve[:, 1], color=INK, lw=1.5)
    if paths is not None:
        for i in range(min(_SHOWN, len(paths.stopped))):
            axes.plot(paths.states[:, i, 0], paths.states[:, i, 1], color=ORANGE, lw=0.8)
            if np.isfinite(paths.stopped[i]):
                axes.plot(*paths.states[-1, i], color=ORANGE, marker="o", ms=4)
    axes.set_xlabel(f"first {state}")
    axes.set_ylabel(f"second {state}")
    axes.set_title("value and free boundary" + ("" if paths is None else ", and paths that stop there"))


def _shade(span: Any, x: np.ndarray, stop: np.ndarray) -> None:
    """Marks the nodes that stop, piece by piece."""
    half = (x[1] - x[0]) / 2
    ends = np.flatnonzero(np.diff(np.concatenate([[False], stop, [False]]).astype(int)))
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        span(x[first] - half, x[last - 1] + half, color=SKY, alpha=0.25, lw=0)
