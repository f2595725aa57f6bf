"""What a task asks of an answer: a loss per sample. Classification is the default; any callable will do."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .errors import InputError

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""(answer (n, ...), target (n, ...)) -> loss (n,), in any unit; to train on it must be differentiable in the answer."""

PADDING = -100
"""Target of a token that does not count: torch's own `ignore_index`."""


def cross_entropy(logits: Float[Tensor, "n C"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """In nats: what training minimises unless told otherwise."""
    return F.cross_entropy(logits, labels, reduction="none")


def token_cross_entropy(logits: Float[Tensor, "n t C"], labels: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Mean cross-entropy of a sample's tokens, in nats; labels of -100 are padding."""
    nats = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=PADDING)
    return nats.sum(1) / (labels != PADDING).sum(1)


def token_error(logits: Float[Tensor, "n t C"], labels: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Share of a sample's tokens that are wrong; labels of -100 are padding."""
    real = labels != PADDING
    return ((logits.argmax(-1) != labels) & real).sum(1) / real.sum(1)


def losses_of(task: TaskLoss, answer: Float[Tensor, "n ..."], target: Tensor) -> Float[Tensor, " n"]:
    """The task's loss, which must be one number a sample.

    Raises:
        InputError: it is not.
    """
    losses = task(answer.float(), target)
    if losses.shape != answer.shape[:1]:
        raise InputError(
            f"the loss has shape {tuple(losses.shape)} for answers {tuple(answer.shape)} and targets "
            f"{tuple(target.shape)}; it must be one number a sample, ({len(answer)},): reduce it over the rest"
        )
    return losses
