"""Stop regions: which observation a rule's decisions follow, and from which value on it stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from ..stopping.rule import Rule
from ..trace import Trace

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Decisions:
    """A rule's decisions at one exit, beside one feature.

    Attributes:
        exit: 0-based.
        values: (n,) the feature of the samples that reach the exit.
        stops: (n,) whether each stops there.
    """

    exit: int
    values: Float[Array, " n"]
    stops: Bool[Array, " n"]


@dataclass(frozen=True, eq=False)
class Regions:
    """Where a rule stops, seen through the one feature that its decisions follow most closely.

    Attributes:
        feature: its name.
        rising: whether the rule stops at high values rather than low ones.
        ranked: share of all pairs of a sample that stops and one that goes on at the same exit that the feature puts
            in the right order (the area under the ROC curve); nan where there is no such pair.
        decisions: one for each exit that decides.
    """

    feature: str
    rising: bool
    ranked: float
    decisions: tuple[Decisions, ...]

    @classmethod
    def of(cls, rule: Rule, trace: Trace) -> Regions:
        """The regions of a rule that reads at least one feature, on the samples of a trace."""
        stopped_at = rule.stopped_at(trace)
        deciding = [k for k in range(rule.last) if rule.decides[k]]
        columns = trace.columns(rule.features)

        def decisions(f: int) -> tuple[Decisions, ...]:
            return tuple(
                Decisions(k, columns[stopped_at >= k, k, f], stopped_at[stopped_at >= k] == k) for k in deciding
            )

        seen = [decisions(f) for f in range(len(rule.features))]
        ordered = [_ordered(each) for each in seen]
        best = int(np.argmax([max(share, 1 - share) for share in ordered]))
        share = ordered[best]
        return cls(rule.features[best], share >= 0.5, max(share, 1 - share), seen[best])

    def cut(self, decisions: Decisions) -> float:
        """The value that separates the samples that stop from those that go on with the fewest mistakes.

        The two kinds weigh the same in all, however few one of them is. Infinite where nothing separates them.
        """
        sign = 1.0 if self.rising else -1.0
        stopped = int(decisions.stops.sum())
        if stopped in (0, len(decisions.stops)):
            return float("inf")
        order = np.argsort(-sign * decisions.values, kind="stable")
        score, stops = sign * decisions.values[order], decisions.stops[order]
        weighed = np.where(stops, -1 / stopped, 1 / (len(stops) - stopped))
        between = np.flatnonzero(score[1:] != score[:-1])  # a cut cannot part equal values
        mistakes = np.cumsum(weighed)[between]
        if len(between) == 0 or mistakes.min() >= 0:
            return float("inf")
        m = int(between[mistakes.argmin()])
        return float(sign * (score[m] + score[m + 1]) / 2)


def _ordered(decisions: tuple[Decisions, ...]) -> float:
    """Share of (stops, goes on) pairs at the same exit in which the sample that stops has the higher value."""
    right = pairs = 0.0
    for at in decisions:
        stopped = int(at.stops.sum())
        right += rankdata(at.values)[at.stops].sum() - stopped * (stopped + 1) / 2
        pairs += stopped * (len(at.stops) - stopped)
    return float(right / pairs) if pairs else float("nan")
