"""What ends a sequence that is written token by token: tokens, or strings in its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError

Decode = Callable[[list[int]], str]
"""Token numbers of one sequence -> their text."""


class Ending:
    """Tells which sequences go on.

    Args:
        end: a token that ends a sequence, or several.
        stop: a string that does, or several.
        decode: tokens to text.
        vocabulary: how many tokens there are.

    Raises:
        InputError: tokens that are none, empty strings, or strings without `decode`.
    """

    def __init__(
        self, end: int | Sequence[int] | None, stop: str | Sequence[str], decode: Decode | None, vocabulary: int
    ) -> None:
        self.ends = [] if end is None else [end] if isinstance(end, int) else list(end)
        for token in self.ends:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
                raise InputError(f"end={token!r} is no token: the model has 0 to {vocabulary - 1}")
        self.stops, self.decode = [stop] if isinstance(stop, str) else list(stop), decode
        if not all(isinstance(text, str) and text for text in self.stops):
            raise InputError(f"stop={self.stops}: give strings of a character or more")
        if bool(self.stops) != (decode is not None):
            raise InputError("stop= and decode= go together: give decode=tokenizer.decode and the strings to stop at")

    def going(self, written: Int[Tensor, "n t"]) -> Int[Tensor, " m"] | None:
        """The rows that have not ended with their newest token; None where all go on."""
        if not self.ends and self.decode is None:
            return None
        going = torch.ones(len(written), dtype=torch.bool, device=written.device)
        if self.ends:
            going &= ~torch.isin(written[:, -1], torch.tensor(self.ends, device=written.device))
        if self.decode is not None:
            ended = [self._stopped(self.decode(tokens)) for tokens in written.tolist()]
            going &= ~torch.tensor(ended, device=written.device)
        return None if going.all() else going.nonzero()[:, 0]

    def _stopped(self, text: Any) -> bool:
        if not isinstance(text, str):
            raise InputError(
                f"decode= returned a {type(text).__name__}: it takes a list of token numbers, gives a text"
            )
        return any(stop in text for stop in self.stops)
