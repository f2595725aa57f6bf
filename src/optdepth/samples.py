"""Samples: which ones a trace holds or a rule was fitted on, so that what was used is told from what was not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Bool, Int, Int64

from .errors import InputError

Array = np.ndarray


def _none() -> Int64[Array, " 0"]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Samples:
    """Which samples these are.

    A sample is known in two ways. Its identity is a hash of what the network took, `batch.identities`: the one thing
    that is there however samples are fed. Its row in a named source says which of those with that content it is.

    - In one source the rows decide. The same row is the same sample. Equal content in another row is a *duplicate*: the
      data hold it twice.
    - Between two sources, and where none is named, the identity decides. Equal content is then the same sample, used
      again: a copy of a folder under another name cannot be told from it. So a source is a whole data set, all its
      splits included, and who knows that samples which look alike are different ones names one source for them.

    Attributes:
        source: names the data set that the rows number.
        rows: (N,) number of each sample in its source.
        identity: (N,) hash of each sample's own content.
    """

    source: str = ""
    rows: Int64[Array, " N"] = field(default_factory=_none)
    identity: Int64[Array, " N"] = field(default_factory=_none)

    def __post_init__(self) -> None:
        for name in ("rows", "identity"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        if self.rows.ndim != 1 or self.rows.shape != self.identity.shape:
            raise InputError(f"rows have shape {self.rows.shape}, identities {self.identity.shape}; give (N,) of each")

    def __len__(self) -> int:
        return len(self.rows)

    def overlap(self, other: Samples) -> int:
        """How many samples both hold."""
        if self.source == other.source:
            return len(np.intersect1d(self.rows, other.rows))
        return len(np.intersect1d(self.identity, other.identity))

    def alike(self, other: Samples) -> str:
        """For people: by what samples of the two are the same, and what to do where they are not."""
        if self.source == other.source:
            return f"by their rows in {self.source}"
        return "by their content; if they only look alike, give both the source= of one data set, and their rows="

    def duplicates(self, used: Samples) -> int:
        """How many of these have the content of one of those used."""
        return int(np.isin(self.identity, used.identity).sum())

    def fresh(self, *used: Samples) -> Bool[Array, " N"]:
        """Which samples are evidence of their own: no one of those used has their content, nor an earlier one here."""
        first = np.zeros(len(self), dtype=bool)
        first[np.unique(self.identity, return_index=True)[1]] = True
        for other in used:
            first &= ~np.isin(self.identity, other.identity)
        return first

    def select(self, index: Int[Array, " n"] | Bool[Array, " N"]) -> Self:
        """Those at the positions, or under the mask, given."""
        return type(self)(self.source, self.rows[index], self.identity[index])

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the set of samples, in whatever order."""
        return hashlib.blake2b(np.sort(self.identity).astype("<i8").tobytes(), digest_size=8).hexdigest()
