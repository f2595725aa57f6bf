"""Splits: data cut into parts that share no sample, for training, fitting, certifying and judging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from sklearn.model_selection import train_test_split
from torch import Tensor

from .batch import Inputs
from .errors import InputError
from .tasks import PADDING

In_co = TypeVar("In_co", bound=Inputs, covariant=True)


@runtime_checkable
class Split(Protocol):
    """Some samples of a source: item i is (what is held of one sample, its target)."""

    @property
    def source(self) -> str:
        """Names the data set that the samples come from: one name for all its splits, another for other data."""

    @property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """Number of each sample in its source; no two samples of the data set share one."""

    @property
    def in_memory(self) -> bool:
        """Whether reading an item decodes nothing."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Any, Any]: ...


class Batches(Iterator[tuple[In_co, Tensor]]):
    """Inputs and targets of a split, in its order, that say where they come from.

    Attributes:
        source: of the split.
        rows: (m,) of the samples that are still to come.
    """

    def __init__(self, split: Split, batches: Iterator[tuple[In_co, Tensor]]) -> None:
        self.source, self.rows, self._batches = split.source, split.rows, batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[In_co, Tensor]:
        inputs, targets = next(self._batches)
        self.rows = self.rows[len(targets) :]
        return inputs, targets


@runtime_checkable
class Splits(Protocol):
    """What `train` and `record` read: images, tables of tensors, or a source of your own.

    `splits` has `train` to train networks, `fit` to fit rules, `certify` to certify them, `test` to judge all.
    """

    @property
    def name(self) -> str:
        """Of the source."""

    @property
    def splits(self) -> Mapping[str, Split]:
        """By name; no sample is in two of them."""

    def inputs(self, held: Any, generator: torch.Generator | None = None) -> Inputs:
        """What a network takes, from what a split holds; augmented where a generator is given, for training."""

    def batches(self, split: str, size: int = 256) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and targets of a split, in its order, `size` at a time; `Batches` where they should say whence."""


def paired(data: Splits, held: Any, targets: Tensor, generator: torch.Generator | None = None) -> tuple[Inputs, Tensor]:
    """What a network takes, from what a split holds, and the targets that belong to it.

    Targets (n, t, ...) of tokens are cut where the inputs' tokens were: the columns that inputs no longer have, if the
    targets there are all padding.
    """
    inputs = data.inputs(held, generator)
    if not isinstance(held, dict) or not isinstance(inputs, dict) or "attention_mask" not in held:
        return inputs, targets
    before, after = held["attention_mask"].shape, inputs["attention_mask"].shape
    if targets.shape[:2] == before and bool((targets[:, after[1] :] == PADDING).all()):
        targets = targets[:, : after[1]]
    return inputs, targets


def carve(
    labels: Int64[np.ndarray, " n"], classes: tuple[str, ...], shares: dict[str, float], seed: int
) -> dict[str, Int64[np.ndarray, " m"]]:
    """Sorted row numbers of each share, and of the rest as `train`; stratified by label."""
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed={seed}: give a whole number from 0 to {(1 << 32) - 1}")
    left = 1 - sum(shares.values())
    if left <= 0 or min(shares.values()) <= 0:
        raise InputError(f"shares {shares}: give positive ones that leave something to train on")
    counts = np.bincount(labels, minlength=len(classes))
    there = np.flatnonzero(counts)  # a table need not have all classes of a model
    smallest, share = int(there[counts[there].argmin()]), min(left, *shares.values())
    if counts[smallest] * share < 1:
        raise InputError(
            f"class {classes[smallest]!r} has {counts[smallest]} samples, too few for a stratified split with "
            f"a share of {share:.3g}: give at least {int(np.ceil(1 / share))} a class, or larger shares"
        )
    rest, parts = np.arange(len(labels)), {}
    for key, share in shares.items():
        size = round(share * len(labels))
        rest, part = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=seed)
        parts[key] = np.sort(part)
    return {"train": np.sort(rest), **parts}
