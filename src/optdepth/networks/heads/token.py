"""`token`: one linear layer at every token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ...batch import State, hidden
from ...errors import InputError
from .kind import HeadKind, Place


class TokenHead(nn.Module):
    """One linear layer at every token: (n, tokens, channels) -> (n, tokens, classes) logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n tokens classes"]:
        logits: Tensor = self.linear(hidden(state))
        return logits


def make(place: Place) -> nn.Module:
    """As wide as the state."""
    x = hidden(place.state)
    if not place.per_token:
        raise InputError(
            f"head='token' needs states and answers (n, tokens, ...): at {place.name} the state is "
            f"{tuple(x.shape)} and the answer {tuple(place.answer.shape)}; {place.instead}"
        )
    return TokenHead(x.shape[-1], place.classes)


KIND = HeadKind("token", "one linear layer at every token", make)
