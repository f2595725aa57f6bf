"""Keys and values of a language model that can be taken back, in room that is taken once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class RewindingCache:
    """Stands for a cache of transformers, and holds every layer whole, those with a sliding window too.

    A layer writes its keys and values behind the first `length` columns, over whatever was there. So tokens are taken
    back, and layers that have not run on them are called later, by saying what `length` is.

    Args:
        room: columns, at most.

    Attributes:
        length: columns in front of the tokens that come next.
    """

    is_compileable = False

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer calls: stores keys and values, (n, heads, t, d), and returns them with those in front."""
        if layer_idx not in self._held:
            room = (one.new_zeros(*one.shape[:2], self.room, one.shape[3]) for one in (keys, values))
            self._held[layer_idx] = (next(room), next(room))
        first, end = self.length, self.length + keys.shape[2]
        found = self._held[layer_idx]
        for held, new in zip(found, (keys, values), strict=True):
            held[:, :, first:end] = new
        return found[0][:, :, :end], found[1][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in front of the tokens that come next, at every layer."""
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The column of the first token that comes next."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many columns a mask has, and that the first is column 0."""
        return self.length + query_length, 0

    def select(self, rows: Int[Tensor, " m"]) -> None:
        """Keeps some of the sequences."""
        self._held = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._held.items()}

    def shift(self, by: Int[Tensor, " n"], length: int) -> None:
        """Moves the columns of each sequence to the right by so many, or to the left where negative: `length` remain.

        So sequences of which different numbers of tokens were taken back end in one column again, as if they had been
        padded on the left.
        """
        for row in by.nonzero()[:, 0].tolist():
            step = int(by[row])
            to, first = max(step, 0), max(-step, 0)
            for pair in self._held.values():
                for held in pair:
                    held[row, :, to:length] = held[row, :, first : length - step].clone()


def moved(rows: Int[Tensor, "n w"], by: Int[Tensor, " n"], length: int) -> Int[Tensor, "n length"]:
    """The same for numbers that belong to columns; 0 where there was none."""
    column = torch.arange(length, device=rows.device)[None] - by[:, None]
    there = (column >= 0) & (column < rows.shape[1])
    return rows.gather(1, column.clamp(0, rows.shape[1] - 1)) * there


def positions(mask: Int[Tensor, "n all"] | None, length: int, count: int, device: torch.device) -> Int[Tensor, "n t"]:
    """The position of each of `count` tokens behind `length` columns, (1, count) where nothing is padded."""
    if mask is None:
        return torch.arange(length, length + count, device=device)[None]
    return (mask.cumsum(1) - 1).clamp(min=0)[:, length : length + count]
