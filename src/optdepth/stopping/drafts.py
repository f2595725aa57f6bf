"""When to stop drafting: a stopping problem whose price is the one at which nothing is left to win (renewal-reward).

A model drafts with its first layers, and verifies with the others. After j passes of the first layers j tokens wait; to
verify them now gives one token, and one more for each draft in front that agrees without a gap. To go on costs a pass
of the first layers and a longer verification, and gives one more token if all drafts agree, the newest among them.
Tokens per time is a ratio of means: the best one is the price of time at which the best rule's tokens are worth just
what they cost (Ross, "Applied Probability Models with Optimization Applications", 1970, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import InputError

CELLS = 8
"""Classes of confidence, each with as many of the recorded drafts."""
_GRID = np.geomspace(1.0, 1e-3, 61)
"""Chances that all drafts so far agree, between which values are interpolated."""
_WORTH = 1.03
"""Drafting must promise so many times the tokens of not drafting: less is within what a measurement is off."""


@dataclass(frozen=True, eq=False)
class DraftTrace:
    """What a lens said along text that the model wrote, token by token.

    Attributes:
        confidence: (N,) probability of the lens's first choice.
        agrees: (N,) chance that the draft is kept: 0 or 1 where the most likely token is written; the overlap of both
            distributions where one is drawn.
        first: (N,) whether the token is the first of its text.
    """

    confidence: Float[np.ndarray, " N"]
    agrees: Float[np.ndarray, " N"]
    first: Bool[np.ndarray, " N"]

    def __post_init__(self) -> None:
        if len(self.confidence) < 2 * CELLS:
            raise InputError(f"{len(self.confidence)} recorded drafts: give texts with {2 * CELLS} or more in all")
        if not len(self.confidence) == len(self.agrees) == len(self.first):
            raise InputError("confidence, agrees and first are of different lengths: give one of each a draft")
        for name in ("confidence", "agrees"):
            found = getattr(self, name)
            if not ((found >= 0) & (found <= 1)).all():
                raise InputError(f"{name} holds {found[~((found >= 0) & (found <= 1))][0]}: give numbers from 0 to 1")

    def cells(self) -> tuple[Float[np.ndarray, " c"], Int[np.ndarray, " N"]]:
        """Where one class of confidence ends and the next begins, and the class of each draft."""
        edges = np.unique(np.quantile(self.confidence, np.arange(1, CELLS) / CELLS))
        return edges, np.searchsorted(edges, self.confidence, side="right")


@dataclass(frozen=True, eq=False)
class DraftCosts:
    """Milliseconds, at one number of sequences.

    Attributes:
        full: a token without drafting.
        draft: a token through the first layers.
        look: the lens.
        verify: (M,) the other layers on 1 to M tokens, never falling.
    """

    full: float
    draft: float
    look: float
    verify: Float[np.ndarray, " M"]

    def share(self, n: int) -> DraftCosts:
        """What falls on each of n sequences."""
        return DraftCosts(self.full / n, self.draft / n, self.look / n, self.verify / n)


@dataclass(frozen=True, eq=False)
class DraftRule:
    """Who goes on drafting, by the chance that all drafts so far agree.

    Attributes:
        edges: (c,) between classes of confidence.
        chance: (c + 1,) that a draft of a class agrees.
        look: (M, c + 2) least chance at which the lens is asked after j + 1 passes, by the class of the draft before;
            the last column where there is none. Above 1: never.
        go: (M, c + 1) least chance, the newest draft included, at which one goes on, by that draft's class.
        rate: tokens per millisecond that this promises; NaN where nothing was solved.
    """

    edges: Float[np.ndarray, " c"]
    chance: Float[np.ndarray, " b"]
    look: Float[np.ndarray, "M all"]
    go: Float[np.ndarray, "M b"]
    rate: float

    @property
    def most(self) -> int:
        """Passes of the first layers, at most."""
        return len(self.look)

    def cells(self, confidence: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The class of each confidence."""
        return np.searchsorted(self.edges, confidence, side="right")

    @classmethod
    def fixed(cls, passes: int) -> DraftRule:
        """Always so many passes of the first layers, whatever the lens says: one fewer drafts."""
        if passes < 1:
            raise InputError(f"{passes} passes of the first layers: give 1 or more")
        on = np.where(np.arange(passes) < passes - 1, 0.0, 2.0)[:, None]
        return cls(np.empty(0), np.ones(1), on.repeat(2, axis=1), on, float("nan"))


@dataclass(frozen=True, eq=False)
class _Law:
    """How confidence moves from draft to draft.

    Attributes:
        edges, chance: as of `DraftRule`.
        follow: (c + 2, c + 1) chance of each class behind a draft of each class that agreed; the last row: at first.
    """

    edges: np.ndarray
    chance: np.ndarray
    follow: np.ndarray

    @classmethod
    def of(cls, trace: DraftTrace) -> _Law:
        edges, cell = trace.cells()
        count = len(edges) + 1
        share = np.bincount(cell, minlength=count) / len(cell)
        chance = np.bincount(cell, trace.agrees, minlength=count) / np.maximum(np.bincount(cell, minlength=count), 1)
        # One draft's weight is spread as all drafts are, so that a class from which few went on has a law.
        follow = np.tile(share, (count + 1, 1))
        inner = ~trace.first[1:]
        np.add.at(follow, (cell[:-1][inner], cell[1:][inner]), trace.agrees[:-1][inner])
        return cls(edges, chance, follow / follow.sum(axis=1, keepdims=True))


def solve_drafts(trace: DraftTrace, costs: DraftCosts) -> DraftRule:
    """The rule with the most tokens per time, for one lens at measured costs.

    What the lens says behind a draft that disagrees is taken to follow the same law as behind one that agrees: it is
    met only in drafts that are lost, and on text that the model did not write.
    """
    law = _Law.of(trace)
    low, high = 0.0, len(costs.verify) / (costs.draft + float(costs.verify[0]))
    for _ in range(40):
        rate = (low + high) / 2
        value, _, _ = _valued(law, costs, rate)
        low, high = (rate, high) if value > 0 else (low, rate)
    _, look, go = _valued(law, costs, low)
    return DraftRule(law.edges, law.chance, look, go, low)


def _valued(law: _Law, costs: DraftCosts, rate: float) -> tuple[float, np.ndarray, np.ndarray]:
    """What one round is worth at this price of time, and from which chance on to look and to go on."""
    passes, count = len(costs.verify), len(law.chance)
    rise = np.diff(costs.verify, append=np.inf) + costs.draft
    look, go = np.full((passes, count + 1), 2.0), np.full((passes, count), 2.0)
    ahead = np.zeros((count + 1, len(_GRID)))  # worth of what may come after pass j + 1, by class before and chance
    for j in range(passes - 2, -1, -1):
        gain = np.empty((count, len(_GRID)))
        for b in range(count):
            chance = _GRID * law.chance[b]
            later = np.interp(chance, _GRID[::-1], ahead[b][::-1])
            net = chance - rate * rise[j] + later
            gain[b] = np.maximum(net, 0)
            go[j, b] = _least(chance, net > 0)
        net = law.follow @ gain - rate * costs.look
        ahead = np.maximum(net, 0)
        look[j] = [_least(_GRID, row > 0) for row in net]
    first = ahead[-1][0]
    return 1 - rate * (costs.draft + float(costs.verify[0])) + float(first), look, go


def _least(chances: np.ndarray, on: np.ndarray) -> float:
    """The least chance at which one goes on: values rise with it."""
    return float(chances[on].min()) if on.any() else 2.0


def drafts_pay(rule: DraftRule, costs: DraftCosts) -> bool:
    """Whether it promises clearly more tokens per time than not to draft."""
    return rule.rate * costs.full > _WORTH


def foreseen_rate(trace: DraftTrace, costs: DraftCosts) -> float:
    """Tokens per millisecond that no rule can exceed on this text: of one that knows ahead which drafts agree.

    It never looks, and cuts the whole text into the rounds that take the least time.

    Args:
        trace: of the most likely token, so that a draft agrees or not.
    """
    count = len(trace.agrees)
    run = np.zeros(count + 1)
    for i in range(count - 1, -1, -1):
        begins = i + 1 == count or trace.first[i + 1]
        run[i] = trace.agrees[i] * (1 + (0 if begins else run[i + 1]))
    passes = np.arange(1, len(costs.verify) + 1)
    spent = passes * costs.draft + costs.verify
    time = np.zeros(count + 1)
    for i in range(count - 1, -1, -1):
        ends = np.minimum(i + np.minimum(run[i] + 1, passes).astype(int), count)
        time[i] = (spent + time[ends]).min()
    return float(count / time[0])
