"""A mean cost held at run time while the mix of inputs drifts, by moving along a family of rules."""

from __future__ import annotations

import threading

import numpy as np

from ..batch import Inputs
from ..errors import InputError
from .engine import Answer, Engine

_GAIN = 0.5
"""Of the whole ladder of prices, moved when a memory's worth of samples costs twice the budget."""


class BudgetedEngine:
    """An engine that keeps the mean cost of its answers near a budget: `budgeted(inputs) -> Answer`.

    An integral controller: the sum of what was paid above the budget, relative to it, moves the engine up or down its
    prices, from one call to the next. The overdraft, so the sum itself, then stays bounded, and the mean cost tends to
    the budget as long as the cheapest rule costs less and the dearest more. The sum is cut where the ladder of prices
    ends, so that an impossible time is not made up for later.

    Args:
        engine: with rules at several prices, see `Engine`.
        budget: mean cost a sample, in the unit of the rules' costs.
        memory: samples over which a deviation is corrected; fewer follow a drift sooner, and fluctuate more.

    Raises:
        InputError: an engine with one rule only, a rule without a price, a budget or a memory that is not positive.
    """

    def __init__(self, engine: Engine, budget: float, *, memory: int = 1000) -> None:
        prices = engine.prices
        if len(prices) < 2:
            raise InputError("a budget is held by moving between rules: give the engine rules at several prices")
        if not (np.isfinite(budget) and budget > 0 and memory > 0):
            raise InputError(f"budget {budget:g} and memory {memory}: both must be positive")
        self.engine, self.budget, self.memory = engine, budget, memory
        self._prices = sorted(prices)
        self._position = (len(prices) - 1) / 2
        self._alone = threading.Lock()

    @property
    def price(self) -> float:
        """Of the rule that the next call uses."""
        return self._prices[round(self._position)]

    def __call__(self, inputs: Inputs) -> Answer:
        """Answers a batch by the present rule, and corrects the course; reading the cost waits for the device."""
        answer = self.engine(inputs, price=self.price)
        over = float(answer.cost.sum()) / self.budget - len(answer.cost)
        with self._alone:
            moved = self._position + _GAIN * len(self._prices) * over / self.memory
            self._position = min(max(moved, 0.0), len(self._prices) - 1.0)
        return answer
