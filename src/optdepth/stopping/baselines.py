"""Thresholds on one feature: the rules in use today, each tuned as well as it can be.

A common threshold is found exactly, over all there are. One threshold per exit is found by coordinate descent on the
same objective, each coordinate exactly; the common threshold is its start, so it is never worse on the fit split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..trace import Trace
from .family import solver
from .rule import Origin, Rule
from .scale import weighed

Array = np.ndarray


class Threshold(Rule):
    """Stops where one feature is at least (or, below=True, at most) the exit's threshold.

    Args:
        thresholds: (K - 1,) one for each exit but the last.
    """

    def __init__(self, origin: Origin, feature: str, thresholds: Tensor, below: bool = False) -> None:
        super().__init__(origin, (feature,))
        if thresholds.shape != (len(origin.costs) - 1,):
            raise InputError(
                f"{tuple(thresholds.shape)} thresholds for {len(origin.costs)} exits; one each but the last"
            )
        if not thresholds.is_floating_point() or thresholds.isnan().any():
            raise InputError(f"thresholds {thresholds.tolist()}: give floating numbers, infinite where none may stop")
        if not isinstance(below, bool):
            raise InputError(f"below={below!r}: give True, to stop at values at most the threshold, or False")
        self.below = below
        self._cuts: tuple[float, ...] = tuple(thresholds.float().tolist())

    @property
    def thresholds(self) -> Float[Tensor, " D"]:
        """One for each exit but the last."""
        return torch.tensor(self._cuts, dtype=torch.float32)

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        score, cut = observation[:, 0], self._cuts[k]
        return score <= cut if self.below else score >= cut

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        return observation[0] <= self._cuts[k] if self.below else observation[0] >= self._cuts[k]

    def score(self, k: int, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        return observation[:, 0] - self._cuts[k] if self.below else self._cuts[k] - observation[:, 0]

    def arguments(self) -> dict[str, Any]:
        return {"feature": self.features[0], "thresholds": self.thresholds, "below": self.below}


@solver
def confidence(trace: Trace, *, per_exit: bool = False) -> Callable[[float], Threshold]:
    """Stops once the most likely class is likely enough (the rule of BranchyNet, MSDNet and CALM); see `tuned`.

    Example:
        >>> rule = od.confidence(fit).within(0.8)
        >>> od.evaluate(rule, test).cost < 0.9
        True
    """
    return tuned(trace, "confidence", per_exit=per_exit).solve


@solver
def entropy(trace: Trace, *, per_exit: bool = False) -> Callable[[float], Threshold]:
    """Stops once the class distribution is sharp enough (the rule of DeeBERT); see `tuned`.

    Example:
        >>> entropy(fit, price=0.05).below
        True
    """
    return tuned(trace, "entropy", below=True, per_exit=per_exit).solve


@solver
def patience(trace: Trace, *, per_exit: bool = False) -> Callable[[float], Threshold]:
    """Stops once enough exits in a row agree (the rule of PABEE); see `tuned`.

    Example:
        >>> od.patience(fit, price=0.05).features
        ('streak',)
    """
    return tuned(trace, "streak", per_exit=per_exit).solve


@solver
def tuned(trace: Trace, feature: str, *, below: bool = False, per_exit: bool = False) -> Callable[[float], Threshold]:
    """The threshold, or thresholds, on one feature with the least mean of loss + price x cost on a trace.

    Args:
        trace: the fit split.
        feature: a column of the trace's observations.
        price, budget: one of them for that rule, neither for the family; see `solver`.
        below: stop at values at most the threshold instead of at least.
        per_exit: one threshold for each exit instead of one for all.

    Raises:
        InputError: the trace lacks the feature.
    """
    score = trace.columns([feature])[:, :-1, 0] * np.float32(-1 if below else 1)
    if trace.costs.horizon is not None:
        score[trace.ended] = -np.inf  # a sample that has ended has nothing to decide

    def at(price: float) -> Threshold:
        values = weighed(trace.losses, trace.costs.paid(), price)
        cuts = np.full(trace.n_exits - 1, common_cut(score, values)[0], dtype=np.float32)
        if per_exit:
            cuts = exit_cuts(score, values, cuts)
        thresholds = torch.from_numpy(-cuts if below else cuts)
        return Threshold(Origin.of(trace, price), feature, thresholds, below)

    return at


def common_cut(score: Float[Array, "N D"], values: Float[Array, "N D+1"]) -> tuple[float, float]:
    """The one cut c with the least mean of values at the first exit where score >= c, and that mean; exact.

    A sample leaves exit k behind when the running maximum of its score is below c, and then its value changes by
    values[k+1] - values[k]: so the mean over all cuts is one cumulative sum in the order of the running maxima. A score
    of -inf never stops; infinity is the cut that stops none.
    """
    highest = np.maximum.accumulate(score, axis=1).ravel()
    change = np.diff(values, axis=1).ravel()
    order = np.argsort(highest, kind="stable")
    levels, first = np.unique(highest[order], return_index=True)
    total = np.concatenate([[0.0], np.cumsum(change[order])])
    never = int(np.isneginf(levels[0]))
    sums = np.append(total[first], total[-1])[never:]
    best = int(sums.argmin())
    return _cut(levels[never:], best), float(values[:, 0].mean() + sums[best] / len(values))


def exit_cuts(
    score: Float[Array, "N D"], values: Float[Array, "N D+1"], start: Float[Array, " D"], sweeps: int = 10
) -> Float[Array, " D"]:
    """One cut per exit by coordinate descent, deepest exit first, each on the samples that reach it."""
    cuts = start.copy()
    for _ in range(sweeps):
        before = cuts.copy()
        stops = score >= cuts
        follows = values[:, -1]
        for k in reversed(range(len(cuts))):
            reached = ~stops[:, :k].any(axis=1)
            if reached.any():
                cuts[k] = _best_cut(score[reached, k], (values[:, k] - follows)[reached])
                stops[:, k] = score[:, k] >= cuts[k]
            follows = np.where(stops[:, k], values[:, k], follows)
        if np.array_equal(cuts, before):
            break
    return cuts


def _best_cut(score: Float[Array, " n"], change: Float[Array, " n"]) -> float:
    """The cut with the least sum of change over the samples with score >= cut; as in `common_cut`."""
    order = np.argsort(-score, kind="stable")
    levels = score[order]
    total = np.cumsum(change[order])
    last_of_level = np.append(levels[1:] != levels[:-1], True) & ~np.isneginf(levels)
    candidates = np.flatnonzero(last_of_level)[::-1]
    sums = np.append(total[candidates], 0.0)
    best = len(sums) - 1 - int(sums[::-1].argmin())
    return _cut(levels[candidates], best)


def _cut(levels: Float[Array, " L"], lowest: int) -> float:
    """The cut that stops scores from the level at `lowest` on, of distinct ones that rise; infinity beyond the last.

    It is halfway to the level below: a score is computed to a few digits more or less with the size of the batch, and
    where a cut is a score of the fit split, that decides. Nothing is known below the least level: the cut is as far
    below it as if the levels went on.
    """
    if lowest == len(levels):
        return float("inf")
    level = float(levels[lowest])
    if lowest > 0:
        below = float(levels[lowest - 1])
    else:
        below = 2 * level - float(levels[1]) if len(levels) > 1 else level - (abs(level) or 1.0)
    cut = float(levels.dtype.type(max((level + below) / 2, float(np.finfo(levels.dtype).min))))
    return cut if cut > below else level  # neighbours in the last digit have nothing between them
