"""Placement: which exits to keep, when looking costs something.

An exit is worth its look only where enough samples stop there. One recorded trace tells: drop exits from it, solve
again, and compare. Backward induction makes that cheap, for what lies behind an exit does not depend on the exits kept
before it: their looks are paid whatever comes. So placements with the same deep exits share the work, and each further
placement costs one regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import InputError
from ..threads import light
from ..trace import Trace
from .family import check_price
from .posterior import expected_losses
from .regression import LEAST, CrossFit, Ramps, shuffled
from .scale import common_exponent, priced, shrunk

Array = np.ndarray
Exits = tuple[int, ...]

_RAMPS = 8
_SAMPLES = 20_000
"""Samples searched on; what differs by less than their noise is no reason to choose."""
_EXHAUSTIVE = 1024
"""Up to so many placements all are tried."""


@dataclass(frozen=True)
class Placement:
    """The exits worth keeping at a price.

    Attributes:
        kept: numbers of those kept, in order; always with the last one.
        value, error: mean of loss + price x cost of the induction's rule on them, cross-fitted, and its standard error.
        every, last: the same with every exit kept, and with the last alone.
        n_exits: how many the trace has.
        tried: placements tried.
        exhaustive: whether those are all there are.
        distance: the best placement is better by no more than this (estimated, two standard errors included); 0 after
            an exhaustive search.
    """

    kept: Exits
    value: float
    error: float
    every: float
    last: float
    n_exits: int
    tried: int
    exhaustive: bool
    distance: float

    def __str__(self) -> str:
        search = (
            f"the best of all {self.tried:,} placements"
            if self.exhaustive
            else f"{self.tried:,} placements tried, the best is better by no more than {self.distance:.4f} (estimated)"
        )
        return (
            f"keep {len(self.kept)} of {self.n_exits} exits: {', '.join(map(str, self.kept))}; loss + price x cost "
            f"{self.value:.4f} ± {self.error:.4f}, with every exit {self.every:.4f}, with the last alone "
            f"{self.last:.4f}; {search}"
        )


def keep(trace: Trace, exits: Sequence[int]) -> Trace:
    """The trace as a network with only these exits would record it: same trunk, no look at the others.

    Features with a history (streak, divergence) still refer to the exit that was before in the full recording. So a
    trace like this is for choosing exits; to serve, keep the exits in the network, record that and solve on it.

    Args:
        exits: at least two, rising.
    """
    if any(b <= a for a, b in pairwise(exits)) or not set(exits) <= set(range(trace.n_exits)):
        raise InputError(f"exits {tuple(exits)} must rise and lie in 0..{trace.n_exits - 1}")
    _check_own(trace)
    kept = list(exits)
    told = trace.disagreement if kept[-1] == trace.n_exits - 1 else None
    return replace(
        trace,
        losses=trace.losses[:, kept],
        observations=trace.observations[:, kept],
        posterior_losses=None if trace.posterior_losses is None else trace.posterior_losses[:, kept],
        disagreement=None if told is None else told[:, kept],
        costs=trace.costs.keep(kept),
    )


@light
def place(trace: Trace, *, price: float, most: int | None = None, seed: int = 0) -> Placement:
    """The exits to keep: the least mean of loss + price x cost, at the trace's costs of trunk, looks and answers.

    All placements are tried where they are few. Otherwise exits are added, dropped or moved to a neighbour, one at a
    time, as long as that helps; how far that can be from the best is told by keeping every exit and paying only for
    the look at the one stopped at, which no placement betters. Decisions and values are cross-fitted. The value is the
    least of many, so it flatters a little: judge the rule solved on the kept exits on samples of its own. See `keep`
    on features with a history.

    Args:
        trace: the fit split.
        price: loss that one unit of cost is worth.
        most: keep at most so many exits, the last included; any number when not given.
        seed: of the folds, and of the samples searched on where the trace has more than 20,000.

    Raises:
        InputError: a negative price; `most` below 1.
    """
    check_price(price)
    _check_own(trace)
    if most is not None and most < 1:
        raise InputError(f"most is {most}; the last exit is always kept, so it is at least 1")
    trace = shuffled(trace, seed)
    if len(trace) > _SAMPLES:
        trace = trace.select(np.arange(_SAMPLES))
    early, limit = trace.n_exits - 1, trace.n_exits if most is None else min(most, trace.n_exits)
    tails = _Tails(trace, price)
    exhaustive = sum(math.comb(early, n) for n in range(limit)) <= _EXHAUSTIVE
    tried = dict(tails.all(limit) if exhaustive else tails.near(limit))
    best = min(tried, key=tried.__getitem__)
    chosen = tails.of(best)
    room = chosen[:, 0] - tails.bound()
    return Placement(
        kept=best,
        value=tails.unit * float(chosen[:, 1].mean()),
        error=tails.unit * _error(chosen[:, 1]),
        every=tails.unit * float(tails.of(range(trace.n_exits))[:, 1].mean()),
        last=tails.unit * float(tails.of((early,))[:, 1].mean()),
        n_exits=trace.n_exits,
        tried=len(tried),
        exhaustive=exhaustive,
        distance=0.0 if exhaustive else tails.unit * (max(0.0, float(room.mean())) + 2 * _error(room)),
    )


def _check_own(trace: Trace) -> None:
    if trace.recall:
        raise InputError("the losses are of answers by recall, whose exits may not be kept; record the trace without")


class _Tails:
    """What samples lose and pay from a kept exit on, under cross-fitted backward induction.

    A tail is (N, 2): column 0 with the losses that rules are fitted on (without label noise where the trace allows it),
    which decides; column 1 with the realised ones, which is reported. The trunk counts in full, looks from the tail's
    first exit on. Everything is counted in `unit`, a power of two that keeps the numbers near 1.
    """

    def __init__(self, trace: Trace, price: float) -> None:
        costs, observations = trace.costs, trace.observations
        losses = np.stack([expected_losses(trace), trace.losses], axis=2)
        once = costs.reach + costs.look + costs.answer
        by = common_exponent(losses, once, price)
        self.unit = math.ldexp(1.0, by) if by < 1024 else math.inf
        self.stop: Float[Array, "N K 2"] = shrunk(losses, by) + priced(once, price, by)[..., None]
        self.look: Float[Array, "*N K"] = priced(costs.look, price, by)
        self.last, self.ended = trace.n_exits - 1, trace.ended
        self.fits = [_fit(observations[:, k], ~self.ended[:, k]) for k in range(self.last)]

    def before(self, k: int, tail: Float[Array, "N 2"]) -> Float[Array, "N 2"]:
        """The tail with exit k in front."""
        return self._lesser(k, tail + self.look[..., k, None])

    def bound(self) -> Float[Array, " N"]:
        """What no placement betters: every exit kept, and passing one costs nothing."""
        tail = self.stop[:, self.last]
        for k in reversed(range(self.last)):
            tail = self._lesser(k, tail)
        return tail[:, 0]

    def _lesser(self, k: int, follows: Float[Array, "N 2"]) -> Float[Array, "N 2"]:
        """Stop or follow, as is foreseen to be less. Who has ended stops; where too few go on, all of them do."""
        rows, fit = self.fits[k]
        stops = self.ended[:, k].copy()
        if fit is not None:
            stops[rows] = fit.fit((self.stop[:, k, 0] - follows[:, 0])[rows]).predicted <= 0
        return np.where(stops[:, None], self.stop[:, k], follows)

    def of(self, exits: Sequence[int]) -> Float[Array, "N 2"]:
        """The tail of a whole placement."""
        tail = self.stop[:, exits[-1]]
        for k in reversed(exits[:-1]):
            tail = self.before(k, tail)
        return tail

    def all(self, most: int) -> Iterator[tuple[Exits, float]]:
        """Every placement of at most so many exits, and its value."""
        held: list[tuple[Exits, Array]] = [((self.last,), self.stop[:, self.last])]
        while held:
            exits, tail = held.pop()
            yield exits, float(tail[:, 0].mean())
            if len(exits) < most:
                held.extend(((k, *exits), self.before(k, tail)) for k in range(exits[0]))

    def near(self, most: int) -> Iterator[tuple[Exits, float]]:
        """The placements that a local search from the last exit alone meets, and their values."""
        best: Exits = (self.last,)
        least = float(self.of(best)[:, 0].mean())
        yield best, least
        while True:
            values = {exits: float(self.of(exits)[:, 0].mean()) for exits in self._neighbours(best, most)}
            yield from values.items()
            nearest = min(values, key=values.__getitem__)
            if values[nearest] >= least:
                return
            best, least = nearest, values[nearest]

    def _neighbours(self, exits: Exits, most: int) -> set[Exits]:
        """One exit more, one less, or one moved to the exit next to it; the last stays."""
        kept, early = set(exits), set(range(self.last))
        moves = [(kept - {k}) | {j} for k in kept & early for j in (k - 1, k + 1) if j in early - kept]
        more = [kept | {k} for k in early - kept] if len(kept) < most else []
        fewer = [kept - {k} for k in kept & early]
        return {tuple(sorted(found)) for found in moves + more + fewer}


def _fit(seen: Float[Array, "N F"], going: Bool[Array, " N"]) -> tuple[Int[Array, " n"], CrossFit | None]:
    """The samples that may go on at an exit, and the regression on them; None where they are too few."""
    rows = np.flatnonzero(going)
    if len(rows) < LEAST:
        return rows, None
    seen = seen[rows]
    return rows, CrossFit(Ramps.of(seen, _RAMPS), seen)


def _error(values: Float[Array, " N"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
