"""A grid on a box, and the generator of a diffusion on it as a sparse matrix.

The scheme is monotone: off the diagonal no entry is negative and rows sum to zero, so that the matrix generates a
Markov chain on the nodes (Kushner and Dupuis 2001, chapter 5) and a linear system with it never oscillates. First
derivatives are central where that is monotone and upwind elsewhere; mixed ones take the seven nodes along the diagonal
of their sign. At the edge of the box the noise across it and any drift out of it are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from ..errors import InputError
from .problem import Coefficients

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Grid:
    """Nodes at equal distances along each axis of a box.

    Attributes:
        axes: one increasing array of coordinates a dimension.
    """

    axes: tuple[Float[Array, " n"], ...]

    @classmethod
    def of(cls, box: Sequence[tuple[float, float]], nodes: int | Sequence[int]) -> Self:
        """A grid on a box.

        Args:
            box: (low, high) of each of one or two dimensions.
            nodes: along each axis; one number counts for both.
        """
        counts = [nodes] * len(box) if isinstance(nodes, int) else list(nodes)
        if len(box) not in (1, 2) or len(counts) != len(box):
            raise InputError(f"box {list(box)} with nodes {nodes}: give (low, high) and a count for 1 or 2 dimensions")
        for low, high in box:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"box side ({low:g}, {high:g}) must be finite with low < high")
        if min(counts) < 5:
            raise InputError(f"nodes {nodes}: at least 5 along each axis")
        return cls(tuple(np.linspace(low, high, count) for (low, high), count in zip(box, counts, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(float(axis[1] - axis[0]) for axis in self.axes)

    @cached_property
    def points(self) -> Float[Array, "n d"]:
        """All nodes, the last axis running fastest."""
        return np.stack([mesh.ravel() for mesh in np.meshgrid(*self.axes, indexing="ij")], axis=1)

    @cached_property
    def index(self) -> Int[Array, "n d"]:
        """Each node's place along each axis."""
        return np.stack(np.unravel_index(np.arange(math.prod(self.shape)), self.shape), axis=1)

    @cached_property
    def edge(self) -> Bool[Array, " n"]:
        """Which nodes are on the edge of the box."""
        return ((self.index == 0) | (self.index == np.array(self.shape) - 1)).any(axis=1)

    def holds(self, points: Float[Array, "n d"]) -> Bool[Array, " n"]:
        """Whether each point is in the box."""
        low, high = np.array([axis[0] for axis in self.axes]), np.array([axis[-1] for axis in self.axes])
        return np.asarray(((points >= low) & (points <= high)).all(axis=1))

    def generator(self, at: Coefficients) -> sp.csr_array:
        """L with (L V)(x) ≈ f·∇V + ½ tr(σσᵀ ∇²V), (n, n).

        Raises:
            InputError: noise so correlated, on axes so unequally spaced, that seven nodes give no monotone scheme.
        """
        moves = _Moves(self)
        mixed = self._mixed(at, moves) if len(self.axes) == 2 else np.zeros(len(self.points))
        for i, h in enumerate(self.spacing):
            place, last = self.index[:, i], self.shape[i] - 1
            inside = (place > 0) & (place < last)
            noise = np.where(inside, at.covariance[:, i, i] / (2 * h * h), 0.0) - np.abs(mixed)
            if noise.min() < -1e-9 * max(1.0, np.abs(noise).max()):
                self._refuse(at, int(noise.argmin()))
            noise = np.maximum(noise, 0.0)
            drift = at.drift[:, i] / h
            central = np.abs(drift) / 2 <= noise
            up = noise + np.where(central, drift / 2, np.maximum(drift, 0.0))
            down = noise + np.where(central, -drift / 2, np.maximum(-drift, 0.0))
            step = np.eye(len(self.axes), dtype=int)[i]
            moves.add(step, np.where(place < last, up, 0.0))
            moves.add(-step, np.where(place > 0, down, 0.0))
        return moves.matrix()

    def _mixed(self, at: Coefficients, moves: _Moves) -> Float[Array, " n"]:
        """Adds the moves along the diagonals; returns what they take from each move along an axis."""
        weight = np.where(self.edge, 0.0, at.covariance[:, 0, 1] / (2 * math.prod(self.spacing)))
        for sign in (1, -1):
            along = np.maximum(sign * weight, 0.0)
            moves.add(np.array([1, sign]), along)
            moves.add(np.array([-1, -sign]), along)
        return weight

    def _refuse(self, at: Coefficients, node: int) -> None:
        first, second = np.sqrt(at.covariance[node, 0, 0]), np.sqrt(at.covariance[node, 1, 1])
        raise InputError(
            f"spacings {self.spacing[0]:.3g} and {self.spacing[1]:.3g} give no monotone scheme for the correlated "
            f"noise at {self.points[node]}; choose nodes so that their ratio is near {first:.3g} : {second:.3g}"
        )


class _Moves:
    """Rates of the moves from node to node, collected into a sparse matrix."""

    def __init__(self, grid: Grid) -> None:
        self.strides = np.array([math.prod(grid.shape[i + 1 :]) for i in range(len(grid.shape))])
        self.nodes = math.prod(grid.shape)
        self.rates: dict[int, Array] = {}

    def add(self, step: Int[Array, " d"], rate: Float[Array, " n"]) -> None:
        offset = int(step @ self.strides)
        self.rates[offset] = self.rates.get(offset, 0.0) + rate

    def matrix(self) -> sp.csr_array:
        """Rows sum to zero."""
        here = np.arange(self.nodes)
        rows, columns, rates = [here], [here], [-sum(self.rates.values())]
        for offset, rate in self.rates.items():
            kept = np.flatnonzero(rate)
            rows.append(kept)
            columns.append(kept + offset)
            rates.append(rate[kept])
        entries = (np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns)))
        return sp.csr_array(entries, shape=(self.nodes, self.nodes))
