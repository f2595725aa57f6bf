"""Labelled tensors in memory, cut into splits: tokens, features, anything that is no image to decode."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from .batch import Inputs, State, plain, select
from .errors import InputError
from .splits import Batches, carve, paired
from .tasks import PADDING


class TensorSplit(torch.utils.data.Dataset[tuple[Inputs, Tensor]]):
    """Some rows of a table of tensors: item i is (inputs of one sample, target).

    Attributes:
        inputs: a tensor, or a tuple or dict of tensors, samples first.
        targets: (n, ...), floats as they are given, whole numbers as int64.
        source, rows: where the samples come from, as in `data.ImageSplit`.
    """

    in_memory = True

    def __init__(
        self, inputs: Inputs, targets: Shaped[Tensor, "n ..."], *, source: str, rows: Int64[np.ndarray, " n"]
    ) -> None:
        whole = not (targets.is_floating_point() or targets.dtype == torch.bool)
        self.inputs, self.targets, self.source, self.rows = inputs, targets.long() if whole else targets, source, rows

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Inputs, Tensor]:
        return tree_map(lambda tensor: tensor[i], self.inputs), self.targets[i]


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
        table: tuple[Inputs, Shaped[Tensor, "n ..."]],
        test: tuple[Inputs, Shaped[Tensor, "m ..."]],
        *,
        fit: float = 0.1,
        certify: float = 0.1,
        seed: int,
    ) -> TensorData:
        """Carves `fit` and `certify`, shares of the table, out of it; the rest is `train`.

        Labels, whole numbers (n,), are carved in like shares; of other targets, (n,) numbers, (n, C) labels or (n, t)
        tokens, any sample is as likely to be taken.

        Args:
            table, test: inputs, a tensor or a tuple or dict of tensors with the samples first, and targets. Of targets
                for tokens that are padding is -100.
            seed: of the carving.

        Raises:
            InputError: inputs and targets of different lengths, labels below 0, targets of padding that are not -100,
                or shares that leave nothing.
        """
        table, test = ((plain(inputs), targets) for inputs, targets in (table, test))
        for what, (inputs, targets) in (("table", table), ("test", test)):
            sizes = {len(tensor) for tensor in tree_leaves(inputs)}
            if sizes != {len(targets)}:
                raise InputError(f"{what}: inputs of {sorted(sizes)} samples for {len(targets)} targets")
            _check_padding(what, inputs, targets)
        labels, classes = _labels(table[1])
        carved = carve(labels, classes, {"fit": fit, "certify": certify}, seed)
        source, first = f"{name}@{_digest((table, test))}", len(labels)
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
        """Inputs and targets of a split, in its order, `size` at a time; targets of tokens are cut as these are."""
        if split not in self.splits:
            raise InputError(f"no split {split!r}: the splits are {', '.join(self.splits)}")
        held = self.splits[split]
        return Batches(held, (paired(self, part, targets) for part, targets in DataLoader(held, batch_size=size)))


def _labels(targets: Shaped[Tensor, "n ..."]) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """What to carve in like shares by, and the names of the classes; one class of all where targets are no labels."""
    if targets.dim() != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        return np.zeros(len(targets), dtype=np.int64), ("sample",)
    labels = targets.numpy().astype(np.int64)
    if labels.min(initial=0) < 0:
        row = int(labels.argmin())
        raise InputError(f"label {labels[row]} of sample {row}: give classes from 0 on, or numbers as floats, .float()")
    return labels, tuple(map(str, range(int(labels.max(initial=0)) + 1)))


def _check_padding(what: str, inputs: Inputs, targets: Shaped[Tensor, "n ..."]) -> None:
    """Refuses whole numbers that may be targets of padded tokens: they would be learned, and cut or not by chance."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if mask is None or targets.is_floating_point() or targets.shape[:2] != mask.shape:
        return
    if (targets[mask == 0] != PADDING).any():
        raise InputError(
            f"{what}: targets {tuple(targets.shape)} are shaped like attention_mask and not {PADDING} where it is 0: "
            f"of tokens, give targets.masked_fill(mask == 0, {PADDING}); of labels of the sample, give targets.float()"
        )


def _taken(table: tuple[Inputs, Tensor], rows: Int64[np.ndarray, " n"]) -> tuple[Inputs, Tensor]:
    return select(table, torch.as_tensor(rows))


def _digest(tensors: State) -> str:
    digest = hashlib.sha256()
    for tensor in tree_leaves(tensors):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
