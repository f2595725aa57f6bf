"""Recall: the answer at an exit may be an earlier exit's, or a pool of exits passed (theory, section 2).

A window (i, j) with i <= j <= k says that the answer at exit k is the mean of the class distributions of exits i to j.
(k, k) is the exit's own answer, (j, j) an earlier exit's, (0, k) the pool of all so far. One implementation serves the
recorder, `Trace.from_logits` and the engine. What is pooled has been computed on the way, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import InputError
from .threads import light

Windows = tuple[tuple[int, int], ...]
"""One window an exit; none at all where every exit gives its own answer."""

Past = dict[str, Tensor]
"""Class distributions (n, C) of exits passed, by number, that a deeper exit may answer by."""


class Recall:
    """Answers by the windows given, exit after exit.

    Args:
        windows: of the exits, or none.
        answering: whether each of the exits may answer; windows of the others are not kept for.
    """

    def __init__(self, windows: Windows, answering: Sequence[bool]) -> None:
        exits = range(len(answering))
        self.windows = checked(windows, len(exits)) or tuple((k, k) for k in exits)
        # The last exit at which each exit's distribution is still wanted, its own not counted.
        wanting = [k for k in exits if answering[k]]
        self.wanted = [max((k for k in wanting if k > j and j in self.exits(k)), default=-1) for j in exits]

    def exits(self, k: int) -> range:
        """Those that exit k answers by."""
        first, last = self.windows[k]
        return range(first, last + 1)

    def remember(self, k: int, logits: Float[Tensor, "n ..."], past: Past) -> Past:
        """What to carry on from exit k, for the samples that go on: distributions that a deeper exit may answer by."""
        held = {f"{j}": past[f"{j}"] for j in range(k) if self.wanted[j] > k}
        if self.wanted[k] > k:
            held[f"{k}"] = logits.float().softmax(-1)
        return held

    def answer(self, k: int, logits: Float[Tensor, "n ..."], past: Past) -> Float[Tensor, "n ..."]:
        """The logits to answer with at exit k: its own, or the logarithm of the pooled distribution.

        Args:
            logits: of exit k.
            past: as `remember` returned it at the exit before, for the same samples.
        """
        first, last = self.windows[k]
        if first == last == k:
            return logits
        pool = [past[f"{j}"] for j in range(first, min(last, k - 1) + 1)]
        if last == k:
            pool.append(logits.float().softmax(-1))
        return torch.stack(pool).mean(dim=0).log().to(logits.dtype)


def every_answer(logits: Float[Tensor, "N K C"], windows: Windows) -> Float[Tensor, "N K C"]:
    """What every exit would answer: (N, K, C) logits under the windows."""
    recall, answers = Recall(windows, (True,) * logits.shape[1]), []
    past: Past = {}
    for k in range(logits.shape[1]):
        answers.append(recall.answer(k, logits[:, k], past))
        past = recall.remember(k, logits[:, k], past)
    return torch.stack(answers, dim=1)


@light
def best_recall(logits: Float[Any, "N K C"], labels: Int[Any, " N"]) -> Windows:
    """The window of each exit that is wrong least often on these samples; its own answer where none is better.

    Args:
        logits: of every exit, on the fit split.
        labels: the right class of each sample.
    """
    scores, right = torch.as_tensor(logits), torch.as_tensor(labels)
    if scores.ndim != 3 or right.shape != scores.shape[:1]:
        raise InputError(f"logits must be (N, K, C) and labels (N,); got {tuple(scores.shape)}, {tuple(right.shape)}")
    likely, exits = scores.float().softmax(-1), scores.shape[1]
    wrong: dict[tuple[int, int], float] = {}
    for first in range(exits):
        pool = likely[:, first:].cumsum(dim=1)  # the mean's order is the sum's
        shares = (pool.argmax(-1) != right[:, None]).double().mean(dim=0)
        wrong |= {(first, first + step): float(share) for step, share in enumerate(shares)}
    chosen: list[tuple[int, int]] = []
    for k in range(exits):
        # The exit's own answer comes first, then shorter and later windows: ties go to the simpler.
        open_to_it = sorted((w for w in wrong if w[1] <= k), key=lambda w: (w != (k, k), w[1] - w[0], -w[1]))
        chosen.append(min(open_to_it, key=wrong.__getitem__))
    return tuple(chosen)


def checked(windows: Sequence[Sequence[int]], exits: int) -> Windows:
    """The windows as a tuple, or an error that says what is wrong with them."""
    given = tuple((int(first), int(last)) for first, last in windows)
    if given and len(given) != exits:
        raise InputError(f"recall has {len(given)} windows for {exits} exits; give one an exit, or none")
    for k, (first, last) in enumerate(given):
        if not 0 <= first <= last <= k:
            raise InputError(f"recall at exit {k} is ({first}, {last}); it is (i, j) with 0 <= i <= j <= {k}")
    return given
