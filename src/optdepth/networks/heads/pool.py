"""What is no padding: the mean of a state over its real places, and answers that are zero at tokens that are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...batch import State, hidden


@dataclass(frozen=True)
class Real:
    """Which tokens are real: a tensor of the state says it.

    Attributes:
        leaf: its number among those of the state, (n, tokens).
        padding: what it is at padding.
    """

    leaf: int
    padding: float = 0.0

    def __call__(self, state: State) -> Bool[Tensor, "n tokens"]:
        mask: Tensor = tree_leaves(state)[self.leaf]
        return mask != self.padding


@dataclass(frozen=True)
class Pool:
    """(n, ...) hidden states -> (n, channels): their mean over all dimensions but the batch and the channels.

    Attributes:
        channels: the dimension of the channels, 1 for images, -1 for tokens.
        real: which tokens count, in states of tokens; all where None.
    """

    channels: int = 1
    real: Real | None = None

    def __call__(self, state: State) -> Float[Tensor, "n channels"]:
        x = hidden(state)
        if self.real is not None:
            weight = self.real(state).to(x.dtype).unsqueeze(-1)
            return (x.movedim(self.channels, -1) * weight).sum(1) / weight.sum(1)
        channels = self.channels % x.dim()
        others = tuple(d for d in range(1, x.dim()) if d != channels)
        return x.mean(others) if others else x


class RealTokens(nn.Module):
    """A head that answers at every token, (n, tokens, classes), with zeros at padding, as observations expect them."""

    def __init__(self, head: nn.Module, real: Real) -> None:
        super().__init__()
        self.head, self.real = head, real

    def forward(self, state: State) -> Float[Tensor, "n tokens classes"]:
        answers: Tensor = self.head(state)
        return torch.where(self.real(state).unsqueeze(-1), answers, 0.0)
