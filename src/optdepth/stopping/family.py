"""Family: what a solver makes of a trace. Rules at every price, together with the samples that fitted them.

A trace is made ready once; then a price, a budget and a certificate all use it. Because the family holds its samples,
what fitted a rule cannot certify or judge it by accident.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from math import sqrt
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

import numpy as np

from ..errors import InputError
from ..threads import light
from ..trace import Trace
from .ceiling import Ceiling
from .certify import Certificate, certify
from .evaluate import applied
from .risks import Measure, RiskTest, check_measurable, measured, risks_of
from .rule import Rule

P = ParamSpec("P")
R_co = TypeVar("R_co", bound=Rule, covariant=True)

_MET = 0.005
"""A budget counts as met when the mean cost is below it by no more than this share."""
_SAME = 1.005
"""Prices less than this factor apart are one: a jump in cost between them is one that the rules make."""
_RUNGS, _FINE = 24, 0.002
"""Rules of a ladder; steps in mean cost, as shares of the full network's, that are fine enough."""
_CHEAPEST, _DEAREST = 1 / 256, 1e9
"""Prices that a ladder starts and ends at, times the losses' range over the full network's cost."""
_APART = 1.1
"""Rungs of a ladder are no closer than this factor in price."""
_DWARFED = 100.0
"""A price that makes one step dearer than so many times all that is to be won is meant in another unit of cost."""


@dataclass(frozen=True, eq=False, repr=False)
class Family(Generic[R_co]):
    """Rules of one kind at every price, and the samples that fitted them.

    Attributes:
        trace: the fit split.
        solve: the rule at a price >= 0; its mean cost falls as the price rises.

    Example:
        >>> family = od.placed(fit)
        >>> family.at(0.05).origin.price
        0.05
        >>> family.certified(certify, risk=0.05, confidence=0.9, measure="excess").certified
        True
    """

    trace: Trace
    solve: Callable[[float], R_co]

    def __repr__(self) -> str:
        return f"Family(fitted on {len(self.trace):,} samples; say at(price), within(budget) or certified(trace, ...))"

    def at(self, price: float) -> R_co:
        """The rule with the least mean of loss + price x cost.

        Args:
            price: loss that one unit of cost is worth, >= 0.

        Warns:
            UserWarning: at this price one step dwarfs the whole range of the losses, so that none can pay.

        Raises:
            InputError: the price is negative or not finite.
        """
        check_price(price)
        self._announce(price)
        return self.solve(price)

    def _announce(self, price: float) -> None:
        """Says so where prices seem to be meant in another unit: all samples stop at once, and nobody would be told."""
        costs, won = self.trace.costs.mean(), float(np.ptp(self.trace.losses))
        if won == 0:
            return
        alone = costs.paid([True, *[False] * (len(costs) - 1)])
        step = price * float((alone[1:] - alone[0]).min())
        if step > _DWARFED * won:
            relative = "" if np.isclose(costs.full, 1.0) else ", or solve on costs in full passes, costs.relative()"
            warnings.warn(
                f"at price {price:g} a step beyond the first exit costs {step:.2g} or more, and losses differ by "
                f"{won:.2g} at most, so every sample stops there. A price is loss per unit of cost, here "
                f"{costs.unit}: give one near {self._unit:.1g}{relative}",
                stacklevel=3,
            )

    def within(self, budget: float) -> R_co:
        """The dearest rule found whose mean cost on the samples that fitted it keeps within a budget.

        Args:
            budget: mean cost a sample, in the unit of the trace's costs.

        Raises:
            InputError: no rule of the family meets the budget, or every rule does.
        """
        trace, paid = self.trace, self.trace.costs.paid()
        least = float(paid[..., 0].mean())
        if budget > (most := float(paid.max(axis=-1).mean())):
            raise InputError(
                f"a budget of {budget:g} {trace.costs.unit} is more than any rule takes, {most:g}: give less than the "
                f"full network's {trace.costs.full:g}, or price=0 for the rule that loses least at any cost"
            )
        if not budget >= least:
            raise InputError(
                f"no rule meets a mean cost of {budget:g} {trace.costs.unit}: the nearest is {least:g}, "
                "where every sample stops at the first exit"
            )
        best = self.solve(0.0)
        if applied(best, trace).cost <= budget:
            return best
        low, high = 0.0, self._unit
        while applied(best := self.solve(high), trace).cost > budget:
            low, high = high, 4 * high
            if high > 1e12:
                raise InputError(
                    f"no price brings the mean cost of this kind of rule down to {budget:g} "
                    f"{trace.costs.unit}; the nearest is {applied(best, trace).cost:g}"
                )
        for _ in range(24):
            if applied(best, trace).cost >= budget * (1 - _MET) or low * _SAME > high:
                break
            middle = sqrt(low) * sqrt(high) if low > 0 else high / 8
            rule = self.solve(middle)
            if applied(rule, trace).cost <= budget:
                best, high = rule, middle
            else:
                low = middle
        return best

    def chosen(self, *, price: float | None = None, budget: float | None = None) -> R_co:
        """The rule `at` the price or `within` the budget, whichever is given.

        Raises:
            InputError: not exactly one of the two is given; or as `at` and `within`.
        """
        if price is not None and budget is None:
            return self.at(price)
        if budget is not None and price is None:
            return self.within(budget)
        raise InputError("say either price= (loss that one unit of cost is worth) or budget= (mean cost)")

    def certified(
        self,
        trace: Trace,
        *,
        risk: float | Mapping[Measure, float],
        confidence: float,
        measure: Measure | None = None,
        cost: float | None = None,
        most: float | None = None,
        seed: int = 0,
    ) -> Certificate:
        """The cheapest rule of the family that is shown to keep a promise, or several at once; see `certify`.

        Args:
            trace: samples that did not fit the family; the prices tried are chosen on those that did.
            risk, confidence, measure, cost, most, seed: as in `certify`.

        Raises:
            InputError: samples of the trace fitted the family; the exits cost nothing; or as `certify`.
        """
        self.check_unseen(trace)
        RiskTest.of(trace, risk, confidence, measure)  # what cannot be tested is refused before anything is solved
        if cost is not None:
            Ceiling.of(trace, cost, most, 1 - confidence)
        return certify(
            self.ladder(risk=risk, measure=measure),
            trace,
            risk=risk,
            confidence=confidence,
            measure=measure,
            cost=cost,
            most=most,
            seed=seed,
        )

    def check_unseen(self, trace: Trace) -> None:
        """Refuses samples that fitted the family: they can neither certify nor judge it."""
        if shared := self.trace.overlap(trace):
            raise InputError(
                f"{shared} of these {len(trace)} samples fitted the family, so they can neither certify nor judge it: "
                f"take others, as Trace.split makes them (they are the same {self.trace.samples.alike(trace.samples)})"
            )

    def ladder(self, *, risk: float | Mapping[Measure, float], measure: Measure | None = None) -> list[R_co]:
        """Rules at rising prices, about even in mean cost, up to the first clearly above a risk.

        Cost and risk are measured on the samples that fitted the family, so that no sample certified on has a part in
        the choice.

        Args:
            risk, measure: as in `certify`.

        Raises:
            InputError: the exits cost nothing, or the trace lacks what a measure is about.
        """
        trace, risks, unit = self.trace, risks_of(risk, measure), self._unit
        least = float(trace.costs.mean().paid()[0])
        check_measurable(trace, risks)
        rungs: dict[float, tuple[R_co, float]] = {}

        def climb(price: float) -> bool:
            rule = self.solve(price)
            found = applied(rule, trace)
            rungs[price] = rule, found.cost
            for asked, bound in risks.items():
                values = measured(asked, found.stopped_at, trace)
                if values.mean() - 2 * values.std() / sqrt(len(trace)) > bound:
                    return False
            return found.cost > least * (1 + 1e-6)

        price = 0.0
        while climb(price) and price < _DEAREST * unit:
            price = 4 * price or _CHEAPEST * unit
        while len(rungs) < _RUNGS:
            steps = [
                (abs(rungs[low][1] - rungs[high][1]), low, high)
                for low, high in pairwise(sorted(rungs))
                if high > max(_APART * low, 1e-3 * _CHEAPEST * unit)
            ]
            step, low, high = max(steps, default=(0.0, 0.0, 0.0))
            if step < _FINE * trace.costs.full:
                break
            climb(sqrt(low) * sqrt(high) or high / 4)
        return [rungs[price][0] for price in sorted(rungs)]

    @property
    def _unit(self) -> float:
        """The price at which the full network's cost is worth the range of the losses."""
        if self.trace.costs.full <= 0:
            raise InputError("the exits cost nothing, so there is nothing to save: certify rules of your own")
        return float(np.ptp(self.trace.losses) or 1.0) / self.trace.costs.full


@runtime_checkable
class Solver(Protocol[P, R_co]):
    """What `solver` makes: called with a trace alone it gives the family, with a price or a budget the one rule."""

    @overload
    def __call__(self, trace: Trace, /, *args: P.args, **kwargs: P.kwargs) -> Family[R_co]: ...
    @overload
    def __call__(self, trace: Trace, /, *args: Any, price: float, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(self, trace: Trace, /, *args: Any, budget: float, **kwargs: Any) -> R_co: ...


def solver(prepare: Callable[Concatenate[Trace, P], Callable[[float], R_co]]) -> Solver[P, R_co]:
    """Makes a solver of a function that makes a trace ready and returns price -> rule.

    The solver takes the same arguments, and `price` (loss that one unit of cost is worth, >= 0) or `budget` (mean cost
    a sample): with one of them it returns that rule, `Family.at` or `Family.within`; with neither the `Family`. It is
    `light` work.
    """

    @wraps(prepare)
    def solved(trace: Trace, *args: Any, price: float | None = None, budget: float | None = None, **kwargs: Any) -> Any:
        family = Family(trace, light(light(prepare)(trace, *args, **kwargs)))
        return family if price is None and budget is None else family.chosen(price=price, budget=budget)

    plain = inspect.signature(prepare)
    given = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation="float | None")
        for name in ("price", "budget")
    ]
    returned = "Family | Rule"
    solved.__signature__ = plain.replace(  # type: ignore[attr-defined]
        parameters=[*plain.parameters.values(), *given], return_annotation=returned
    )
    return cast(Solver[P, R_co], solved)


def check_price(price: float) -> None:
    """Refuses a price that is none."""
    if not np.isfinite(price) or price < 0:
        raise InputError(f"price is {price:g}; it is loss per unit of cost: finite and >= 0")
