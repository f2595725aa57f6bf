"""`linear`: one linear layer on the mean over places."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ...batch import State
from .kind import HeadKind, Place
from .pool import Pool


class PooledLinear(nn.Module):
    """Mean over places, then one linear layer: (n, channels, h, ...) -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.pool(state))
        return logits


def make(place: Place) -> nn.Module:
    """As wide as the state."""
    place.whole("linear")
    return PooledLinear(place.channels, place.classes, place.pool)


KIND = HeadKind("linear", "mean over places, padding left out, then one linear layer", make)
