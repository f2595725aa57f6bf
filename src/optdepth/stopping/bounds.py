"""Bounds on what any rule can do (theory, section 4), and how near a rule comes to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..errors import InputError
from ..threads import light
from ..trace import Trace
from .family import check_price
from .posterior import expected_losses
from .regression import among, shuffled
from .rule import FixedDepth, Origin, Rule

Array = np.ndarray


@dataclass(frozen=True)
class Prophet:
    """The value with hindsight, E[min_k Y_k]: no rule is better, few come near.

    Attributes:
        value, error: mean of loss + price x cost, and its standard error.
        loss, cost: what it is made of.
    """

    value: float
    error: float
    loss: float
    cost: float

    def __str__(self) -> str:
        return f"no rule does better than {self.value:.4f} ± {self.error:.4f} (hindsight)"


def prophet(trace: Trace, *, price: float) -> Prophet:
    """Hindsight on a trace: every sample stops where its own loss + price x cost is least.

    It looks nowhere else, so that no rule is better, wherever it looks.
    """
    paid = trace.costs.paid((False,) * trace.n_exits)
    values = trace.losses + price * paid
    exits = values.argmin(axis=1)
    best = values[np.arange(len(trace)), exits]
    loss = trace.losses[np.arange(len(trace)), exits]
    cost = trace.costs.at(exits, (False,) * trace.n_exits)
    return Prophet(float(best.mean()), _error(best), float(loss.mean()), float(cost.mean()))


@dataclass(frozen=True)
class Dual:
    """An estimate of what no rule betters, given what may be seen at the exits.

    Attributes:
        value, error: mean of loss + price x cost, and its standard error over the test samples; what the regressions
            err by is not in it.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return (
            f"no rule with these observations does better than {self.value:.4f} ± {self.error:.4f} "
            "(estimated: its martingale is fitted)"
        )


@dataclass(frozen=True)
class Gap:
    """Where a rule lies between the best fixed depth and the dual bound.

    Attributes:
        value: of the rule; mean of loss + price x cost, with the martingale as control variate: the expectation is
            that of `Evaluation.value`, the noise is less.
        bound: what no rule betters, estimated.
        fixed: value of the best fixed depth.
        depth: that depth, an exit, chosen on the fit split.
        error: standard error of `share`; nan with it.
    """

    value: float
    bound: float
    fixed: float
    depth: int
    error: float

    @property
    def share(self) -> float:
        """(value - bound) / (fixed - bound): 0 at the bound, 1 where the rule is no better than a fixed depth.

        nan where the bound itself is no better than the fixed depth.
        """
        return (self.value - self.bound) / (self.fixed - self.bound) if self.fixed > self.bound else float("nan")

    def __str__(self) -> str:
        if not self.fixed > self.bound:
            return (
                f"no rule that looks at these exits betters the fixed depth of exit {self.depth}, "
                f"{self.fixed:.4f} (estimated bound {self.bound:.4f}); this one has {self.value:.4f}"
            )
        return (
            f"the rule is within {self.share:.1%} ± {self.error:.1%} of the best any rule could do with these "
            f"observations (estimated): {self.value:.4f}, between {self.fixed:.4f} at the best fixed depth "
            f"(exit {self.depth}) and the bound {self.bound:.4f}"
        )


@light
def dual(rule: Rule, fit: Trace, test: Trace, *, price: float, seed: int = 0) -> Dual:
    """The dual bound by the fitted martingale of a rule (Rogers 2002; Haugh and Kogan 2004; Andersen and Broadie 2004).

    For every martingale M with M_1 = 0 the value V of the best rule is at least E[min_k (Y_k - M_k)], and equals it at
    the martingale of V itself. M is made of what `rule` is worth: M_{k+1} - M_k = W_{k+1}(s_{k+1}) -
    E[W_{k+1}(s_{k+1}) | s_k], W_k the lesser of stopping at k and of following the rule behind it. Andersen and Broadie
    simulate the conditional expectations; here all are regressed on `fit` and applied to `test`, so the bound is an
    estimate. Errors of a regression that its noise makes lower it, which is the safe side; what the regressions cannot
    express, or observations that leave out history, may err to either.

    Two things differ from the textbook:
    - Y_k inside the minimum is its regression E[Y_k | s_k]. A rule earns no more than that, for it does not see the
      label; with the realised loss the minimum would, and on 0-1 losses the bound can come out below the prophet's.
    - the realised Y_T less its regression, at the stops T of `rule`, is added. Its expectation is zero for exact
      regressions, and for others it takes out the error that they make along the rule.

    The bound is for rules that look at the exits that `rule` looks at, and pay for it.

    Args:
        rule: a good one; the better, the tighter.
        fit: samples for the regressions; those that fitted the rule will do.
        test: independent samples.
        price: loss that one unit of cost is worth.
        seed: of the folds that choose how smooth the regressions are.

    Raises:
        InputError: test samples fitted the rule or are among those of `fit`.
    """
    bounds = _Hedged.of(rule, fit, test, price, seed).bounds
    return Dual(float(bounds.mean()), _error(bounds))


@light
def gap(rule: Rule, fit: Trace, test: Trace, *, price: float, seed: int = 0) -> Gap:
    """How much of what stopping can gain over the best fixed depth the rule leaves; arguments and errors of `dual`.

    Example:
        >>> found = od.gap(od.snell(fit, price=0.05), fit, test, price=0.05)
        >>> found.bound <= found.value
        True
    """
    hedged = _Hedged.of(rule, fit, test, price, seed)
    depths = [FixedDepth(Origin(fit.costs, recall=fit.recall), k) for k in range(fit.n_exits)]
    alone = np.array([depth.origin.costs.paid(depth.looks)[k] for k, depth in enumerate(depths)])
    depth = int(np.argmin(fit.losses.mean(axis=0) + price * alone))
    paid = test.costs.at(np.full(len(test), depth), depths[depth].looks)
    fixed = test.losses[:, depth] + price * paid - hedged.martingale[:, depth]
    left, gained = hedged.values - hedged.bounds, fixed - hedged.bounds
    share = left.mean() / gained.mean() if gained.mean() > 0 else float("nan")
    # The delta method: the share is a ratio of two means over the same samples.
    error = _error(left - share * gained) / float(gained.mean() or np.nan)
    return Gap(float(hedged.values.mean()), float(hedged.bounds.mean()), float(fixed.mean()), depth, error)


@dataclass(frozen=True, eq=False)
class _Hedged:
    """A rule on the test samples with its fitted martingale taken off.

    Attributes:
        values: (N,) whose mean is the rule's value.
        bounds: (N,) whose mean is the bound; never above `values`.
        martingale: (N, K).
    """

    values: Float[Array, " N"]
    bounds: Float[Array, " N"]
    martingale: Float[Array, "N K"]

    @classmethod
    def of(cls, rule: Rule, fit: Trace, test: Trace, price: float, seed: int) -> Self:
        check_price(price)
        _check_independent(rule, fit, test)
        fit = shuffled(fit, seed)
        values = expected_losses(fit) + price * fit.costs.paid(rule.looks)
        met = test.losses + price * test.costs.paid(rule.looks)
        expected, martingale = _regressed(rule, fit, test, values, met, seed)
        stopped = np.arange(len(test)), rule.stopped_at(test)
        hedged = expected - martingale
        # What was met at the stops, not its regression: so rounding does not part a value from a bound that equals it.
        values = met[stopped] - martingale[stopped]
        return cls(values, values - (hedged[stopped] - hedged.min(axis=1)), martingale)


def _regressed(
    rule: Rule, fit: Trace, test: Trace, values: Float[Array, "n K"], met: Float[Array, "N K"], seed: int
) -> tuple[Float[Array, "N K"], Float[Array, "N K"]]:
    """E[Y_k | s_k], infinite where the rule does not look, and M_k on the test samples.

    Where a sample has ended by itself its Y_k has been met, and stands in place of the regression.

    Args:
        values, met: Y_k of `fit` and of `test`.
    """
    stops = rule.stops(fit)
    last, n = fit.n_exits - 1, len(fit)
    realised, ended = np.concatenate([values, met]), np.concatenate([_ended(fit), _ended(test)])
    ends = np.where(ended.any(axis=1), ended.argmax(axis=1), last)[n:]
    expected = np.where(ended[n:], met, np.inf)
    steps = np.zeros(test.losses.shape)
    follows = values[:, -1]  # realised value of the rule from the exit after k on
    worth, after = realised[:, -1], last
    for k in reversed([k for k in range(fit.n_exits) if rule.looks[k] or k == last]):
        regression = _Regression(fit.observations[:, k], test.observations[:, k], ~ended[:, k], seed)
        stop = regression(values[:, k], realised[:, k])
        expected[:, k] = stop[n:]
        if k == last:
            worth = stop
        else:
            step = (worth - regression(worth[:n], worth))[n:]
            steps[np.arange(len(test)), np.minimum(after, np.maximum(ends, k))] = step
            worth = np.minimum(stop, regression(follows, realised[:, k]))
            follows = np.where(stops[:, k], values[:, k], follows)
        after = k
    return expected, steps.cumsum(axis=1)


def _ended(trace: Trace) -> Bool[Array, "N K"]:
    """Where each sample has ended by itself, the last exit included: it need not end there where it has no horizon."""
    bounded = trace.costs.horizon is not None
    return np.column_stack([trace.ended, np.full(len(trace), bounded)])


class _Regression:
    """Regressions on one exit's observations of the fit samples, predicted on those and then the test samples.

    Args:
        going: which of all have not ended; the regression is on those and for those.
    """

    def __init__(
        self, fit: Float[Array, "n F"], test: Float[Array, "N F"], going: Bool[Array, " m"], seed: int
    ) -> None:
        self.rows, self.regression = among(fit, going[: len(fit)], seed)
        self.going, self.observations = going, torch.from_numpy(np.concatenate([fit, test]))

    def __call__(self, target: Float[Array, " n"], otherwise: Float[Array, " m"]) -> Float[Array, " m"]:
        """Of the fit samples' target; of those that have ended, and of all where too few have not, `otherwise`."""
        if self.regression is None:
            return otherwise
        predicted = self.regression.fit(target[self.rows]).function()(self.observations).double().numpy()
        return np.where(self.going, predicted, otherwise)


def _check_independent(rule: Rule, fit: Trace, test: Trace) -> None:
    rule.check(fit.network, fit.n_exits)
    rule.check(test.network, test.n_exits)
    if shared := fit.overlap(test):
        raise InputError(
            f"{shared} samples are in both fit and test; a bound needs two disjoint traces: use Trace.split "
            f"(they are the same {fit.samples.alike(test.samples)})"
        )
    rule.origin.check_unused(test)


def _error(values: Float[Array, " N"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
