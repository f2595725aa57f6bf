"""Labelled tensors in memory, cut into splits: tokens, features, anything that is no image to decode."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from .batch import Inputs, State, select
from .errors import InputError
from .splits import Batches, carve


class TensorSplit(torch.utils.data.Dataset[tuple[Inputs, Tensor]]):
    """Some rows of a table of tensors: item i is (inputs of one sample, label).

    Attributes:
        inputs: a tensor, or a tuple or dict of tensors, samples first.
        labels: (n,) int64.
        source, rows: where the samples come from, as in `data.ImageSplit`.
    """

    in_memory = True

    def __init__(
        self, inputs: Inputs, labels: Int[Tensor, "n ..."], *, source: str, rows: Int64[np.ndarray, " n"]
    ) -> None:
        self.inputs, self.labels, self.source, self.rows = inputs, labels.long(), source, rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Inputs, Tensor]:
        return tree_map(lambda tensor: tensor[i], self.inputs), self.labels[i]


@dataclass(frozen=True)
class TensorData:
    """Four splits that share no sample, for `train` and `record`.

    Attributes:
        name: of the source.
        splits: `train` to train networks, `fit` to fit rules, `certify` to certify them, `test` to judge all.

    Example:
        >>> table = torch.randn(200, 4), torch.arange(200) % 2
        >>> held_out = torch.randn(50, 4), torch.arange(50) % 2
        >>> sorted(od.TensorData.of("mine", table, held_out, seed=0).splits)
        ['certify', 'fit', 'test', 'train']
    """

    name: str
    splits: Mapping[str, TensorSplit] = field(repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        table: tuple[Inputs, Int[Tensor, " n"]],
        test: tuple[Inputs, Int[Tensor, " m"]],
        *,
        fit: float = 0.1,
        certify: float = 0.1,
        seed: int,
    ) -> TensorData:
        """Carves `fit` and `certify`, shares of the table, out of it, stratified by label; the rest is `train`.

        Args:
            table, test: inputs, a tensor or a tuple or dict of tensors with the samples first, and labels.
            seed: of the carving.

        Raises:
            InputError: inputs and labels of different lengths, or shares that leave nothing.
        """
        for what, (inputs, labels) in (("table", table), ("test", test)):
            sizes = {len(tensor) for tensor in tree_leaves(inputs)}
            if sizes != {len(labels)}:
                raise InputError(f"{what}: inputs of {sorted(sizes)} samples for {len(labels)} labels")
        counted = table[1].numpy().astype(np.int64)
        classes = tuple(map(str, range(int(counted.max()) + 1)))
        carved = carve(counted, classes, {"fit": fit, "certify": certify}, seed)
        source, first = f"{name}@{_digest((table, test))}", len(counted)
        splits = {key: TensorSplit(*_taken(table, rows), source=source, rows=rows) for key, rows in carved.items()}
        splits["test"] = TensorSplit(*test, source=source, rows=np.arange(first, first + len(test[1])))
        return cls(name, splits)

    def inputs(self, held: Inputs, generator: torch.Generator | None = None) -> Inputs:
        """What a network takes, from what a split holds: columns that are padding in the whole batch are left out.

        Args:
            generator: not used; images are augmented with it.
        """
        if not isinstance(held, dict) or "attention_mask" not in held:
            return held
        mask = held["attention_mask"]
        longest = int(mask.any(0).nonzero().max()) + 1
        return {key: value[:, :longest] if value.shape == mask.shape else value for key, value in held.items()}

    def batches(self, split: str, size: int = 256) -> Batches[Inputs]:
        """Inputs and labels of a split, in its order, `size` at a time."""
        if split not in self.splits:
            raise InputError(f"no split {split!r}: the splits are {', '.join(self.splits)}")
        held = self.splits[split]
        return Batches(held, ((self.inputs(part), labels) for part, labels in DataLoader(held, batch_size=size)))


def _taken(table: tuple[Inputs, Tensor], rows: Int64[np.ndarray, " n"]) -> tuple[Inputs, Tensor]:
    return select(table, torch.as_tensor(rows))


def _digest(tensors: State) -> str:
    digest = hashlib.sha256()
    for tensor in tree_leaves(tensors):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
