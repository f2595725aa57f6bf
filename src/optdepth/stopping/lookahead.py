"""One-step look-ahead (theory, section 3): compare stopping here with stopping at the next exit.

Optimal in the monotone case of Chow and Robbins, where the set in which stopping looks best is never left again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..trace import Trace
from .family import solver
from .gain import GainRule, frugal
from .posterior import expected_losses
from .regression import Function, among, positive, shuffled
from .rule import Origin, Rule
from .scale import common_exponent, priced, shrunk

Array = np.ndarray


@solver
def lookahead(trace: Trace, *, features: Sequence[str] | None = None, seed: int = 0) -> Callable[[float], GainRule]:
    """Stops where E[L_k - L_{k+1} | s_k] <= price x (C_{k+1} - C_k). The regressions do not depend on the price.

    Where costs differ by sample, what the step costs is part of what is regressed, at each price anew.

    Args:
        trace: the fit split.
        price, budget: one of them for that rule, neither for the family; see `solver`.
        features: observations to decide on; if none are named, those of `snell`.
        seed: of the folds that choose the regressions, and of their random parts.

    Raises:
        InputError: a feature that the trace lacks.

    Example:
        >>> lookahead(fit, price=0.05).origin.price
        0.05
    """
    trace, chosen = shuffled(trace, seed), tuple(features or frugal(trace))
    seen, going = trace.columns(chosen), ~trace.ended
    drop = -np.diff(expected_losses(trace), axis=1)
    parts = [among(seen[:, k], going[:, k], seed) for k in range(trace.n_exits - 1)]
    step = np.diff(trace.costs.paid(), axis=-1)
    alike = [] if step.ndim == 2 else [made.fit(drop[rows, k]) for k, (rows, made) in enumerate(parts) if made]

    def gain(k: int, by: int, toll: Array) -> Function:
        rows, made = parts[k]
        if made is None:
            return positive(len(chosen))
        if alike:
            return alike[k].function(-float(toll), by)
        return made.fit(shrunk(drop[rows, k], by) - toll[rows]).function()

    def at(price: float) -> GainRule:
        by = common_exponent(drop, step, price)
        toll = priced(step, price, by)
        gains = [gain(k, by, toll[..., k]) for k in range(len(parts))]
        return GainRule(Origin.of(trace, price), chosen, gains)

    return at


@dataclass(frozen=True)
class Monotone:
    """How nearly a trace is the monotone case under a look-ahead rule.

    Attributes:
        left: share of the samples that enter the stop region before the last exit and leave it again.
    """

    left: float

    def __str__(self) -> str:
        return f"{self.left:.1%} of the samples that look-ahead would stop leave its stop region again at a deeper exit"


def monotone_case(rule: Rule, trace: Trace) -> Monotone:
    """How often a trace leaves the stop region of a look-ahead rule: zero means looking one step ahead is enough."""
    stops = rule.stops(trace)
    entered = np.maximum.accumulate(stops, axis=1)
    inside = stops.any(axis=1)
    left = (entered & ~stops).any(axis=1)
    return Monotone(float(left.sum() / max(1, inside.sum())))
