"""Observations: what may be seen at an exit without the label (theory, section 2).

One implementation serves the recorder, the engine and `Trace.from_logits`, so that a rule meets at run time
exactly the numbers it was solved on. An observer computes the features a rule reads and nothing else: at small
batch sizes every operation is time on the clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import InputError

FEATURES: dict[str, str] = {
    "confidence": "probability of the most likely class",
    "margin": "probability of the most likely class minus that of the runner-up",
    "entropy": "entropy of the class distribution, as a share of log(classes)",
    "streak": "number of exits in a row, this one included, that predict the same class",
    "divergence": "total variation distance to the previous exit's class distribution (1 at the first exit)",
    "residual": "size of what the last stage added, relative to the state it was added to",
}

Memory = dict[str, Tensor]
"""What an observer carries from one exit to the next; every tensor has the batch as its first dimension."""


class Observer:
    """Turns logits, exit after exit, into the features named.

    Args:
        features: names out of `FEATURES`, in the order of the columns wanted.
    """

    def __init__(self, features: Sequence[str]) -> None:
        unknown = [name for name in features if name not in FEATURES]
        if unknown:
            raise InputError(f"unknown feature {unknown[0]!r}; choose from {', '.join(FEATURES)}")
        self.features = tuple(features)
        self.needs_residual = "residual" in self.features
        self._needs_probabilities = bool({"confidence", "margin", "entropy", "divergence"}.intersection(features))

    def __call__(
        self, logits: Float[Tensor, "n C"], memory: Memory, residual: Float[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "n F"], Memory]:
        """Features of one exit, and the memory to pass at the next exit looked at (empty at the first).

        Args:
            logits: of the exit's head; computed on in float32 whatever their own precision.
            memory: as returned at the previous exit, for the same samples in the same order.
            residual: relative residual size per sample; needed only when that feature is asked for.
        """
        columns: dict[str, Tensor] = {}
        after: Memory = {}
        logits = logits.float()
        probabilities = logits.softmax(-1) if self._needs_probabilities else logits
        if "margin" in self.features:
            top = probabilities.topk(2, dim=-1).values
            columns["confidence"], columns["margin"] = top[:, 0], top[:, 0] - top[:, 1]
        elif "confidence" in self.features:
            columns["confidence"] = probabilities.amax(-1)
        if "entropy" in self.features:
            columns["entropy"] = torch.special.entr(probabilities).sum(-1) / math.log(logits.shape[-1])
        if "streak" in self.features:
            after["prediction"] = logits.argmax(-1)
            after["streak"] = self._streak(after["prediction"], memory)
            columns["streak"] = after["streak"]
        if "divergence" in self.features:
            after["probabilities"] = probabilities
            columns["divergence"] = self._divergence(probabilities, memory)
        if residual is not None:
            columns["residual"] = residual.float()
        return torch.stack([columns[name] for name in self.features], dim=-1), after

    @staticmethod
    def _streak(prediction: Tensor, memory: Memory) -> Tensor:
        if not memory:
            return torch.ones_like(prediction, dtype=torch.float32)
        return torch.where(prediction == memory["prediction"], memory["streak"] + 1.0, 1.0)

    @staticmethod
    def _divergence(probabilities: Tensor, memory: Memory) -> Tensor:
        if not memory:
            return probabilities.new_ones(probabilities.shape[0])
        return (probabilities - memory["probabilities"]).abs().sum(-1) / 2
