"""What a kind of exit head is, and the place that a head is made for. A kind is one record, registered by one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ...batch import State, hidden
from ...errors import InputError
from ..work import flops_of
from .pool import Pool


@dataclass(frozen=True, eq=False)
class Place:
    """Where a head is to stand: all that a kind may make it from.

    Attributes:
        name: of the exit.
        state: after the exit's stage, of an example of n samples.
        answer: (n, classes), or (n, tokens, classes): of the last exit, on the example.
        end: (n, ...) the hidden states after the last stage.
        work: FLOPs of the network without exits on the example, for kinds that keep to a share of it; infinite in
            networks whose widths are made for their heads.
        dimension: of the channels in the hidden tensor, 1 or -1.
        averages: makes `pool`, or raises an InputError where it cannot be told what is padding.
        own: makes a copy of the network's own head that reads this state, untrained, or raises an InputError that says
            why it cannot.
    """

    name: str
    state: State
    answer: Tensor
    end: Tensor
    work: float
    dimension: int
    averages: Callable[[], Pool]
    own: Callable[[], nn.Module]

    @property
    def channels(self) -> int:
        """Of the state's hidden tensor."""
        return hidden(self.state).shape[self.dimension]

    @property
    def pool(self) -> Pool:
        """The mean of a state over its places, padding left out.

        Raises:
            InputError: it cannot be told what is padding.
        """
        return self.averages()

    @property
    def classes(self) -> int:
        """Numbers in an answer, or in that of one token."""
        return self.answer.shape[-1]

    def map(self, kind: str) -> Tensor:
        """The hidden tensor, where it is a map (n, channels, height, width).

        Raises:
            InputError: it is none; the message names the kind of head that needs one.
        """
        x = hidden(self.state)
        if x.dim() != 4 or self.end.dim() != 4 or self.dimension != 1:
            raise InputError(
                f"head={kind!r} needs maps (n, channels, height, width): at {self.name} the state is "
                f"{tuple(x.shape)}; {self.instead}"
            )
        return x

    def whole(self, kind: str) -> None:
        """Refuses a kind of head that answers whole samples where the network answers otherwise.

        Raises:
            InputError: the answers are not (n, classes).
        """
        if self.answer.dim() != 2:
            raise InputError(
                f"head={kind!r} answers (n, classes), the network {tuple(self.answer.shape)}: {self.instead}"
            )

    @property
    def per_token(self) -> bool:
        """Whether the network answers at every token of the state."""
        x = hidden(self.state)
        return self.answer.dim() == x.dim() == 3 and self.answer.shape[1] == x.shape[1]

    @property
    def other(self) -> str:
        """What to ask for where a copy of the network's own head does not fit."""
        if self.answer.dim() == 2:
            return "give head='linear'"
        return "give head='token'" if self.per_token else f"no other kind of head answers {tuple(self.answer.shape)}"

    @property
    def instead(self) -> str:
        """What to ask for where any other kind does not fit."""
        if self.answer.dim() == 2 or self.per_token:
            return self.other
        try:
            self.own()
        except InputError as error:
            return f"only a copy of the network's own head answers so, and here {error}"
        return "give head='own'"

    def narrowed(self, make: Callable[[int], nn.Module], width: int, share: float) -> nn.Module:
        """What `make` makes of a width, halved until a look costs at most this share of the network's work."""
        while True:
            made = make(width).eval().to(hidden(self.state))
            if width == 1 or self.work == math.inf or flops_of(made, self.state)[0] <= share * self.work:
                return made.train()
            width = -(-width // 2)


@dataclass(frozen=True)
class HeadKind:
    """A kind of early head, for `resnet(heads=...)` and `stage(head=...)` alike.

    Attributes:
        name: by which it is asked for, letters and digits.
        words: what it is, in a line.
        make: place -> head, state -> answer. An InputError of its own says why a place does not suit it.
        draws: whether it starts from random weights, and so needs a seed.
    """

    name: str
    words: str
    make: Callable[[Place], nn.Module]
    draws: bool = False
