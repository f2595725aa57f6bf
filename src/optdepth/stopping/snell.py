"""The Snell envelope from data (theory, section 2): several ways to fit a stopping rule, held against each other.

- A randomised stopping time fitted at all exits at once (`randomised.py`): the best where losses are noisy and samples
  few, as with networks.
- Backward induction (Longstaff and Schwartz 2001), regressing the gain of going on and not the two values apart.
- A threshold common to all exits, and one per exit, on the feature that serves a common one best.

All fit the same losses, without the label's noise where the trace allows it. Cross-validation on the fit split keeps
the first unless another is clearly better: so the solved rule is never worse than a tuned threshold beyond noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..errors import InputError
from ..trace import Trace
from .baselines import Threshold, common_cut, exit_cuts
from .family import solver
from .gain import GainRule, frugal
from .money import InTheMoney
from .posterior import expected_losses
from .randomised import RandomisedFit, Start
from .regression import FOLDS, LEAST, Function, Regression, among, positive, shuffled
from .rule import Origin, Rule, first_stop
from .scale import weighed

Array = np.ndarray
Candidate = tuple[Array, Callable[[Origin], Rule]]
"""Cross-fitted values (N,), and what builds the rule on the whole fit split."""
_RAMPS = 8
_FEW = 5_000
"""Samples that rules of few parameters are fitted on."""


@solver
def snell(trace: Trace, *, features: Sequence[str] | None = None, seed: int = 0) -> Callable[[float], Rule]:
    """The solved rule: the least mean of loss + price x cost that the observations allow.

    Args:
        trace: the fit split; the rule is to be judged on another.
        price, budget: one of them for that rule, neither for the family; see `solver`.
        features: observations to decide on. If none are named, margin, entropy and streak where the trace has them: the
            others say little more, and every feature is time on the clock at each look (`features.frugal_features`).
            All there are where it has not, as on a trace without a network.
        seed: of the folds, and of the random parts of regressions.

    Raises:
        InputError: fewer than 50 samples that do not end at the first exit, or a feature that the trace lacks.

    Example:
        >>> od.snell(fit, price=0.05).origin.price
        0.05
        >>> family = od.snell(fit)  # every price, with the samples that fitted it
    """
    if (deciding := int((~trace.ended[:, 0]).sum())) < LEAST:
        raise InputError(f"{deciding} samples are too few to solve on; {LEAST} is the least")
    return _Solver(trace, tuple(features or frugal(trace)), seed).at


class _Solver:
    """One trace made ready: samples in random order, bases, Gram matrices.

    Rules of few parameters are fitted on few samples. Where there are many more, those judge; where there are not, each
    fold is judged by a fit without it.

    Where a sample has ended by itself it has nothing to decide: stopping is barred there, for it costs as much as going
    on, and no candidate is fitted on it. Where the reward is among the features and is 0, stopping earns nothing. If
    going on is free besides, stopping is barred likewise, and the rule goes on (`InTheMoney`).
    """

    def __init__(self, trace: Trace, features: tuple[str, ...], seed: int) -> None:
        self.trace, self.features, self.seed = shuffled(trace, seed), features, seed
        self.losses = expected_losses(self.trace)
        self.paid = self.trace.costs.paid()
        self.seen = self.trace.columns(features)[:, :-1]
        self.rewarded = trace.reward in features
        self.ended = self.trace.ended
        self.barring = self.rewarded or trace.costs.horizon is not None
        self.worthless = np.zeros(self.seen.shape[:2], dtype=bool)
        if self.rewarded:
            self.worthless = self.seen[:, :, features.index(trace.reward)] <= 0
        self.few = min(len(trace), _FEW)
        folds = FOLDS if len(trace) < 2 * _FEW else 0
        fold = np.arange(self.few) % FOLDS
        # Row 0 keeps all of the few, row 1 + f all but those of fold f.
        self.kept = np.vstack([np.ones(self.few, dtype=bool), fold != np.arange(folds)[:, None]])
        self.judge = np.zeros(len(trace), dtype=int)
        if folds:
            self.judge[: self.few] = 1 + fold
        self.judged = slice(0 if folds else self.few, None)
        self.randomised = RandomisedFit(
            self.seen[: self.few], self.kept, self.judge[: self.few], _RAMPS, self.ended[: self.few]
        )
        self.regressions: dict[tuple[int, int], tuple[Array, Regression | None]] = {}

    def at(self, price: float) -> Rule:
        """The best candidate's rule, with what is known of rewards in front of it."""
        origin, free = Origin.of(self.trace, price), self._free(price)
        rule = self._best(weighed(self.losses, self.paid, price), self.ended | (self.worthless & free))(origin)
        return InTheMoney(origin, rule, self.trace.reward, free.tolist()) if self.rewarded and free.any() else rule

    def _free(self, price: float) -> Bool[Array, " D"]:
        """At which exits going on costs nothing, however far."""
        paid = np.atleast_2d(self.paid)
        dearest_behind = np.maximum.accumulate(paid[:, :0:-1], axis=1)[:, ::-1]
        return np.asarray((dearest_behind <= paid[:, :-1]).all(axis=0)) | (price == 0)

    def _best(self, values: Float[Array, "N K"], barred: Bool[Array, "N D"]) -> Callable[[Origin], Rule]:
        """The randomised stopping time, unless another's cross-fitted value is better by more than a standard error.

        The lead is paired, sample by sample. Without the margin, noise would pick among rules that are nearly equal.
        """
        few = values[: self.few]
        feature, below = self._screened(few, barred)
        score = self._score(feature, below, barred)
        known = score[: self.few]
        cuts = np.array([common_cut(known[kept], few[kept])[0] for kept in self.kept], dtype=np.float32)
        start = Start(feature, below, -cuts if below else cuts)
        each = np.repeat(cuts[:, None], score.shape[1], axis=1)
        apart = np.stack([exit_cuts(known[kept], few[kept], cut) for kept, cut in zip(self.kept, each, strict=True)])
        candidates = [
            self._randomised(values, start, barred),
            self._induction(values, barred),
            self._threshold(start, score, values, each),
            self._threshold(start, score, values, apart),
        ]
        best = candidates[0]
        for rival in candidates[1:]:
            lead = (best[0] - rival[0])[self.judged]
            if lead.mean() > lead.std() / np.sqrt(len(lead)):
                best = rival
        return best[1]

    def _randomised(self, values: Float[Array, "N K"], start: Start, barred: Bool[Array, "N D"]) -> Candidate:
        """The stopping time fitted at all exits at once, and then made deterministic."""
        found = self.randomised.fit(values[: self.few], start, barred[: self.few] if self.barring else None)
        stops = [found.scores >= 0]
        if rest := len(values) - self.few:
            seen = torch.from_numpy(self.seen[-rest:])
            stops.append(np.stack([gain(seen[:, k]).numpy() <= 0 for k, gain in enumerate(found.gains)], axis=1))
        stopped = np.concatenate(stops) & ~barred
        return _values(values, stopped), lambda origin: GainRule(origin, self.features, found.gains)

    def _induction(self, values: Float[Array, "N K"], barred: Bool[Array, "N D"]) -> Candidate:
        """Backward induction: at each exit regress what stopping would cost above the rule already fitted behind it.

        Each sample is continued by fits that never saw it, so the regressions do not feed on their own errors.
        """
        follows = values[:, -1].copy()
        gains: list[Function] = []
        for k in reversed(range(barred.shape[1])):
            rows, regression = self._regression(k, barred[:, k])
            if regression is None:
                gains.insert(0, positive(len(self.features)))
                continue
            stop, on = values[rows, k], follows[rows]
            fit = regression.fit(stop - on)
            gains.insert(0, fit.function())
            follows[rows] = np.where(fit.predicted <= 0, stop, on)
        return follows, lambda origin: GainRule(origin, self.features, gains)

    def _regression(self, k: int, barred: Bool[Array, " N"]) -> tuple[Array, Regression | None]:
        """The samples that may stop at an exit, and the regression on them; None where they are too few for one."""
        key = k, int(barred.sum())  # what bars at an exit is one set of samples, or that and another
        if key not in self.regressions:
            self.regressions[key] = among(self.seen[:, k], ~barred, self.seed)
        return self.regressions[key]

    def _score(self, feature: int, below: bool, barred: Bool[Array, "n D"]) -> Float[Array, "n D"]:
        """A feature turned so that high values stop; -inf, which never does, where stopping is barred."""
        seen = self.seen[: len(barred), :, feature]
        return np.where(barred, np.float32(-np.inf), -seen if below else seen)

    def _screened(self, values: Float[Array, "n K"], barred: Bool[Array, "N D"]) -> tuple[int, bool]:
        """The feature, and its side, that a common threshold does best on."""
        sides = [(f, below) for f in range(len(self.features)) for below in (False, True)]
        barred = barred[: self.few]
        return min(sides, key=lambda side: common_cut(self._score(side[0], side[1], barred), values)[1])

    def _threshold(self, start: Start, score: Array, values: Array, cuts: Float[Array, "G D"]) -> Candidate:
        """Thresholds on the screened feature; row 0 of the cuts is of all of the few samples."""
        build = lambda origin: Threshold(  # noqa: E731 - a candidate is a value and what builds it
            origin, self.features[start.feature], torch.from_numpy(-cuts[0] if start.below else cuts[0]), start.below
        )
        return _values(values, score >= cuts[self.judge]), build


def _values(values: Float[Array, "N K"], stops: Bool[Array, "N D"]) -> Float[Array, " N"]:
    return values[np.arange(len(values)), first_stop(stops)]
