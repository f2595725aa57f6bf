"""Labelled: samples with their classes as users have them, gone through as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .batch import Inputs
from .errors import InputError
from .splits import Split, Splits
from .tensors import TensorData, TensorSplit

Given = tuple[Inputs, Tensor] | Iterable[Any]
"""Inputs and labels, samples first; or batches of such, as a `DataLoader` makes them: pairs, or dicts with the labels
under "labels" or "label". They are gone through more than once."""

_ROWS = 64
"""Samples a batch, where they are not given in batches."""


@dataclass(frozen=True)
class Labelled:
    """Batches of inputs and labels.

    Attributes:
        name: of the argument, for messages.
        begin: begins anew: batches from the first on.
        samples, batches: how many there are; None where that is not known before they are gone through.
        first: the first batch.
        split: the samples one by one, where they are of a `Splits`; else None.
    """

    name: str
    begin: Callable[[], Iterator[tuple[Inputs, Tensor]]] = field(repr=False)
    samples: int | None
    batches: int | None
    first: tuple[Inputs, Tensor] = field(repr=False)
    split: Split | None = field(default=None, repr=False)

    @classmethod
    def of(cls, name: str, given: Given) -> Self:
        """What a user gave as one argument.

        Raises:
            InputError: it can be gone through only once, holds nothing, or batches that are not inputs and labels.
        """
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Tensor):
            inputs, labels = given
            held = TensorSplit(inputs, labels, source="", rows=np.arange(len(labels), dtype=np.int64))
            return cls.of_split(name, TensorData(name, {"all": held}), "all")
        if iter(given) is given:
            raise InputError(
                f"{name}= can be gone through only once; give a DataLoader, a list of batches, or (inputs, labels)"
            )
        count = len(given) if isinstance(given, Sized) else None
        return cls._begun(name, lambda: (_pair(name, part) for part in given), None, count, None)

    @classmethod
    def of_split(cls, name: str, data: Splits, split: str) -> Self:
        """One split of a source."""
        held = data.splits[split]
        samples = len(held)
        return cls._begun(name, lambda: data.batches(split, _ROWS), samples, -(-samples // _ROWS), held)

    @classmethod
    def _begun(
        cls,
        name: str,
        begin: Callable[[], Iterator[tuple[Inputs, Tensor]]],
        samples: int | None,
        batches: int | None,
        split: Split | None,
    ) -> Self:
        first = next(begin(), None)
        if first is None:
            raise InputError(f"{name}= holds no samples")
        return cls(name, begin, samples, batches, first, split)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        return self.begin()

    def rows(self, most: int) -> Inputs:
        """The first samples, as many as there are up to `most`, padded with zeros to the widest of their batches."""
        parts, count = [], 0
        for inputs, labels in islice(iter(self), most):
            parts.append(inputs)
            count += len(labels)
            if count >= most:
                break
        joined: Inputs = tree_map(lambda *tensors: _joined(tensors)[:most], parts[0], *parts[1:])
        return joined


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        room = tensor.new_zeros(len(tensor), *widest)
        room[(slice(None), *(slice(size) for size in tensor.shape[1:]))] = tensor
        padded.append(room)
    return torch.cat(padded)


def _pair(name: str, part: Any) -> tuple[Inputs, Tensor]:
    """Inputs and labels of a batch as a loader made it."""
    if isinstance(part, Mapping):
        inputs = dict(part)
        key = next((key for key in ("labels", "label") if key in inputs), None)
        if key is None:
            raise InputError(f'{name}= has batches without labels: {", ".join(inputs)}; give them under "labels"')
        labels = inputs.pop(key)
    elif isinstance(part, Sequence) and len(part) == 2:
        inputs, labels = part
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    else:
        raise InputError(f"{name}= has batches of {type(part).__name__}; give pairs (inputs, labels), or dicts")
    if not isinstance(labels, Tensor):
        raise InputError(f"{name}= has labels of {type(labels).__name__}; give a tensor (n,)")
    return inputs, labels
