"""`tail`: residual blocks down to the size of the last map."""

from __future__ import annotations

from torch import nn

from ..basic_block import BasicBlock
from . import conv
from .branch import PooledBranch, halvings
from .kind import HeadKind, Place

SHARE = 0.2
"""Of a staged model's work that a look may cost at most; in the first stage of a resnet20 it is 17%."""


def make(place: Place) -> nn.Module:
    """Down to the size of the last map; where the state has that size already, as "conv"."""
    x = place.map("tail")
    place.whole("tail")
    if (steps := halvings(place)) == 0:
        return conv.make(place)
    return place.narrowed(
        lambda width: PooledBranch(x.shape[1], place.classes, steps, _block, width), x.shape[1], SHARE
    )


def _block(before: int, after: int) -> tuple[nn.Module, ...]:
    """A residual block that halves the map, as a step of a `PooledBranch`."""
    return (BasicBlock(before, after, 2),)


KIND = HeadKind(
    "tail",
    "for maps: a residual block of stride 2 for each halving down to the size of the last one, then linear beside the "
    "mean; narrowed in a staged model until a look costs a fifth of it at most",
    make,
    draws=True,
)
