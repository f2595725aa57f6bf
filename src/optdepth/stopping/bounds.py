"""Bounds on what any rule can do (theory, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..trace import Trace


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
    """Hindsight on a trace: every sample stops where its own loss + price x cost is least."""
    paid = trace.costs.paid()
    values = trace.losses + price * paid
    exits = values.argmin(axis=1)
    best = values[np.arange(len(trace)), exits]
    error = best.std(ddof=1) / np.sqrt(len(best)) if len(best) > 1 else np.inf
    loss = trace.losses[np.arange(len(trace)), exits]
    return Prophet(float(best.mean()), float(error), float(loss.mean()), float(paid[exits].mean()))
