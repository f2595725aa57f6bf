"""`conv`: two convolutions on a map made small.

Convolutions in a head are normalised by batch, as those of the trunk are: in training by the statistics of the batch,
in evaluation by fixed ones, so that an answer depends on its own sample alone. Normalised in groups, which mixes no
samples in training either, such heads were right several points less often (docs/depth_loss.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...batch import State, hidden
from .kind import HeadKind, Place

SHARE = 0.1
"""Of a staged model's work that a look may cost at most; of a resnet20 it is 1 to 2%."""


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
        self.look = nn.Sequential(*halving(channels, width), *halving(width, 2 * width))
        self.linear = nn.Linear(channels + 2 * width, classes)

    def forward(self, state: State) -> Float[Tensor, "n classes"]:
        x = hidden(state)
        seen = self.look(F.avg_pool2d(x, -(-max(x.shape[2:]) // 16)))
        logits: Tensor = self.linear(torch.cat([x.mean((2, 3)), seen.mean((2, 3))], dim=1))
        return logits


def make(place: Place) -> nn.Module:
    """As wide in the end as the state after the last stage, unless that costs more than `SHARE`."""
    x = place.map("conv")
    place.whole("conv")
    width = max(1, place.end.shape[1] // 2)
    return place.narrowed(lambda width: PooledConv(x.shape[1], place.classes, width), width, SHARE)


def halving(before: int, after: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution that halves the map, normalised by batch."""
    return normalised(nn.Conv2d(before, after, 3, 2, padding=1, bias=False))


def normalised(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    """A convolution, its norm over the batch, and a ReLU."""
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()


KIND = HeadKind(
    "conv",
    "for maps: two convolutions of stride 2 on the map pooled to at most 16x16, then linear beside the mean",
    make,
    draws=True,
)
