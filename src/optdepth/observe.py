"""Observations: what may be seen at an exit without the label (theory, section 2).

One implementation serves the recorder, the engine and the constructors of `Trace`, so that a rule meets at run time
exactly the numbers it was solved on. An observer computes the features a rule reads and nothing else: at small
batch sizes every operation is time on the clock.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import InputError

Answers = Literal["classes", "numbers"]
"""Logits of classes, one row a sample (n, C) or one a token (n, t, C); or numbers, (n,) or (n, ...)."""

FEATURES: dict[str, str] = {
    "confidence": "probability of the most likely class",
    "margin": "probability of the most likely class minus that of the runner-up",
    "entropy": "entropy of the class distribution, as a share of log(classes)",
    "streak": "number of exits in a row, this one included, that predict the same class",
    "divergence": "total variation distance to the previous exit's class distribution (1 at the first exit)",
    "change": "distance of the answer from the previous exit's (from zero at the first exit)",
    "level": "mean of the numbers in the answer: the answer itself where it is one number",
    "residual": "size of what the last stage added, relative to the state it was added to",
}
FEATURES_OF: dict[Answers, tuple[str, ...]] = {
    "classes": ("confidence", "margin", "entropy", "streak", "divergence"),
    "numbers": ("change", "level"),
}
"""What is recorded of each kind of answer. Besides, "residual" is of the state, whatever the answer."""

Memory = dict[str, Any]
"""What an observer carries from one exit to the next; every tensor has the batch as its first dimension. An observer
of one sample carries plain numbers."""


class Observer:
    """Turns answers, exit after exit, into the features named.

    Where a sample has logits for many tokens, its confidence and margin are those of the least sure token, its entropy
    and divergence are means over the tokens, and its streak lasts while every token keeps its class. Tokens whose
    logits are all zero are padding and left out: no trained head gives a real token exactly that, and a head marks
    padding so by `logits * mask[..., None]`.

    Args:
        features: names out of `FEATURES`, in the order of the columns wanted.
    """

    def __init__(self, features: Sequence[str]) -> None:
        unknown = [name for name in features if name not in FEATURES]
        if unknown:
            raise InputError(f"unknown feature {unknown[0]!r}; choose from {', '.join(FEATURES)}")
        self.features = tuple(features)
        self.needs_residual = "residual" in self.features
        self._of_classes = [name for name in features if name in FEATURES_OF["classes"]]
        self._of_numbers = [name for name in features if name in FEATURES_OF["numbers"]]
        self._needs_probabilities = bool({"confidence", "margin", "entropy", "divergence"}.intersection(features))

    def __call__(
        self, answer: Float[Tensor, "n ..."], memory: Memory, residual: Float[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "n F"], Memory]:
        """Features of one exit, and the memory to pass at the next exit looked at (empty at the first).

        Args:
            answer: of the exit's head; computed on in float32 whatever its own precision.
            memory: as returned at the previous exit, for the same samples in the same order.
            residual: relative residual size per sample; needed only when that feature is asked for.
        """
        columns: dict[str, Tensor] = {}
        after: Memory = {}
        answer = answer.float()
        if self._of_classes:
            self._see_classes(answer, memory, columns, after)
        if self._of_numbers:
            after["answer"] = answer.reshape(len(answer), -1)
            if "change" in self.features:
                moved = after["answer"] - memory["answer"] if memory else after["answer"]
                columns["change"] = torch.linalg.vector_norm(moved, dim=1)
            columns["level"] = after["answer"].mean(1)
        if residual is not None:
            columns["residual"] = residual.float()
        if len(self.features) == 1:
            return columns[self.features[0]].float().unsqueeze(-1), after
        return torch.stack([columns[name] for name in self.features], dim=-1), after

    @property
    def sees_one(self) -> bool:
        """Whether `one` has all the features: those of one class distribution."""
        return set(self.features) <= set(FEATURES_OF["classes"])

    def one(self, logits: Float[Tensor, "1 C"], memory: Memory) -> tuple[list[float], Memory]:
        """The features of a single sample as Python numbers, from the same probabilities.

        Numbers are rounded to float32, so that a threshold meets what it was tuned on.
        """
        scores = logits.float()
        shares: list[float] = (scores.softmax(-1) if self._needs_probabilities else scores)[0].tolist()
        after: Memory = {}
        found: dict[str, float] = {"confidence": max(shares)}
        if "margin" in self.features:
            second, first = sorted(shares)[-2:]
            found["margin"] = first - second
        if "entropy" in self.features:
            found["entropy"] = -sum([p * math.log(p) for p in shares if p > 0.0]) / math.log(len(shares))
        if "streak" in self.features:
            after["prediction"] = shares.index(found["confidence"])
            same = after["prediction"] == memory.get("prediction")
            after["streak"] = found["streak"] = memory["streak"] + 1.0 if same else 1.0
        if "divergence" in self.features:
            after["probabilities"] = shares
            earlier = memory.get("probabilities")
            found["divergence"] = (
                1.0 if earlier is None else sum([abs(p - q) for p, q in zip(shares, earlier, strict=True)]) / 2
            )
        return array("f", [found[name] for name in self.features]).tolist(), after

    def _see_classes(self, logits: Tensor, memory: Memory, columns: dict[str, Tensor], after: Memory) -> None:
        if logits.ndim < 2 or logits.shape[-1] < 2:
            raise InputError(
                f"answers of shape {tuple(logits.shape)} are not logits of two classes or more, which "
                f"{self._of_classes[0]!r} is a feature of; for numbers there are {', '.join(FEATURES_OF['numbers'])}"
            )
        real = None
        if logits.ndim > 2:
            logits = logits.flatten(1, -2)
            real = (logits != 0).any(-1)
        probabilities = logits.softmax(-1) if self._needs_probabilities else logits
        if "margin" in self.features:
            top = probabilities.topk(2, dim=-1).values
            columns["confidence"] = _least(top[..., 0], real)
            columns["margin"] = _least(top[..., 0] - top[..., 1], real)
        elif "confidence" in self.features:
            columns["confidence"] = _least(probabilities.amax(-1), real)
        if "entropy" in self.features:
            nats = torch.special.entr(probabilities).sum(-1)
            columns["entropy"] = _mean(nats, real) / math.log(logits.shape[-1])
        if "streak" in self.features:
            after["prediction"] = logits.argmax(-1)
            after["streak"] = _streak(after["prediction"], memory, real)
            columns["streak"] = after["streak"]
        if "divergence" in self.features:
            after["probabilities"] = probabilities
            columns["divergence"] = _divergence(probabilities, memory, real)


def observe(
    answers: Float[Tensor, "N K ..."], kind: Answers, residuals: Float[Tensor, "N K"] | None = None
) -> tuple[Float[Tensor, "N K F"], tuple[str, ...]]:
    """All features of every exit's answers, in the order of `FEATURES`, and their names."""
    observer = Observer(FEATURES_OF[kind] if residuals is None else (*FEATURES_OF[kind], "residual"))
    columns: list[Tensor] = []
    memory: Memory = {}
    for k in range(answers.shape[1]):
        seen, memory = observer(answers[:, k], memory, None if residuals is None else residuals[:, k])
        columns.append(seen)
    return torch.stack(columns, dim=1), observer.features


def _least(values: Float[Tensor, "n ..."], real: Bool[Tensor, "n t"] | None) -> Float[Tensor, " n"]:
    return values if real is None else values.masked_fill(~real, math.inf).amin(1)


def _mean(values: Float[Tensor, "n ..."], real: Bool[Tensor, "n t"] | None) -> Float[Tensor, " n"]:
    return values if real is None else (values * real).sum(1) / real.sum(1)


def _streak(prediction: Tensor, memory: Memory, real: Bool[Tensor, "n t"] | None) -> Float[Tensor, " n"]:
    if not memory:
        return torch.ones(len(prediction), device=prediction.device)
    same = prediction == memory["prediction"]
    return torch.where(same if real is None else (same | ~real).all(1), memory["streak"] + 1.0, 1.0)


def _divergence(probabilities: Tensor, memory: Memory, real: Bool[Tensor, "n t"] | None) -> Float[Tensor, " n"]:
    if not memory:
        return probabilities.new_ones(len(probabilities))
    return _mean((probabilities - memory["probabilities"]).abs().sum(-1) / 2, real)
