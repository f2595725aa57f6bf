"""Carving: which samples each split holds, written down once, so that no later step takes others for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Int64

from .errors import InputError
from .files import rebuilding
from .tensor_files import read_tensors, write_tensors

Array = np.ndarray
_FORMAT, _VERSION = "optdepth.splits", 2
_PARTS = ("rows", "digests")
_STEP = np.int64(-7046029254386353131)
"""Odd, so that a digest plus its first few multiples are different numbers."""


@dataclass(frozen=True, eq=False)
class Carving:
    """The splits of a data set as they were carved, and what is to be found again with them.

    Attributes:
        source: names the data set that the rows number.
        rows: by split, (n,) number of each sample in the source.
        digests: by split, (n,) hash of each sample as it is stored, before anything is decoded.
        mean, std: of the train split, per channel; what networks take is normalised by them.
    """

    source: str
    rows: Mapping[str, Int64[Array, " n"]]
    digests: Mapping[str, Int64[Array, " n"]]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or any(len(rows) != len(self.digests[name]) for name, rows in self.rows.items()):
            raise InputError("splits need a digest for every row; carve the data again")
        every = np.concatenate(list(self.rows.values()))
        if len(np.unique(every)) < len(every):
            raise InputError("splits share a row; carve the data again")
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std}: give one of each a channel, std > 0")

    def places(self, digests: Int64[Array, " m"], data: str) -> dict[str, Int64[Array, " n"]]:
        """Where the samples of each split lie in a table now, whatever their order in it.

        Args:
            digests: of all that the table holds.
            data: what the user calls it.

        Raises:
            InputError: the table holds fewer samples, or others; which splits lack how many.
        """
        splits = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows.values()])
        order = np.argsort(np.concatenate(list(self.rows.values())), kind="stable")  # equal ones keep their order
        written, found = _apart(np.concatenate(list(self.digests.values()))[order]), _apart(digests)
        missing, new = ~np.isin(written, found), int((~np.isin(found, written)).sum())
        if missing.any() or new:
            lacks = np.bincount(splits[order][missing], minlength=len(self.rows))
            changes = [f"{n:,} of the {name} split missing" for name, n in zip(self.rows, lacks, strict=True) if n]
            changes += [f"{new:,} new"] if new else []
            raise InputError(
                f"{data} no longer holds the samples that the network was trained with: {', '.join(changes)}; put back "
                f"what was there, or train a new run on what is: optdepth train --data {data} --out NEW"
            )
        at = np.empty_like(order)
        at[order[np.argsort(written)]] = np.argsort(found)
        return {name: at[splits == i] for i, name in enumerate(self.rows)}

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        parts = zip(_PARTS, (self.rows, self.digests), strict=True)
        tensors = {f"{part}.{name}": torch.from_numpy(value) for part, by in parts for name, value in by.items()}
        about = {"format": _FORMAT, "version": _VERSION, "source": self.source, "splits": list(self.rows)}
        write_tensors(path, tensors, {**about, "mean": self.mean, "std": self.std})

    @classmethod
    def load(cls, path: Path, *, make_it: str) -> Self:
        """Reads what `save` wrote; anything else is refused."""
        held, about = read_tensors(path, format=_FORMAT, version=_VERSION, make_it=make_it)
        splits = about.take("splits", list[str])
        rows, digests = ({name: held.take(f"{part}.{name}", torch.int64, 1) for name in splits} for part in _PARTS)
        mean, std = (about.take(name, tuple[float, ...]) for name in ("mean", "std"))
        with rebuilding(path, make_it):
            return cls(about.take("source", str), rows, digests, mean, std)


def _apart(digests: Int64[Array, " n"]) -> Int64[Array, " n"]:
    """The digests, equal ones told apart by how often they came before."""
    order = np.argsort(digests, kind="stable")
    ranked, counted = digests[order], np.arange(len(digests))
    begins = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    apart = np.empty_like(digests)
    apart[order] = ranked + _STEP * (counted - np.maximum.accumulate(np.where(begins, counted, 0)))
    return apart
