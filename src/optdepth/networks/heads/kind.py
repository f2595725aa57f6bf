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
        pool: the mean of a state over its places, padding left out.
        own: makes a copy of the network's own head that reads this state, untrained, or raises an InputError that says
            why it cannot.
    """

    name: str
    state: State
    answer: Tensor
    end: Tensor
    work: float
    pool: Pool
    own: Callable[[], nn.Module]

    @property
    def channels(self) -> int:
        """Of the state's hidden tensor."""
        return hidden(self.state).shape[self.pool.channels]

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
        if x.dim() != 4 or self.end.dim() != 4 or self.pool.channels != 1:
            raise InputError(
                f"head={kind!r} needs maps (n, channels, height, width): at {self.name} the state is "
                f"{tuple(x.shape)}; give head='auto', 'linear' or 'mlp'"
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
    def instead(self) -> str:
        """What to ask for where a kind does not fit here."""
        x = hidden(self.state)
        if self.answer.dim() == 2:
            return "give head='linear'"
        if self.answer.dim() == x.dim() == 3 and self.answer.shape[1] == x.shape[1]:
            return "give head='token'"
        try:
            self.own()
        except InputError as error:
            return f"a copy of the network's own head is all that could, and at {self.name} there is none, as {error}"
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
