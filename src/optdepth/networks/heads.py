"""What turns a state into an answer.

Convolutions in a head are normalised by batch, as those of the trunk are: in training by the statistics of the batch,
in evaluation by fixed ones, so that an answer depends on its own sample alone. Normalised in groups, which mixes no
samples in training either, such heads were right several points less often (docs/depth_loss.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..batch import State, hidden

Step = Callable[[int, int], tuple[nn.Module, ...]]
"""Channels before and after -> the modules of one step of a `PooledBranch`."""


@dataclass(frozen=True)
class Pool:
    """(n, ...) hidden states -> (n, channels): their mean over all dimensions but the batch and the channels.

    Attributes:
        channels: the dimension of the channels, 1 for images, -1 for tokens.
        mask: which tensor of the state says what is no padding, (n, tokens); None where nothing is padding.
    """

    channels: int = 1
    mask: int | None = None

    def __call__(self, state: State) -> Float[Tensor, "n channels"]:
        x = hidden(state)
        if self.mask is not None:
            weight = tree_leaves(state)[self.mask].to(x.dtype).unsqueeze(-1)
            return (x * weight).sum(1) / weight.sum(1)
        channels = self.channels % x.dim()
        others = tuple(d for d in range(1, x.dim()) if d != channels)
        return x.mean(others) if others else x


class PooledLinear(nn.Module):
    """Mean over places, then one linear layer: (n, channels, h, ...) -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.pool(state))
        return logits


class PooledMLP(nn.Module):
    """Mean over places, then linear, GELU, linear, as wide inside as the state: -> (n, classes) logits."""

    def __init__(self, channels: int, classes: int, pool: Pool | None = None) -> None:
        super().__init__()
        self.pool = Pool() if pool is None else pool
        self.hidden, self.act, self.linear = nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(self.act(self.hidden(self.pool(state))))
        return logits


class TokenHead(nn.Module):
    """One linear layer at every token: (n, tokens, channels) -> (n, tokens, classes) logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: State) -> Float[Tensor, "n tokens classes"]:
        logits: Tensor = self.linear(hidden(state))
        return logits


class PooledConv(nn.Module):
    """Two 3x3 convolutions of stride 2 on the map pooled to at most 16x16, then as `PooledLinear` beside the state.

    Linear heads cannot read an early state: few channels, small receptive fields. The convolutions look further at
    1 to 2% of a small residual network's work, and the trunk is not asked to bring coarse features forward for them.
    Classifiers with convolutions of their own are those of MSDNet (Huang et al. 2018, arXiv:1703.09844), whose trunk
    keeps coarse maps for them; here the trunk is left as it is.

    Args:
        width: channels after the first convolution; twice as many after the second.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.look = nn.Sequential(*_halving(channels, width), *_halving(width, 2 * width))
        self.linear = nn.Linear(channels + 2 * width, classes)

    def forward(self, state: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n classes"]:
        seen = self.look(F.avg_pool2d(state, -(-max(state.shape[2:]) // 16)))
        logits: Tensor = self.linear(torch.cat([state.mean((2, 3)), seen.mean((2, 3))], dim=1))
        return logits


class PooledBranch(nn.Module):
    """Steps of stride 2, each to twice the channels; then as `PooledLinear` beside the state's hidden map.

    What is left of the way through a residual network at one step a size, beside the trunk: a branch in the sense of
    BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686). Each step costs the same: a 3x3 convolution about a
    quarter of a block of the trunk.

    Args:
        steps: how many, at least 1.
        step: the modules of one, from so many channels to so many; a normalised convolution when not given.
        width: channels that a 1x1 convolution brings the map to before the first step; its own when not given.
    """

    def __init__(
        self, channels: int, classes: int, steps: int, step: Step | None = None, width: int | None = None
    ) -> None:
        super().__init__()
        widths = [(width or channels) * 2**done for done in range(steps + 1)]
        made = _halving if step is None else step
        narrow = [] if widths[0] == channels else _normalised(nn.Conv2d(channels, widths[0], 1, bias=False))
        self.look = nn.Sequential(*narrow, *(part for pair in itertools.pairwise(widths) for part in made(*pair)))
        self.linear = nn.Linear(channels + widths[-1], classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        x = hidden(state)
        logits: Tensor = self.linear(torch.cat([x.mean((2, 3)), self.look(x).mean((2, 3))], dim=1))
        return logits


def _halving(before: int, after: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution that halves the map, normalised by batch."""
    return _normalised(nn.Conv2d(before, after, 3, 2, padding=1, bias=False))


def _normalised(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
