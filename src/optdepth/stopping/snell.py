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
from .posterior import expected_losses
from .randomised import RandomisedFit, Start
from .regression import FOLDS, Function, Regression, bases, shuffled
from .rule import Origin, Rule, first_stop

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
        InputError: fewer than 50 samples, or a feature that the trace lacks.

    Example:
        >>> od.snell(fit, price=0.05).origin.price
        0.05
        >>> family = od.snell(fit)  # every price, with the samples that fitted it
    """
    if len(trace) < 10 * FOLDS:
        raise InputError(f"{len(trace)} samples are too few to solve on; {10 * FOLDS} is the least")
    return _Solver(trace, tuple(features or frugal(trace)), seed).at


class _Solver:
    """One trace made ready: samples in random order, bases, Gram matrices.

    Rules of few parameters are fitted on few samples. Where there are many more, those judge; where there are not, each
    fold is judged by a fit without it.
    """

    def __init__(self, trace: Trace, features: tuple[str, ...], seed: int) -> None:
        self.trace, self.features = shuffled(trace, seed), features
        self.losses = expected_losses(self.trace)
        self.paid = trace.costs.paid()
        self.seen = self.trace.columns(features)[:, :-1]
        self.few = min(len(trace), _FEW)
        folds = FOLDS if len(trace) < 2 * _FEW else 0
        fold = np.arange(self.few) % FOLDS
        # Row 0 keeps all of the few, row 1 + f all but those of fold f.
        self.kept = np.vstack([np.ones(self.few, dtype=bool), fold != np.arange(folds)[:, None]])
        self.judge = np.zeros(len(trace), dtype=int)
        if folds:
            self.judge[: self.few] = 1 + fold
        self.judged = slice(0 if folds else self.few, None)
        self.randomised = RandomisedFit(self.seen[: self.few], self.kept, self.judge[: self.few], _RAMPS)
        exits = [self.seen[:, k] for k in range(trace.n_exits - 1)]
        self.regressions = [Regression(seen, bases(seen, seed)) for seen in exits]

    def at(self, price: float) -> Rule:
        """The randomised stopping time, unless another's cross-fitted value is better by more than a standard error.

        The lead is paired, sample by sample. Without the margin, noise would pick among rules that are nearly equal.
        """
        values = self.losses + price * self.paid
        few = values[: self.few]
        feature, below = self._screened(few)
        score = self.seen[:, :, feature] * np.float32(-1 if below else 1)
        known = score[: self.few]
        cuts = np.array([common_cut(known[kept], few[kept])[0] for kept in self.kept], dtype=np.float32)
        start = Start(feature, below, -cuts if below else cuts)
        each = np.repeat(cuts[:, None], score.shape[1], axis=1)
        apart = np.stack([exit_cuts(known[kept], few[kept], cut) for kept, cut in zip(self.kept, each, strict=True)])
        candidates = [
            self._randomised(values, start),
            self._induction(values),
            self._threshold(start, score, values, each),
            self._threshold(start, score, values, apart),
        ]
        best = candidates[0]
        for rival in candidates[1:]:
            lead = (best[0] - rival[0])[self.judged]
            if lead.mean() > lead.std() / np.sqrt(len(lead)):
                best = rival
        return best[1](Origin.of(self.trace, price))

    def _randomised(self, values: Float[Array, "N K"], start: Start) -> Candidate:
        """The stopping time fitted at all exits at once, and then made deterministic."""
        found = self.randomised.fit(values[: self.few], start)
        stops = [found.scores >= 0]
        if rest := len(values) - self.few:
            seen = torch.from_numpy(self.seen[-rest:])
            stops.append(np.stack([gain(seen[:, k]).numpy() <= 0 for k, gain in enumerate(found.gains)], axis=1))
        return _values(values, np.concatenate(stops)), lambda origin: GainRule(origin, self.features, found.gains)

    def _induction(self, values: Float[Array, "N K"]) -> Candidate:
        """Backward induction: at each exit regress what stopping would cost above the rule already fitted behind it.

        Each sample is continued by fits that never saw it, so the regressions do not feed on their own errors.
        """
        follows = values[:, -1]
        gains: list[Function] = []
        for k in reversed(range(len(self.regressions))):
            fit = self.regressions[k].fit(values[:, k] - follows)
            gains.insert(0, fit.function())
            follows = np.where(fit.predicted <= 0, values[:, k], follows)
        return follows, lambda origin: GainRule(origin, self.features, gains)

    def _screened(self, values: Float[Array, "n K"]) -> tuple[int, bool]:
        """The feature, and its side, that a common threshold does best on."""
        sides = [(f, below) for f in range(len(self.features)) for below in (False, True)]
        seen = self.seen[: self.few]
        return min(sides, key=lambda side: common_cut(seen[:, :, side[0]] * (-1 if side[1] else 1), values)[1])

    def _threshold(self, start: Start, score: Array, values: Array, cuts: Float[Array, "G K-1"]) -> Candidate:
        """Thresholds on the screened feature; row 0 of the cuts is of all of the few samples."""
        build = lambda origin: Threshold(  # noqa: E731 - a candidate is a value and what builds it
            origin, self.features[start.feature], torch.from_numpy(-cuts[0] if start.below else cuts[0]), start.below
        )
        return _values(values, score >= cuts[self.judge]), build


def _values(values: Float[Array, "N K"], stops: Bool[Array, "N K-1"]) -> Float[Array, " N"]:
    return values[np.arange(len(values)), first_stop(stops)]
