"""What drafting and verifying cost on this machine, at a number of sequences and a length."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..networks.lens import ShortHead
from ..networks.spans import Span
from ..stopping.drafts import DraftCosts
from .rounds import Batch, Parts

PASSES = 8
"""Of the first layers in a round, at most."""
_TIMED = (1, 2, 3, 4, 6, 8)
"""Tokens verified at once that are timed; between them times are interpolated."""
_TURNS = 7


@torch.inference_mode()
def draft_costs(
    parts: Mapping[int, Parts], whole: Span, short: ShortHead, prompt: Int[Tensor, "n p"]
) -> dict[int, DraftCosts]:
    """Of every exit, by the clock: all that is compared takes turns, and of each the median counts.

    Args:
        prompt: n sequences of the length at which tokens are written.
    """
    length = prompt.shape[1]
    batch = Batch(prompt, None, 0, PASSES)
    batch.begin(whole)
    some = prompt[:, :1].repeat(1, PASSES)
    jobs: dict[tuple[int, str, int], Callable[[], object]] = {}

    def verify(upper: Span, states: Tensor, count: int) -> Callable[[], object]:
        return lambda: upper.answers(some[:, :count], states=states[:, :count], **batch.call(length, count))

    for exit, each in parts.items():
        lower, lens = each.lower, each.lens
        states, normed = lower.states(some, **batch.call(length, PASSES))
        assert states is not None
        jobs[exit, "draft", 1] = lambda lower=lower: lower.states(some[:, :1], **batch.call(length, 1))  # type: ignore[misc]
        jobs[exit, "look", 1] = lambda lens=lens, x=normed[:, :1]: _looked(lens, short, x)  # type: ignore[misc]
        jobs.update({(exit, "verify", m): verify(each.upper, states, m) for m in _TIMED})
    jobs[0, "full", 1] = lambda: whole.answers(some[:, :1], **batch.call(length, 1))
    spent = _medians(jobs)
    return {
        exit: DraftCosts(
            full=spent[0, "full", 1],
            draft=spent[exit, "draft", 1],
            look=spent[exit, "look", 1],
            verify=np.maximum.accumulate(
                np.interp(np.arange(1, PASSES + 1), _TIMED, [spent[exit, "verify", m] for m in _TIMED])
            ),
        )
        for exit in parts
    }


def _looked(lens: torch.nn.Module, short: ShortHead, x: Tensor) -> float:
    """A look and a draft."""
    logits = short(lens(x, x))[:, 0].float()
    return float(logits.softmax(-1).amax(-1)[0]) + float(logits.argmax(-1)[0])


def _medians(jobs: Mapping[tuple[int, str, int], Callable[[], object]]) -> dict[tuple[int, str, int], float]:
    """Milliseconds of each."""
    spent = np.empty((_TURNS + 1, len(jobs)))
    for turn in range(_TURNS + 1):
        for i, job in enumerate(jobs.values()):
            begin = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[turn, i] = 1e3 * (time.perf_counter() - begin)
    middle = np.median(spent[1:], axis=0)  # the first turn warms up
    return dict(zip(jobs, middle.tolist(), strict=True))
