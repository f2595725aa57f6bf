"""min(b - A V, g - V) = 0 at every node, by policy iteration (Howard 1960) on sparse linear systems.

A policy is a set of nodes that stop. Its value solves V = g on them and A V = b on the others; then a node that stops
goes on if that is better (b - A V < 0), and one that goes on stops if that is (V > g). Where A is an M-matrix the
values never rise and the policies end after finitely many steps (Bokanowski, Maroso and Zidani 2009); it is the
primal-dual active set method of Hintermüller, Ito and Kunisch (2003) under another name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.sparse.linalg import splu

Array = np.ndarray

ROUNDING = 1e-12
"""Share of the largest loss by which a choice must be better to be taken: below it is rounding."""


@dataclass(frozen=True, eq=False)
class Complementarity:
    """The solution of one problem.

    Attributes:
        value: (n,).
        stop: (n,) where stopping is better than going on. Where both are worth the same, beyond rounding, this is
            False: far out of the money there is nothing to choose.
        residual: the largest |min((b - A V) / diagonal of A, g - V)|, in units of V; infinite where a system could not
            be solved.
        iterations: linear systems solved.
        settled: whether the policy no longer changes.
    """

    value: Float[Array, " n"]
    stop: Bool[Array, " n"]
    residual: float
    iterations: int
    settled: bool


def policy_iteration(
    a: sp.csr_array, b: Float[Array, " n"], g: Float[Array, " n"], stop: Bool[Array, " n"], *, most: int
) -> Complementarity:
    """Solves min(b - A V, g - V) = 0.

    Args:
        a: (n, n) an M-matrix.
        stop: the policy to begin with; one under which every node ends up stopping.
        most: iterations.
    """
    diagonal = np.where(a.diagonal() > 0, a.diagonal(), 1.0)  # a state that never moves, undiscounted, has none
    tolerance = ROUNDING * max(1.0, float(np.abs(g).max()))
    iteration, settled = 0, False
    value, residual = g.copy(), float("inf")
    while not settled and iteration < most:
        iteration += 1
        found = _policy_value(a, b, g, stop)
        if found is None:
            return Complementarity(value, stop, float("inf"), iteration, settled=False)
        value, gain = found, (b - a @ found) / diagonal
        residual = float(np.abs(np.minimum(gain, g - value)).max())
        better = np.where(stop, gain >= -tolerance, value > g + tolerance)
        settled, stop = np.array_equal(better, stop), better
    return Complementarity(value, stop & (gain > tolerance), residual, iteration, settled)


def linear(a: sp.csr_array, b: Float[Array, " n"]) -> Complementarity:
    """Solves A V = b: the same problem where stopping is not allowed."""
    never = np.zeros(len(b), dtype=bool)
    value = _policy_value(a, b, b, never)
    if value is None:
        return Complementarity(b.copy(), never, float("inf"), 1, settled=False)
    return Complementarity(value, never, float(np.abs((b - a @ value) / a.diagonal()).max()), 1, settled=True)


def _policy_value(a: sp.csr_array, b: Array, g: Array, stop: Array) -> Array | None:
    """V = g where the policy stops, A V = b elsewhere; None where that has no solution."""
    going = np.flatnonzero(~stop)
    value = g.copy()
    if len(going) == 0:
        return value
    rows = a[going]
    right = b[going] - rows @ np.where(stop, g, 0.0)
    try:  # an M-matrix needs no pivoting
        solver = splu(rows[:, going].tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        value[going] = solver.solve(right)
    except RuntimeError:  # singular: from some node nothing ever stops
        return None
    return value if np.isfinite(value).all() else None
