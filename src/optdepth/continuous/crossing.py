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
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import elementwise
from torch import Tensor

from ..networks.ode import Interval

Score = Callable[[int, Float[Tensor, " n"], Float[Tensor, "n ..."]], Float[Tensor, " n"]]
"""score(k, share, states): of going on, at the given share of interval k; a path stops where it is no longer positive.
Continuous in share and states."""


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
    going = score(0, state.new_zeros(len(state)), state) > 0
    left.put(place[~going], state[~going], state.new_full((int((~going).sum()),), pieces[0].begin), -1, 0)
    state, place = state[going], place[going]
    spent = 0
    for k, piece in enumerate(pieces):
        if len(place) == 0:
            break
        after = piece(state)
        spent += piece.evaluations
        meets = score(k, after.new_ones(len(after)), after) <= 0
        if meets.any():
            path = _Path(piece, state[meets], after[meets])
            share = _meeting(path, score, k)
            time = piece.begin + share * (piece.end - piece.begin)
            left.put(place[meets], path(share), time, k, spent + 2)
            after, place = after[~meets], place[~meets]
        state = after
    left.put(place, state, state.new_full((len(place),), pieces[-1].end), len(pieces), spent)
    return left.gathered()


class _Path:
    """The cubic Hermite path over one interval, through both states and slopes; of fourth order in its length."""

    def __init__(self, piece: Interval, before: Tensor, after: Tensor) -> None:
        length = piece.end - piece.begin
        self.before, self.after = before, after
        self.leaves, self.arrives = (
            length * piece.slope(state, time) for state, time in ((before, piece.begin), (after, piece.end))
        )

    def __call__(self, share: Float[Tensor, " n"], rows: Tensor | slice = slice(None)) -> Float[Tensor, "n ..."]:
        """States at the share of the interval given for each of some rows."""
        s = share.reshape(-1, *[1] * (self.before.dim() - 1))
        drift = self.after[rows] - self.before[rows]
        bend = (1 - s) * (self.leaves[rows] - drift) - s * (self.arrives[rows] - drift)
        return self.before[rows] + s * drift + s * (1 - s) * bend


def _meeting(path: _Path, score: Score, k: int) -> Float[Tensor, " n"]:
    """The share of the interval at which each path meets the boundary, with its gradient."""
    found = _root(path, score, k)
    if not torch.is_grad_enabled():
        return found
    share = found.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(k, share, path(share)).sum(), share)
    at = score(k, found, path(found))
    return found - (at - at.detach()) / slope


@torch.no_grad()
def _root(path: _Path, score: Score, k: int) -> Float[Tensor, " n"]:
    like = path.before

    def at(share: object, row: object) -> object:
        rows = torch.as_tensor(row, device=like.device)
        shares = torch.as_tensor(share, device=like.device).to(like.dtype)
        return score(k, shares, path(shares, rows)).double().cpu().numpy()

    rows = torch.arange(len(like)).numpy()
    found = elementwise.find_root(at, (0.0, 1.0), args=(rows,), tolerances={"xatol": torch.finfo(like.dtype).eps})
    return torch.as_tensor(found.x, device=like.device).to(like.dtype).clamp(0.0, 1.0)


class _Left:
    """The samples that have stopped, in the order in which they did."""

    def __init__(self, start: Tensor) -> None:
        self.device = start.device
        self.places: list[Tensor] = []
        self.states: list[Tensor] = []
        self.times: list[Tensor] = []
        self.intervals: list[Tensor] = []
        self.evaluations: list[Tensor] = []

    def put(self, place: Tensor, state: Tensor, time: Tensor, interval: int, evaluations: int) -> None:
        self.places.append(place)
        self.states.append(state)
        self.times.append(time)
        self.intervals.append(torch.full_like(place, interval))
        self.evaluations.append(torch.full_like(place, evaluations))

    def gathered(self) -> Crossed:
        """All of them in the order of the batch."""
        order = torch.cat(self.places).argsort()
        parts = (self.states, self.times, self.intervals, self.evaluations)
        return Crossed(*(torch.cat(part)[order] for part in parts))
