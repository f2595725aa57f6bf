"""RunningBatch: the samples of one call, which have an answer, and in which rows of the batch the others run."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class RunningBatch:
    """Book-keeping of one batch, in a few tensor operations for each exit at which samples stop.

    A row of the running batch is open while its sample has no answer. Rows that are not open ride along until the
    batch is compacted: where that would not pay, or to fill a batch up to a size.

    Args:
        samples: how many there are.
        rows: of the running batch, at least `samples`; the first ones hold the samples, the others fill it up.
        last: the exit of those that never stop.
    """

    def __init__(self, samples: int, rows: int, last: int, device: torch.device) -> None:
        self.samples, self.rows, self.left = samples, rows, samples
        self.exit: Int[Tensor, " n"] = torch.full((samples,), last, device=device)
        self.answers: Float[Tensor, "n ..."] | None = None
        self._open: Bool[Tensor, " rows"] | None = (
            None if rows == samples else torch.arange(rows, device=device) < samples
        )
        self._place: Int[Tensor, " rows"] | None = None  # of each row's sample; None: the row's own number

    def stopping(self, stops: Bool[Tensor, " rows"]) -> Int[Tensor, " leaving"]:
        """Of the rows that stop those that are open, by number. How many they are is what waits for the device."""
        return (stops if self._open is None else stops & self._open).nonzero().squeeze(1)

    def settle(
        self, k: int, logits: Float[Tensor, "rows ..."], stops: Bool[Tensor, " rows"], leaving: Int[Tensor, " leaving"]
    ) -> None:
        """Answers the rows that leave at exit k, out of those that stop there."""
        if len(leaving) == self.samples == self.rows:
            self.answers, self.left = logits, 0
            self.exit.fill_(k)
            return
        where = leaving if self._place is None else self._place.index_select(0, leaving)
        self._answer(k, logits.index_select(0, leaving), where)
        self.left -= len(leaving)
        self._open = ~stops if self._open is None else self._open & ~stops

    def settle_rest(self, k: int, logits: Float[Tensor, "rows ..."]) -> None:
        """Answers every row still open with the logits of exit k."""
        if self._open is not None:
            self.settle(k, logits, self._open, self._open.nonzero().squeeze(1))
        elif self._place is None:
            self.answers, self.left = logits, 0
            self.exit.fill_(k)
        else:
            self._answer(k, logits, self._place)
            self.left = 0

    def _answer(self, k: int, logits: Float[Tensor, "m ..."], where: Int[Tensor, " m"]) -> None:
        """Answers the samples of these numbers."""
        if self.answers is None:
            self.answers = logits.new_empty(self.samples, *logits.shape[1:])
        self.answers.index_copy_(0, where, logits)
        self.exit.index_fill_(0, where, k)

    def compact(self, room: int) -> Int[Tensor, " room"]:
        """Cuts the running batch to `room` rows, the open ones first; their numbers in the batch as it was."""
        assert self._open is not None
        index = torch.nonzero_static(self._open, size=self.left).squeeze(1)
        if room > self.left:
            filling = torch.nonzero_static(~self._open, size=room - self.left).squeeze(1)
            index = torch.cat([index, filling])
        self._place = index if self._place is None else self._place.index_select(0, index)
        self._open = torch.arange(room, device=index.device) < self.left if room > self.left else None
        self.rows = room
        return index
