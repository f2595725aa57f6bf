"""When each path meets a boundary: every sample of a batch at its own time, and differentiably.

A flow is followed from grid time to grid time. The samples whose score is no longer positive at the end of an interval
have met the boundary inside it; the moment is found between the two grid times by root finding (Chandrupatla 1997,
through SciPy) on the cubic Hermite path through both states and slopes, and those samples leave the batch. In
`torchdiffeq.odeint_event` the first event of any sample ends the integration of all.

The crossing time τ solves s(τ, x(τ)) = 0, so by the implicit function theorem dτ = -ds / (ds/dt) with ds at fixed τ:
that is the gradient that `time` carries, and through x(τ) the state's. A sample that stops at the first time, or only
because time ends, has a time that does not move. Where a path only grazes the boundary the gradient does not exist, and
it grows without bound on the way there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import elementwise
from torch import Tensor

from ..networks.ode import Interval

Score = Callable[[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n ..."]], Float[Tensor, " n"]]
"""score(k, share, states): of going on, for each sample at a share of its interval k; a path stops where it is no
longer positive. Continuous in share and states."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """Where and when the paths stopped.

    Attributes:
        state: (n, ...) at that time.
        time: (n,) of stopping.
        interval: (n,) the interval in which each stopped, 0-based; -1 for one that stopped at the first time, and the
            number of intervals for one that the end of time stopped.
        evaluations: (n,) of the field, for each sample.
    """

    state: Float[Tensor, "n ..."]
    time: Float[Tensor, " n"]
    interval: Int[Tensor, " n"]
    evaluations: Int[Tensor, " n"]


def crossed(pieces: Sequence[Interval], start: Float[Tensor, "n ..."], score: Score) -> Crossed:
    """Follows every path until it meets the boundary, or until the last time.

    Args:
        pieces: the intervals of the flow, in order.
        start: states at the first time.
        score: what decides.
    """
    left = _Left(start)
    state, place = start, torch.arange(len(start), device=start.device)
    going = score(torch.zeros_like(place), state.new_zeros(len(state)), state) > 0
    left.put(place[~going], state[~going], pieces[0].begin, -1, 0)
    state, place = state[going], place[going]
    spent, paths = 0, []
    for k, piece in enumerate(pieces):
        if len(place) == 0:
            break
        after = piece(state)
        spent += piece.evaluations
        meets = score(torch.full_like(place, k), after.new_ones(len(after)), after) <= 0
        if meets.any():
            paths.append(_Path.over(piece, k, place[meets], state[meets], after[meets]))
            left.spend(place[meets], spent + 2)
            after, place = after[~meets], place[~meets]
        state = after
    left.put(place, state, pieces[-1].end, len(pieces), spent)
    if paths:  # all at once: a search in each interval would take as many times as long
        path = _Path.joined(paths)
        share = _meeting(path, score)
        left.meet(path.place, path(share), path.begin + share * path.length, path.interval)
    return left.gathered()


@dataclass(frozen=True, eq=False)
class _Path:
    """Cubic Hermite paths, each over one interval, through both states and slopes; of fourth order in its length."""

    place: Int[Tensor, " n"]
    interval: Int[Tensor, " n"]
    begin: Float[Tensor, " n"]
    length: Float[Tensor, " n"]
    before: Float[Tensor, "n ..."]
    drift: Float[Tensor, "n ..."]
    leaves: Float[Tensor, "n ..."]
    arrives: Float[Tensor, "n ..."]

    @classmethod
    def over(cls, piece: Interval, k: int, place: Tensor, before: Tensor, after: Tensor) -> Self:
        length, drift, each = piece.end - piece.begin, after - before, before.new_ones(len(before))
        bends = (length * piece.slope(at, time) - drift for at, time in ((before, piece.begin), (after, piece.end)))
        return cls(place, torch.full_like(place, k), piece.begin * each, length * each, before, drift, *bends)

    @classmethod
    def joined(cls, paths: Sequence[_Path]) -> Self:
        return cls(*(torch.cat([getattr(path, name.name) for path in paths]) for name in fields(cls)))

    def __call__(self, share: Float[Tensor, " n"], rows: Tensor | slice = slice(None)) -> Float[Tensor, "n ..."]:
        """States at the share of the interval given for each of some rows."""
        s = share.reshape(-1, *[1] * (self.before.dim() - 1))
        bend = (1 - s) * self.leaves[rows] - s * self.arrives[rows]
        return self.before[rows] + s * (self.drift[rows] + (1 - s) * bend)


def _meeting(path: _Path, score: Score) -> Float[Tensor, " n"]:
    """The share of its interval at which each path meets the boundary, with its gradient."""
    found = _root(path, score)
    if not torch.is_grad_enabled():
        return found
    share = found.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(path.interval, share, path(share)).sum(), share)
    at = score(path.interval, found, path(found))
    return found - (at - at.detach()) / slope


@torch.no_grad()
def _root(path: _Path, score: Score) -> Float[Tensor, " n"]:
    like = path.before

    def at(share: np.ndarray, row: np.ndarray) -> np.ndarray:
        rows = torch.as_tensor(row, device=like.device)
        shares = torch.as_tensor(share, device=like.device).to(like.dtype)
        return score(path.interval[rows], shares, path(shares, rows)).double().cpu().numpy()

    tolerance = torch.finfo(like.dtype).eps ** 0.75  # closer, and rounding in the score would have the last word
    rows = np.arange(len(like))
    found = elementwise.find_root(at, (0.0, 1.0), args=(rows,), tolerances={"xatol": tolerance, "xrtol": 0.0})
    # A score of zero but for rounding may change its sign from one batch to the next: then the end is the place.
    ends = np.where(found.f_bracket[0] <= 0, 0.0, 1.0)
    return torch.as_tensor(np.where(found.success, found.x, ends), device=like.device).to(like.dtype)


class _Left:
    """The samples that have stopped, in the order in which they did."""

    def __init__(self, start: Tensor) -> None:
        self.places: list[Tensor] = []
        self.states: list[Tensor] = []
        self.times: list[Tensor] = []
        self.intervals: list[Tensor] = []
        self.evaluations = torch.zeros(len(start), dtype=torch.int64, device=start.device)

    def put(self, place: Tensor, state: Tensor, time: float, interval: int, evaluations: int) -> None:
        """Samples that stop at a grid time."""
        self.spend(place, evaluations)
        self.meet(place, state, state.new_full((len(place),), time), torch.full_like(place, interval))

    def spend(self, place: Tensor, evaluations: int) -> None:
        self.evaluations[place] = evaluations

    def meet(self, place: Tensor, state: Tensor, time: Tensor, interval: Tensor) -> None:
        self.places.append(place)
        self.states.append(state)
        self.times.append(time)
        self.intervals.append(interval)

    def gathered(self) -> Crossed:
        """All of them in the order of the batch."""
        order = torch.cat(self.places).argsort()
        state, time, interval = (torch.cat(part)[order] for part in (self.states, self.times, self.intervals))
        return Crossed(state, time, interval, self.evaluations)
