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
from .gain import GainRule, frugal
from .posterior import expected_losses
from .price import Family, solve_at
from .randomised import RandomisedFit, Start
from .regression import Additive, CrossFit, Ramps
from .rule import Origin, Rule, first_stop

Array = np.ndarray
Candidate = tuple[Array, Callable[[Origin], Rule]]
"""Cross-fitted values (N,), and what builds the rule on the whole fit split."""
_RAMPS, _FOLDS = 8, 5
_SCREENED = 5000
"""Samples on which the feature to threshold is chosen."""


def snell(
    trace: Trace,
    *,
    price: float | None = None,
    budget: float | None = None,
    features: Sequence[str] | None = None,
    seed: int = 0,
) -> Rule:
    """The solved rule: the least mean of loss + price x cost that the observations allow.

    Args:
        trace: the fit split; the rule is to be judged on another.
        price, budget: as in `solve_at`; exactly one.
        features: observations to decide on. If none are named, margin, entropy and streak where the trace has them: the
            others of `observe.FEATURES` say little more, and every feature is time on the clock at each look. All there
            are where it has not, as on a trace without a network.
        seed: of the folds.

    Raises:
        InputError: fewer than 50 samples, or a feature that the trace lacks.
    """
    return solve_at(trace, snell_family(trace, features=features, seed=seed), price=price, budget=budget)


def snell_family(trace: Trace, *, features: Sequence[str] | None = None, seed: int = 0) -> Family:
    """`snell` at any price, the trace made ready once."""
    if len(trace) < 10 * _FOLDS:
        raise InputError(f"{len(trace)} samples are too few to solve on; {10 * _FOLDS} is the least")
    return _Solver(trace, tuple(features or frugal(trace)), seed).at


class _Solver:
    """One trace made ready: folds, bases, Gram matrices."""

    def __init__(self, trace: Trace, features: tuple[str, ...], seed: int) -> None:
        self.trace, self.features = trace, features
        self.losses = expected_losses(trace)
        self.paid = trace.costs.paid()
        self.seen = trace.columns(features)[:, :-1]
        random = np.random.default_rng(seed)
        self.fold = random.permutation(len(trace)) % _FOLDS
        self.sample = random.permutation(len(trace))[:_SCREENED]
        # Row 0 keeps all samples, row 1 + f all but those of fold f.
        self.kept = np.vstack([np.ones(len(trace), dtype=bool), self.fold != np.arange(_FOLDS)[:, None]])
        self.ramps = [Ramps.of(self.seen[:, k], _RAMPS) for k in range(trace.exits - 1)]
        self.fits = [CrossFit(ramps(self.seen[:, k]), self.fold, _FOLDS) for k, ramps in enumerate(self.ramps)]
        self.randomised = RandomisedFit(self.seen, self.fold, _FOLDS, _RAMPS)

    def at(self, price: float) -> Rule:
        """The randomised stopping time, unless another's cross-fitted value is better by more than a standard error.

        The lead is paired, sample by sample. Without the margin, noise would pick among rules that are nearly equal.
        """
        values = self.losses + price * self.paid
        feature, below = self._screened(values)
        score = self.seen[:, :, feature] * np.float32(-1 if below else 1)
        cuts = np.array([common_cut(score[kept], values[kept])[0] for kept in self.kept], dtype=np.float32)
        start = Start(feature, below, -cuts if below else cuts)
        each = np.repeat(cuts[:, None], score.shape[1], axis=1)
        candidates = [
            self._randomised(values, start),
            self._induction(values),
            self._threshold(start, score, values, each),
            self._threshold(start, score, values, self._per_exit(score, values, each)),
        ]
        best = candidates[0]
        for rival in candidates[1:]:
            lead = best[0] - rival[0]
            if lead.mean() > lead.std() / np.sqrt(len(lead)):
                best = rival
        return best[1](Origin.of(self.trace, price))

    def _randomised(self, values: Float[Array, "N K"], start: Start) -> Candidate:
        """The stopping time fitted at all exits at once, and then made deterministic."""
        found = self.randomised.fit(values, start)
        return self._values(values, found.held_out >= 0), lambda origin: GainRule(origin, self.features, found.gains)

    def _induction(self, values: Float[Array, "N K"]) -> Candidate:
        """Backward induction: at each exit regress what stopping would cost above the rule already fitted behind it.

        Each sample is continued by fits that never saw it, so the regressions do not feed on their own errors.
        """
        follows = values[:, -1]
        gains: list[Additive] = []
        for k in reversed(range(len(self.fits))):
            coefficients, gain = self.fits[k].fit(values[:, k] - follows)
            gains.insert(0, Additive.of(self.ramps[k], coefficients))
            follows = np.where(gain <= 0, values[:, k], follows)
        return follows, lambda origin: GainRule(origin, self.features, gains)

    def _screened(self, values: Float[Array, "N K"]) -> tuple[int, bool]:
        """The feature, and its side, that a common threshold does best on."""
        sides = [(f, below) for f in range(len(self.features)) for below in (False, True)]
        seen, worth = self.seen[self.sample], values[self.sample]
        return min(sides, key=lambda side: common_cut(seen[:, :, side[0]] * (-1 if side[1] else 1), worth)[1])

    def _per_exit(self, score: Array, values: Array, start: Float[Array, "G K-1"]) -> Float[Array, "G K-1"]:
        """One threshold an exit, for each row of `kept`."""
        pairs = zip(self.kept, start, strict=True)
        return np.stack([exit_cuts(score[kept], values[kept], cuts) for kept, cuts in pairs])

    def _threshold(self, start: Start, score: Array, values: Array, cuts: Float[Array, "G K-1"]) -> Candidate:
        """Thresholds on the screened feature; row 0 of the cuts is of all samples."""
        build = lambda origin: Threshold(  # noqa: E731 - a candidate is a value and what builds it
            origin, self.features[start.feature], torch.from_numpy(-cuts[0] if start.below else cuts[0]), start.below
        )
        return self._values(values, score >= cuts[1 + self.fold]), build

    @staticmethod
    def _values(values: Float[Array, "N K"], stops: Bool[Array, "N K-1"]) -> Float[Array, " N"]:
        return values[np.arange(len(values)), first_stop(stops)]
