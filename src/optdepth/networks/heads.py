"""What turns a state into an answer."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PooledLinear(nn.Module):
    """Mean over the spatial dimensions, then one linear layer: (n, channels, h, ...) -> (n, classes) logits.

    A head must hold no BatchNorm: batch statistics mix the samples of a batch, and then neither a gradient
    weighted per sample nor an answer that does not depend on who else is in the batch would exist.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: Float[Tensor, "n channels ..."]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.linear(state.mean(tuple(range(2, state.dim()))))
        return logits


class PooledConv(nn.Module):
    """Two 3x3 convolutions of stride 2 on the map pooled to at most 16x16, then as `PooledLinear` beside the state.

    Linear heads cannot read an early state: few channels, small receptive fields. The convolutions look further at
    1 to 2% of a small residual network's work, and the trunk is not asked to bring coarse features forward for them.
    Classifiers with convolutions of their own are those of MSDNet (Huang et al. 2018, arXiv:1703.09844), whose trunk
    keeps coarse maps for them; here the trunk is left as it is. Group normalisation (Wu and He 2018) mixes no samples.

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


def _halving(before: int, after: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution that halves the map, normalised in groups of up to 8 channels."""
    return (
        nn.Conv2d(before, after, 3, 2, padding=1, bias=False),
        nn.GroupNorm(after // math.gcd(8, after), after),
        nn.ReLU(),
    )
