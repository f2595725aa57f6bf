"""Price or budget: every solver takes one of the two, and a budget is met by a bisection over the price.

A solver first makes a trace ready, which gives a family, price -> rule; so a sweep over prices, a budget and a
certificate all pay for the preparation once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..errors import InputError
from ..trace import Trace
from .evaluate import applied
from .rule import Rule

R = TypeVar("R", bound=Rule)
Family = Callable[[float], Rule]
"""The rules of one kind, by the price they are solved at."""

_CLOSE = 0.005
"""A budget counts as met when the mean cost is below it by no more than this share."""
_NEAR = 1.005
"""Prices less than this factor apart are not told apart: a jump in cost between them is one that the rules make."""


def solve_at(trace: Trace, family: Callable[[float], R], *, price: float | None, budget: float | None) -> R:
    """The rule at the price given, or the dearest found whose mean cost on `trace` keeps within the budget.

    Args:
        family: the rule at a price; its mean cost falls as the price rises.
        price: loss that one unit of cost is worth, >= 0.
        budget: mean cost a sample, in the unit of the trace's costs.

    Raises:
        InputError: not exactly one of the two is given, the price is negative, or no rule meets the budget.
    """
    if (price is None) == (budget is None):
        raise InputError("say either price= (loss that one unit of cost is worth) or budget= (mean cost)")
    if price is not None:
        check_price(price)
        return family(price)
    assert budget is not None
    return _bisect(trace, family, budget)


def check_price(price: float) -> None:
    """Refuses a price that is none."""
    if not np.isfinite(price) or price < 0:
        raise InputError(f"price is {price:g}; it is loss per unit of cost: finite and >= 0")


def _bisect(trace: Trace, family: Callable[[float], R], budget: float) -> R:
    least = float(trace.costs.paid()[0])
    if not budget >= least:
        raise InputError(
            f"no rule meets a mean cost of {budget:g} {trace.costs.unit}: the nearest is {least:g}, "
            "where every sample stops at the first exit"
        )
    free = family(0.0)
    if applied(free, trace).cost <= budget:
        return free
    low, high = 0.0, float(np.ptp(trace.losses) or 1.0) / trace.costs.full
    while applied(best := family(high), trace).cost > budget:
        low, high = high, 4 * high
        if high > 1e12:
            raise InputError(
                f"no price brings the mean cost of this kind of rule down to {budget:g} "
                f"{trace.costs.unit}; the nearest is {applied(best, trace).cost:g}"
            )
    for _ in range(24):
        if applied(best, trace).cost >= budget * (1 - _CLOSE) or low * _NEAR > high:
            break
        middle = float(np.sqrt(low) * np.sqrt(high)) if low > 0 else high / 8
        rule = family(middle)
        if applied(rule, trace).cost <= budget:
            best, high = rule, middle
        else:
            low = middle
    return best
