"""`linear`: one linear layer on the mean over places."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from .kind import HeadKind, Place
from .pool import Pool
from .pooled import Pooled


class PooledLinear(Pooled):
    """Mean over places, then one linear layer: (n, channels, h, ...) -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__(pool)
        self.linear = nn.Linear(channels, classes)

    @property
    def first(self) -> nn.Linear:
        return self.linear

    def read(self, means: Float[Tensor, "n channels"]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(means)
        return logits


def make(place: Place) -> nn.Module:
    """As wide as the state."""
    place.whole("linear")
    return PooledLinear(place.channels, place.classes, place.pool)


KIND = HeadKind("linear", "mean over places, padding left out, then one linear layer", make)
