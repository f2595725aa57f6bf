"""Exits on a model that was cut: a head at each cut, what it costs, and which exits are worth having."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..batch import State, hidden
from ..errors import InputError
from .graph import ModelGraph
from .heads import HeadKind, Place, Pool, Real, RealTokens
from .padding import Padding
from .parts import Cut, batch_first, part
from .silence import silence
from .staged import Exit

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


class Places:
    """Where heads before the last may stand.

    Args:
        layouts: the nodes of the state at each cut.
        padding: what the inputs say of it.
        states: at each cut, of the example.
        answer: the model's own, of the example.
        work: FLOPs of the model on the example.
        last: the model's own head.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: ModelGraph,
        cuts: Sequence[Cut],
        layouts: Sequence[Sequence[fx.Node]],
        *,
        padding: Padding,
        states: Sequence[State],
        answer: Tensor,
        work: float,
        last: nn.Module,
    ) -> None:
        self.model, self.traced, self.cuts, self.layouts, self.padding = model, traced, cuts, layouts, padding
        self.states, self.answer, self.work, self.last = states, answer, work, last

    def head(self, k: int, kind: HeadKind) -> nn.Module:
        """The head of exit k, untrained: it says nothing.

        Raises:
            InputError: that kind of head cannot stand there.
        """
        state = self.states[k]
        place = Place(
            name=self.cuts[k].name,
            state=state,
            answer=self.answer,
            end=hidden(self.states[-1]),
            work=self.work,
            dimension=self._dimension(hidden(state)),
            averages=partial(self._pool, k),
            own=partial(self._own, k),
        )
        made = kind.make(place).to(hidden(state)).eval()
        try:
            silence(made, state)
        except InputError as error:
            raise InputError(f"head={kind.name!r} at {place.name}: {error}; {place.instead}") from None
        real = self._real(k) if self._per_token(k) else None
        return made if real is None else RealTokens(made, real)

    def _per_token(self, k: int) -> bool:
        """Whether the model answers at every token of the state at exit k."""
        answer, packed = self.traced.output.meta["val"].shape, batch_first(self.traced, self.cuts[k].hidden)
        return len(answer) == len(packed) == 3 and statically_known_true(answer[1] == packed[1])

    def _own(self, k: int) -> nn.Module:
        """A copy of the model's own head for the state at cut k, which says nothing."""
        cut, end, state = self.cuts[k], self.cuts[-1], self.states[k]
        here, there = cut.hidden.meta["val"].shape, end.hidden.meta["val"].shape
        if len(here) != len(there) or not all(_same(a, b) for a, b in zip(here, there, strict=True)):
            raise InputError(f"the state has shape {tuple(here)}, the model's own head takes {tuple(there)}")
        if missing := [node for node in self.layouts[-1][1:] if node not in self.layouts[k]]:
            raise InputError(f"the model's own head also reads {missing[0].name}, which is made later")
        if any(isinstance(module, _BATCH_NORMS) for module in self.last.modules()):
            raise InputError("the model's own head holds BatchNorm, whose statistics are of the last block's states")
        own = part(self.traced, self.layouts[k], [self.traced.output], last=True, instead=(end.hidden, cut.hidden))
        made = copy.deepcopy(own).eval()
        try:
            silence(made, state)
        except InputError as error:
            raise InputError(f"of the model's own head, {error}") from None
        return made

    def _dimension(self, x: Tensor) -> int:
        """Channels are the dimension whose size most biases and norms of the model have."""
        sizes = [parameter.shape[0] for parameter in self.model.parameters() if parameter.dim() == 1]
        order = [1, *range(x.dim() - 1, 1, -1)] if x.dim() > 3 else range(x.dim() - 1, 0, -1)
        channels = max(order, key=lambda d: sizes.count(x.shape[d]))
        return -1 if channels == x.dim() - 1 else channels

    def _pool(self, k: int) -> Pool:
        """The mean at exit k.

        Raises:
            InputError: what is padding cannot be told, or is said of another axis than the state's.
        """
        x = hidden(self.states[k])
        channels = self._dimension(x)
        if x.dim() != 3 or channels != -1:
            return Pool(channels)
        real = self._real(k)
        if real is None and self.padding.masks:
            mask = self.padding.masks[0][1]
            raise InputError(
                f"at {self.cuts[k].name} the states {tuple(x.shape)} do not go by the tokens of {mask!r}, so which of "
                "them are padding is not known; give mask=None to average over all of them"
            )
        return Pool(channels, real)

    def _real(self, k: int) -> Real | None:
        """Which tokens of the state at exit k are real; None where none is said to be padding."""
        packed = batch_first(self.traced, self.cuts[k].hidden)
        mask = self.padding.along(packed[1])
        return None if mask is None else Real(self.layouts[k].index(mask[0]), mask[1])


def _same(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def choose(exits: Sequence[Exit], wanted: Literal["auto", "all"] | int | Sequence[str]) -> list[str]:
    """Names of the exits to keep; the last is always one of them.

    Raises:
        InputError: a number below 1 or above that of the blocks, or an unknown name.
    """
    names = [exit.name for exit in exits]
    if isinstance(wanted, bool) or not isinstance(wanted, int | str | Sequence):
        raise InputError(f"exits={wanted!r}: give 'auto', 'all', a number, or a list of names")
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(exits):
            raise InputError(f"exits={wanted}: the model has {len(exits)} places for one, give 1 to {len(exits)}")
        return _spread(exits, wanted)
    if isinstance(wanted, str):
        if wanted not in ("auto", "all"):
            raise InputError(f"exits={wanted!r}: give 'auto', 'all', a number, or a list of {', '.join(names)}")
        return names if wanted == "all" else _worthwhile(exits)
    if unknown := [name for name in wanted if name not in names]:
        raise InputError(f"no exit {', '.join(map(str, unknown))}: the exits are {', '.join(names)}")
    return [name for name in names if name in wanted or name == names[-1]]


def _worthwhile(exits: Sequence[Exit]) -> list[str]:
    """From the last to the first, the exits whose head costs less than the trunk from there to the next one kept."""
    kept = [exits[-1]]
    for exit in reversed(exits[:-1]):
        if (exit.head or 0.0) < (kept[0].trunk or 0.0) - (exit.trunk or 0.0):
            kept.insert(0, exit)
    return [exit.name for exit in kept]


def _spread(exits: Sequence[Exit], number: int) -> list[str]:
    """The exits nearest to equal shares of the trunk's cost, each once, the last among them."""
    chosen, first = [], 0
    for i in range(1, number + 1):
        goal = (exits[-1].trunk or 0.0) * i / number
        places = range(first, len(exits) - (number - i))
        place = min(places, key=lambda k: abs((exits[k].trunk or 0.0) - goal)) if i < number else len(exits) - 1
        chosen.append(exits[place].name)
        first = place + 1
    return chosen
