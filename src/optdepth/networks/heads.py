"""What turns a state into an answer.

A head must hold no BatchNorm: batch statistics mix the samples of a batch, and then neither a gradient weighted per
sample nor an answer that does not depend on who else is in the batch would exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .staged import State, hidden


@dataclass(frozen=True)
class Pool:
    """(n, ...) hidden states -> (n, channels): their mean over all dimensions but the batch and the channels.

    Attributes:
        channels: the dimension of the channels, 1 for images, -1 for tokens.
        mask: which tensor of the state says what is no padding, (n, tokens); None where nothing is padding.
    """

    channels: int = 1
    mask: int | None = None

    def __call__(self, state: State) -> Float[Tensor, "n channels"]:
        x = hidden(state)
        if self.mask is not None:
            weight = tree_leaves(state)[self.mask].to(x.dtype).unsqueeze(-1)
            return (x * weight).sum(1) / weight.sum(1)
        channels = self.channels % x.dim()
        others = tuple(d for d in range(1, x.dim()) if d != channels)
        return x.mean(others) if others else x


class PooledLinear(nn.Module):
    """Mean over places, then one linear layer: (n, channels, h, ...) -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.pool(state))
        return logits


class PooledMLP(nn.Module):
    """Mean over places, then linear, GELU, linear, as wide inside as the state: -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool
        self.hidden, self.act, self.linear = nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.act(self.hidden(self.pool(state))))
        return logits


class TokenHead(nn.Module):
    """One linear layer at every token: (n, tokens, channels) -> (n, tokens, classes) logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n tokens classes"]:
        logits: Tensor = self.linear(hidden(state))
        return logits
