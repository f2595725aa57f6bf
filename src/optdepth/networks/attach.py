"""Exits on a model that was cut: a head at each cut, what it costs, and which exits are worth having."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..batch import hidden
from ..errors import InputError
from .graph import ModelGraph
from .heads import Pool, PooledBranch, PooledLinear, PooledMLP, TokenHead
from .parts import Cut, part
from .staged import Exit

Head = Literal["auto", "tail", "linear", "mlp", "branch", "token"]
DRAWN = ("mlp", "branch")
"""Heads that start from random weights."""
_SHARE = 0.1
"""Of the model's work that a branch may cost: what branches in front of the first stage of a resnet20 do."""
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


class HeadMaker:
    """Makes the heads before the last.

    Args:
        layouts: the nodes of the state at each cut.
        mask: the input that says what is no padding, if there is one.
        work: FLOPs of the model on the example.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: ModelGraph,
        cuts: Sequence[Cut],
        layouts: Sequence[Sequence[fx.Node]],
        mask: fx.Node | None,
        work: float,
    ) -> None:
        self.model, self.traced, self.cuts, self.layouts, self.mask = model, traced, cuts, layouts, mask
        self.work = work

    def make(self, k: int, state: Any, answer: Tensor, kind: Head, tail: nn.Module) -> nn.Module:
        """The head of exit k, untrained: its answers are zero.

        Args:
            state: after stage k, of the example.
            answer: the model's own, of the example.
            tail: the last head.
        """
        if kind in ("auto", "tail"):
            if (reason := self._no_tail(k, tail)) is None:
                return self._tail(k, state)
            if kind == "tail":
                raise InputError(f"head='tail' at {self.cuts[k].name}: {reason}; give head='auto' or 'linear'")
        x = hidden(state)
        pool = self._pool(k, x)
        width, classes = x.shape[pool.channels], answer.shape[-1]
        if kind == "token":
            if x.dim() != 3 or answer.dim() != 3:
                raise InputError(
                    f"head='token' needs states and answers (n, tokens, ...): at {self.cuts[k].name} the state is "
                    f"{tuple(x.shape)} and the answer {tuple(answer.shape)}"
                )
            made: TokenHead | PooledMLP | PooledLinear | PooledBranch = TokenHead(width, classes)
        elif answer.dim() != 2:
            raise InputError(
                f"the answer has shape {tuple(answer.shape)}, a pooled head makes (n, classes): give head='tail' or "
                "head='token'"
            )
        elif kind == "branch":
            if x.dim() != 4 or pool.channels != 1:
                raise InputError(
                    f"head='branch' needs maps (n, channels, height, width): at {self.cuts[k].name} the state is "
                    f"{tuple(x.shape)}; give head='auto', 'linear' or 'mlp'"
                )
            made = self._branch(x, classes)
        else:
            made = (PooledMLP if kind == "mlp" else PooledLinear)(width, classes, pool)
        nn.init.zeros_(made.linear.weight)
        nn.init.zeros_(made.linear.bias)
        return made.to(x)

    def _branch(self, x: Tensor, classes: int) -> PooledBranch:
        """Steps down to the size of the last map, one at least, as wide as `_SHARE` allows."""
        size, end = max(x.shape[2:]), max(self.cuts[-1].hidden.meta["val"].shape[2:])
        steps = max(1, math.ceil(math.log2(size / end)))
        width = x.shape[1]
        while True:
            made = PooledBranch(x.shape[1], classes, steps, width=width).eval()
            if width == 1 or flops_of(made.to(x), x)[0] <= _SHARE * self.work:
                return made
            width = math.ceil(width / 2)

    def _no_tail(self, k: int, tail: nn.Module) -> str | None:
        """Why a copy of the model's own tail does not fit exit k; None where it does."""
        here, there = (self.cuts[i].hidden.meta["val"].shape for i in (k, -1))
        if len(here) != len(there) or not all(_same(a, b) for a, b in zip(here, there, strict=True)):
            return f"the state has shape {tuple(here)}, the tail takes {tuple(there)}"
        if missing := [node for node in self.layouts[-1][1:] if node not in self.layouts[k]]:
            return f"the tail also reads {missing[0].name}, which is made later"
        if any(isinstance(module, _BATCH_NORMS) for module in tail.modules()):
            return "the tail holds BatchNorm, whose statistics are of the states after the last block"
        if not any(isinstance(module, nn.Linear) for module in tail.modules()):
            return "the tail ends in no linear layer"
        return None

    def _tail(self, k: int, state: Any) -> nn.Module:
        """A copy of the tail with zeros in the linear layer that answers."""
        cut, end = self.cuts[k], self.cuts[-1]
        own = part(self.traced, self.layouts[k], [self.traced.output], last=True, instead=(end.hidden, cut.hidden))
        made = copy.deepcopy(own).requires_grad_(True)
        ran: list[nn.Linear] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: ran.append(module))
            for module in made.modules()
            if isinstance(module, nn.Linear)
        ]
        made(state)
        for hook in hooks:
            hook.remove()
        for linear in reversed(ran):  # the last one, or two where their answers are averaged, as in DeiT
            nn.init.zeros_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            if not made(state).any():
                break
        return made

    def _pool(self, k: int, x: Tensor) -> Pool:
        """Channels are the dimension whose size most biases and norms of the model have."""
        sizes = [parameter.shape[0] for parameter in self.model.parameters() if parameter.dim() == 1]
        order = [1, *range(x.dim() - 1, 1, -1)] if x.dim() > 3 else range(x.dim() - 1, 0, -1)
        channels = max(order, key=lambda d: sizes.count(x.shape[d]))
        tokens = x.dim() == 3 and channels == 2 and self.mask in self.layouts[k]
        if channels == x.dim() - 1:
            channels = -1
        return Pool(channels, self.layouts[k].index(self.mask) if tokens else None)


def _same(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def flops_of(module: nn.Module, given: Any) -> tuple[float, Any]:
    """Floating-point operations of a module on what it is given, by `torch.utils.flop_counter`, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = module(given)
    return float(counter.get_total_flops()), result


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
