"""`mlp`: one hidden layer on the mean over places."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from .kind import HeadKind, Place
from .pool import Pool
from .pooled import Pooled


class PooledMLP(Pooled):
    """Mean over places, then linear, GELU, linear, as wide inside as the state: -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__(pool)
        self.hidden, self.act, self.linear = nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, classes)

    @property
    def first(self) -> nn.Linear:
        return self.hidden

    def read(self, means: Float[Tensor, "n channels"]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.act(self.hidden(means)))
        return logits


def make(place: Place) -> nn.Module:
    """As wide as the state."""
    place.whole("mlp")
    return PooledMLP(place.channels, place.classes, place.pool)


KIND = HeadKind("mlp", "mean over places, padding left out, then a hidden layer and a linear one", make, draws=True)
