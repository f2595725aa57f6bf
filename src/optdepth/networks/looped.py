"""A looped (weight-tied) network: one residual block applied again and again, its input injected at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .modes import in_mode_of
from .shared import SharedModule
from .staged import BUILDERS, Exit, StagedNetwork

_MOST = 10_000
"""Steps that a network may be asked for. They share their weights, so that a file could ask for any number."""

LoopedState = tuple[Tensor, Tensor]
"""The hidden state, and the encoded input that every step sees again; both (n, width, h, w)."""


def looped(
    steps: int = 8,
    *,
    classes: int,
    channels: int = 3,
    width: int = 32,
    exits: Sequence[str] | Literal["all", "last"] = "all",
    seed: int,
) -> StagedNetwork:
    """A stem, one residual block run `steps` times, and one head that can answer after each of them.

    The input is injected at every step ("recall", Bansal et al. 2022, arXiv:2202.05826), and in training half of the
    batches begin up to `steps` steps in, without a gradient (their progressive loss): so the block learns to go on from
    its own states, however it came to them (path independence, Anil et al. 2022, arXiv:2211.09961). It can then be run
    for more steps than it was trained for: `unrolled`, or `looped_engine` to let the stationary rule say how many. What
    differs from both papers: every step answers and is trained, not the last alone; the norms are of one sample, for a
    batch's statistics would have to serve all steps.

    Args:
        steps: how often the block runs in training and recording; exits are named step1, step2, ...
        classes: how many logits.
        channels: of the input images, (n, channels, height, width), of any size.
        width: channels of the state.
        exits: "all", "last", or names, the last among them. The stationary rule needs all.
        seed: of the weights.

    Raises:
        InputError: sizes below 1, more than 10,000 steps, or an unknown exit.
    """
    if min(steps, classes, channels, width) < 1 or steps > _MOST:
        sizes = f"steps {steps}, classes {classes}, channels {channels}, width {width}"
        raise InputError(f"{sizes}: each at least 1, and at most {_MOST:,} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block, head = LoopedBlock(width), LoopedHead(width, classes)
        stem = LoopedStem(channels, width, block, ahead=4 * steps)
    config = {"family": "looped", "classes": classes, "channels": channels, "width": width, "seed": seed}
    network = _unroll(stem, block, head, steps, config)
    names = [exit.name for exit in network.exits]
    if isinstance(exits, str):
        if exits not in ("all", "last"):
            raise InputError(f"exits={exits!r}: give 'all', 'last', or a list of {', '.join(names)}")
        exits = names if exits == "all" else names[-1:]
    return network.keep(exits)


def unrolled(network: StagedNetwork, steps: int) -> StagedNetwork:
    """The same looped network, weights shared, with so many steps: more than it was trained for, or fewer.

    Raises:
        InputError: a network that is not looped or lacks exits, or no step.
    """
    block, head = network.stages[-1], network.heads[-1]
    if not (isinstance(block, LoopedBlock) and isinstance(head, LoopedHead)):
        raise InputError("only a looped network with an exit after every step can be unrolled: build it with looped")
    if steps < 1:
        raise InputError(f"steps={steps}: give at least 1")
    return in_mode_of(_unroll(network.stem, block, head, steps, network.config), network)


def _unroll(
    stem: nn.Module, block: nn.Module, head: nn.Module, steps: int, config: dict[str, object] | None
) -> StagedNetwork:
    """The last stage and the last head own the weights: those two are never dropped."""
    return StagedNetwork(
        stem,
        [*[SharedModule(block)] * (steps - 1), block],
        [*[SharedModule(head)] * (steps - 1), head],
        [Exit(f"step{k}", k) for k in range(1, steps + 1)],
        None if config is None else {**config, "steps": steps, "exits": "all"},
    )


@final
class LoopedStem(nn.Module):
    """Encodes the input; the hidden state starts as the code.

    In training half of the batches start 1 to `ahead` steps in, equally likely, from torch's global generator.
    """

    def __init__(self, channels: int, width: int, block: LoopedBlock, ahead: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(1, width))
        self.block, self.ahead = SharedModule(block), ahead

    def forward(self, inputs: Float[Tensor, "n channels h w"]) -> LoopedState:
        code = self.encode(inputs)
        state = (code, code)
        if self.training and torch.rand(()) < 0.5:
            with torch.no_grad():
                for _ in range(int(torch.randint(self.ahead, ())) + 1):
                    state = self.block(state)
        return state[0], code


@final
class LoopedBlock(nn.Module):
    """h -> norm(relu(h + F(h, x))), F two 3x3 convolutions with the code x added between them.

    The norm over each sample keeps the state's size the same at every step, so that it neither grows nor dies out
    however many there are (the block of multiscale DEQ without the scales, Bai et al. 2020, arXiv:2006.08656).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(1, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(1, width)
        self.norm3 = nn.GroupNorm(1, width)

    def forward(self, state: LoopedState) -> LoopedState:
        hidden, code = state
        change = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(hidden) + code))))
        return self.norm3(F.relu(hidden + change)), code


@final
class LoopedHead(nn.Module):
    """One linear layer on the mean of the hidden state over its places, (n, width, h, w) -> (n, classes) logits.

    That mean is 1-Lipschitz, and the layer is shared by all steps, as bound (C) of theory section 5 assumes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, state: LoopedState) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(state[0].mean((2, 3)))
        return logits


BUILDERS["looped"] = looped
