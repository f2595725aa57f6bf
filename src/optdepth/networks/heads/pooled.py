"""Heads that read the mean of a state over its places and nothing else: computed once, it is learned from often."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from ...batch import State
from .pool import Pool


class Pooled(nn.Module):
    """state -> (n, classes) logits, by `pool` and then `read`."""

    def __init__(self, pool: Pool | None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        return self.read(self.pool(state))

    @property
    @abstractmethod
    def first(self) -> nn.Linear:
        """The layer that the means enter, and that alone takes them."""

    @abstractmethod
    def read(self, means: Float[Tensor, "n channels"]) -> Float[Tensor, "n classes"]:
        """Logits from the means over places."""
