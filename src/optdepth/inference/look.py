"""The look at an exit: from logits to who stops, for a batch in tensors and for one sample in plain numbers."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from ..batch import State
from ..features import Memory, Observer
from ..stopping.rule import Rule

_CLASSES = 64
"""Up to so many classes one sample is decided on in Python numbers; beyond, tensor operations are quicker."""


class Look:
    """What one rule sees and decides at the exits, from a head's logits on.

    At batch 1 a tensor operation on ten numbers costs its launch, a few microseconds, and a look is made of ten to
    twenty of them. So one sample is decided on in Python numbers, from the probabilities that the tensors would have.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.observer = Observer(rule.features) if rule.features else None
        self._one = self.observer is not None and self.observer.sees_one

    def batch(
        self, k: int, logits: Float[Tensor, "n ..."], before: State, state: State, memory: Memory
    ) -> tuple[Bool[Tensor, " n"], Memory]:
        """Which samples stop at exit k, and the observer's memory after it."""
        if self.observer is None:
            return self.rule.stop(k, logits.new_empty(len(logits), 0)), memory
        observation, memory = self.observer(logits, memory, before, state)
        return self.rule.stop(k, observation), memory

    def one(
        self, k: int, logits: Float[Tensor, "1 ..."], before: State, state: State, memory: Memory
    ) -> tuple[bool, Memory]:
        """`batch` for a single sample; by `batch` itself where a feature has no form in Python numbers."""
        if self.observer is None or not self._one or logits.ndim != 2 or not 1 < logits.shape[1] <= _CLASSES:
            stops, memory = self.batch(k, logits, before, state, memory)
            return bool(stops), memory
        values, memory = self.observer.one(logits, memory)
        return self.rule.decide(k, values), memory
