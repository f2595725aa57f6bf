"""What a rule does on samples that fitted nothing: mean loss, mean cost, where it stops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from ..trace import Trace
from .rule import Rule


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A rule on a trace.

    Attributes:
        loss, cost: means over the samples; loss in the task's unit, cost in the trace's.
        loss_error, cost_error: their standard errors.
        shares: (K,) share of the samples that stop at each exit.
        stopped_at: (N,) exit of each sample, 0-based.
        losses, costs: (N,) of each sample.
        duplicates: how many of the samples have the content of one that fitted the rule, in another row of the same
            source; the data hold it twice, and it counts.
    """

    loss: float
    cost: float
    loss_error: float
    cost_error: float
    shares: Float[np.ndarray, " K"]
    stopped_at: Int[np.ndarray, " N"]
    losses: Float[np.ndarray, " N"]
    costs: Float[np.ndarray, " N"]
    duplicates: int = 0

    @classmethod
    def of(
        cls,
        losses: Float[np.ndarray, " N"],
        costs: Float[np.ndarray, " N"],
        stopped_at: Int[np.ndarray, " N"],
        *,
        n_exits: int,
    ) -> Self:
        """Means and errors of what each sample lost and paid where it stopped, among `n_exits` exits."""
        return cls(
            loss=float(losses.mean()),
            cost=float(costs.mean()),
            loss_error=_standard_error(losses),
            cost_error=_standard_error(costs),
            shares=np.bincount(stopped_at, minlength=n_exits) / len(stopped_at),
            stopped_at=stopped_at,
            losses=losses,
            costs=costs,
        )

    def value(self, price: float) -> float:
        """Mean of loss + price x cost, what a solver minimises."""
        return self.loss + price * self.cost

    def value_error(self, price: float) -> float:
        """Standard error of `value`."""
        return _standard_error(self.losses + price * self.costs)

    def __str__(self) -> str:
        twice = f", {self.duplicates:,} of them duplicates of what fitted the rule" if self.duplicates else ""
        return (
            f"loss {self.loss:.4f} ± {self.loss_error:.4f}, cost {self.cost:.4g} ± {self.cost_error:.2g} "
            f"on {len(self.stopped_at):,} samples{twice}"
        )


def evaluate(rule: Rule, trace: Trace) -> Evaluation:
    """Applies a rule to a trace of samples that it was not fitted on.

    Raises:
        InputError: any of the samples fitted the rule, or the trace comes from another network.

    Example:
        >>> found = od.evaluate(od.placed(fit, price=0.05), test)
        >>> bool(np.isclose(found.value(0.05), found.loss + 0.05 * found.cost))
        True
    """
    rule.origin.check_unused(trace)
    return replace(applied(rule, trace), duplicates=trace.samples.duplicates(rule.origin.fitted_on))


def applied(rule: Rule, trace: Trace) -> Evaluation:
    """What `evaluate` reports, without asking what fitted the rule; for solvers at work on their own split."""
    if rule.origin.recall != trace.recall:
        raise InputError(
            f"the rule answers by recall {rule.origin.recall or 'of nothing'}, the losses are of "
            f"{trace.recall or 'each exit alone'}; make the trace with recall=rule.origin.recall"
        )
    stopped_at = rule.stopped_at(trace)
    losses = trace.losses[np.arange(len(trace)), stopped_at]
    costs = trace.costs.at(stopped_at, rule.looks)
    return Evaluation.of(losses, costs, stopped_at, n_exits=trace.n_exits)


def _standard_error(values: Float[np.ndarray, " N"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
