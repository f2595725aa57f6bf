"""The mean of a state over its places: what most heads read."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...batch import State, hidden


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
