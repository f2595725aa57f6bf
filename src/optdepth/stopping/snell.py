"""The Snell envelope from data (theory, section 2): backward induction, cross-fitted, held against thresholds.

Longstaff and Schwartz (2001) with three changes: what is regressed is the gain of going on, not the two values apart;
the losses carry no label noise where the trace allows it; and the solution competes, by cross-validation on the fit
split, with thresholds tuned on the same losses, so that it is never worse than those beyond noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from ..errors import InputError
from ..trace import Trace
from .baselines import Threshold, common_cut, exit_cuts
from .gain import GainRule
from .posterior import expected_losses
from .price import Family, solve_at
from .randomised import RandomisedFit
from .regression import Additive, CrossFit, Ramps
from .rule import Origin, Rule, first_stop

Array = np.ndarray
Candidate = tuple[float, Callable[[Origin], Rule]]
"""A cross-fitted value, and what builds the rule on the whole fit split."""
_RAMPS, _FOLDS = 8, 5
_SCREENED = 5000
"""Samples on which the feature to threshold is chosen."""


def snell(trace: Trace, *, price: float | None = None, budget: float | None = None, seed: int = 0) -> Rule:
    """The solved rule: the least mean of loss + price x cost that the observations allow.

    Args:
        trace: the fit split; the rule is to be judged on another.
        price, budget: as in `solve_at`; exactly one.
        seed: of the folds.

    Raises:
        InputError: fewer samples than folds.
    """
    return solve_at(trace, snell_family(trace, seed=seed), price=price, budget=budget)


def snell_family(trace: Trace, *, seed: int = 0) -> Family:
    """`snell` at any price, the trace made ready once."""
    if len(trace) < 10 * _FOLDS:
        raise InputError(f"{len(trace)} samples are too few to solve on; {10 * _FOLDS} is the least")
    return _Solver(trace, seed).at


class _Solver:
    """One trace made ready: folds, bases, Gram matrices."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trace = trace
        self.losses = expected_losses(trace)
        self.paid = trace.costs.paid()
        random = np.random.default_rng(seed)
        self.fold = random.permutation(len(trace)) % _FOLDS
        self.sample = random.permutation(len(trace))[:_SCREENED]
        self.ramps = [Ramps.of(trace.observations[:, k], _RAMPS) for k in range(trace.exits - 1)]
        self.fits = [CrossFit(ramps(trace.observations[:, k]), self.fold, _FOLDS) for k, ramps in enumerate(self.ramps)]
        self.randomised = RandomisedFit(trace.observations[:, :-1], self.fold, _FOLDS, _RAMPS)

    def at(self, price: float) -> Rule:
        """The candidate with the least cross-fitted value at a price."""
        values = self.losses + price * self.paid
        candidates = [self._randomised(values), self._induction(values), *self._thresholds(values)]
        best = min(candidates, key=lambda candidate: candidate[0])
        return best[1](Origin.of(self.trace, price))

    def _randomised(self, values: Float[Array, "N K"]) -> Candidate:
        """The stopping time fitted at all exits at once, and then made deterministic."""
        found = self.randomised.fit(values)
        value = values[np.arange(len(values)), first_stop(found.held_out >= 0)].mean()
        return float(value), lambda origin: GainRule(origin, self.trace.features, found.gains)

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
        return float(follows.mean()), lambda origin: GainRule(origin, self.trace.features, gains)

    def _thresholds(self, values: Float[Array, "N K"]) -> list[Candidate]:
        """A common threshold and one per exit, on the feature that serves a common one best."""
        scores = {
            (feature, below): self.trace.observations[:, :-1, f] * np.float32(-1 if below else 1)
            for f, feature in enumerate(self.trace.features)
            for below in (False, True)
        }
        screened = {key: common_cut(score[self.sample], values[self.sample])[1] for key, score in scores.items()}
        feature, below = min(screened, key=screened.__getitem__)
        score = scores[feature, below]

        def common(rows: Array) -> Array:
            return np.full(score.shape[1], common_cut(score[rows], values[rows])[0], dtype=np.float32)

        def per_exit(rows: Array) -> Array:
            return exit_cuts(score[rows], values[rows], common(rows))

        return [self._threshold(feature, below, score, values, tune) for tune in (common, per_exit)]

    def _threshold(
        self, feature: str, below: bool, score: Array, values: Array, tune: Callable[[Array], Array]
    ) -> Candidate:
        total = 0.0
        for f in range(_FOLDS):
            held = np.flatnonzero(self.fold == f)
            stops = score[held] >= tune(np.flatnonzero(self.fold != f))
            total += values[held, first_stop(stops)].sum()

        def build(origin: Origin) -> Rule:
            cuts = tune(np.arange(len(score)))
            return Threshold(origin, feature, torch.from_numpy(-cuts if below else cuts), below)

        return total / len(score), build
