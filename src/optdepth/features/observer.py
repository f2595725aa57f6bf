"""Observer: from answers, exit after exit, to the features a rule reads.

One implementation serves the recorder, the engine and the constructors of `Trace`, so that a rule meets at run time
exactly the numbers it was solved on. An observer computes the features it was made for and nothing else: at small
batch sizes every operation is time on the clock.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..batch import State
from ..errors import InputError
from .feature import FEATURES, Answers, features_of
from .view import View, ViewOfOne

Memory = dict[str, Any]
"""What features with a history carry from one exit to the next, by name; every tensor has the batch as its first
dimension. An observer of one sample carries plain numbers."""

Pool = Callable[[Tensor, Tensor], Tensor]
"""One number a token (n, t), and which tokens are real (n, t) -> one a sample (n,)."""


class Observer:
    """Turns answers, exit after exit, into the features named.

    Args:
        features: names out of `FEATURES`, in the order of the columns wanted.

    Raises:
        InputError: a name that no feature is registered under.
    """

    def __init__(self, features: Sequence[str]) -> None:
        unknown = [name for name in features if name not in FEATURES]
        if unknown:
            raise InputError(f"unknown feature {unknown[0]!r}; choose from {', '.join(FEATURES)}")
        self.features = tuple(features)
        records = [FEATURES[name] for name in self.features]
        self.sees_state = any(record.of == "state" for record in records)
        self.sees_one = all(record.one is not None for record in records)
        self._of_classes = next((record.name for record in records if record.of == "classes"), None)
        # The latest first: the margin takes the two likeliest classes, of which confidence is one.
        latest = sorted(records, key=list(FEATURES.values()).index, reverse=True)
        pools = {record.name: _POOLS[record.tokens] for record in records if record.of == "classes"}
        self._batch = [(record.name, record.batch, record.keep, pools.get(record.name)) for record in latest]
        self._one = [(record.name, record.one, record.keep) for record in records if record.one is not None]

    def __reduce__(self) -> tuple[type[Observer], tuple[tuple[str, ...]]]:
        return Observer, (self.features,)  # copied and sent by name: records hold functions

    def __call__(
        self, answer: Float[Tensor, "n ..."], memory: Memory, before: State | None = None, state: State | None = None
    ) -> tuple[Float[Tensor, "samples F"], Memory]:
        """Features of one exit, and the memory to pass at the next exit looked at (empty at the first).

        Args:
            answer: of the exit's head; computed on in float32 whatever its own precision.
            memory: as returned at the previous exit, for the same samples in the same order.
            before, state: of the network before and behind the last stage; needed only where `sees_state`.
        """
        view = View(answer, before, state)
        if self._of_classes is not None and (answer.ndim < 2 or answer.shape[-1] < 2):
            raise InputError(
                f"answers of shape {tuple(answer.shape)} are not logits of two classes or more, which "
                f"{self._of_classes!r} is a feature of; for numbers there are {', '.join(features_of('numbers'))}"
            )
        columns: dict[str, Tensor] = {}
        after: Memory = {}
        for name, form, keep, pool in self._batch:
            value = form(view, memory.get(name))
            if keep is not None:
                after[name] = keep(view, value)
            if value.ndim != 1:
                value = _pooled(name, value, pool, view)
            columns[name] = value if value.dtype is torch.float32 else value.float()
        if len(self.features) == 1:
            return columns[self.features[0]].unsqueeze(-1), after
        return torch.stack([columns[name] for name in self.features], dim=-1), after

    def one(self, answer: Float[Tensor, "1 C"], memory: Memory) -> tuple[list[float], Memory]:
        """The features of a single sample as Python numbers, where `sees_one`.

        Numbers are rounded to float32, so that a threshold meets what it was tuned on.
        """
        view = ViewOfOne(answer)
        after: Memory = {}
        found: list[float] = []
        for name, form, keep in self._one:
            value = form(view, memory.get(name))
            if keep is not None:
                after[name] = keep(view, value)
            found.append(value)
        return array("f", found).tolist(), after


def observe(
    answers: Float[Tensor, "N K ..."], kind: Answers, of_state: Mapping[str, Float[Any, "N K"]] | None = None
) -> tuple[Float[Tensor, "N K F"], tuple[str, ...]]:
    """All features of every exit's answers, in the order of `FEATURES`, and their names; those of the state behind.

    Args:
        of_state: features of the state by name, as they were seen when the network ran.

    Raises:
        InputError: one of them is no feature of the state, or not one number a sample and exit.
    """
    observer = Observer(features_of(kind))
    given = {name: torch.as_tensor(column).float() for name, column in (of_state or {}).items()}
    for name, column in given.items():
        if name not in features_of("state"):
            raise InputError(f"{name!r} is no feature of the state; there is {', '.join(features_of('state'))}")
        if column.shape != answers.shape[:2]:
            raise InputError(f"{name!r} has shape {tuple(column.shape)} for answers {tuple(answers.shape)}")
    columns: list[Tensor] = []
    memory: Memory = {}
    for k in range(answers.shape[1]):
        seen, memory = observer(answers[:, k], memory)
        columns.append(torch.cat([seen, *(column[:, k, None] for column in given.values())], dim=1))
    return torch.stack(columns, dim=1), (*observer.features, *given)


def _pooled(name: str, value: Tensor, pool: Pool | None, view: View) -> Float[Tensor, " n"]:
    """One number a sample, of one a token."""
    if pool is None or value.ndim != 2 or view.logits.ndim != 3:
        raise InputError(f"feature {name!r} has shape {tuple(value.shape)}; give one number a sample, or one a token")
    return pool(value, view.real)


def _least(values: Float[Tensor, "n t"], real: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    return values.masked_fill(~real, math.inf).amin(1)


def _mean(values: Float[Tensor, "n t"], real: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    return (values * real).sum(1) / real.sum(1)


_POOLS: dict[str, Pool] = {"least": _least, "mean": _mean}
