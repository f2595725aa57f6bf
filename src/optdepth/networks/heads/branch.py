"""`branch`: convolutions down to the size of the last map and one further."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...batch import State, hidden
from . import conv
from .kind import HeadKind, Place

Step = Callable[[int, int], tuple[nn.Module, ...]]
"""Channels before and after -> the modules of one step of a `PooledBranch`."""

SHARE = 0.1
"""Of a staged model's work that a look may cost at most; in the first stage of a resnet20 it is 9%."""


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
        made = conv.halving if step is None else step
        narrow = [] if widths[0] == channels else conv.normalised(nn.Conv2d(channels, widths[0], 1, bias=False))
        self.look = nn.Sequential(*narrow, *(part for pair in itertools.pairwise(widths) for part in made(*pair)))
        self.linear = nn.Linear(channels + widths[-1], classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        x = hidden(state)
        logits: Tensor = self.linear(torch.cat([x.mean((2, 3)), self.look(x).mean((2, 3))], dim=1))
        return logits


def make(place: Place) -> nn.Module:
    """Down to half the size of the last map; where the state has that map's size already, as "conv"."""
    x = place.map("branch")
    place.whole("branch")
    if (steps := halvings(place)) == 0:
        return conv.make(place)  # the map is small: it sees as much for less
    return place.narrowed(
        lambda width: PooledBranch(x.shape[1], place.classes, steps + 1, width=width), x.shape[1], SHARE
    )


def halvings(place: Place) -> int:
    """How often the state's map is to be halved until it is as small as the last one."""
    sizes = (max(x.shape[2:]) for x in (hidden(place.state), place.end))
    here, end = sizes
    return max(0, math.ceil(math.log2(here / end)))


KIND = HeadKind(
    "branch",
    "for maps: convolutions of stride 2 down to half the size of the last one, then linear beside the mean; narrowed "
    "in a staged model until a look costs a tenth of it at most",
    make,
    draws=True,
)
