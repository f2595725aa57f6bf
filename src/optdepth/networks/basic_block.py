"""The block of a residual network for small images."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """relu(shortcut(x) + F(x)) with two 3x3 convolutions (He et al. 2016, section 4.2, shortcut option A).

    With stride 2 the shortcut takes every other pixel and pads the new channels with zeros: no parameter.
    """

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, channels - before
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "n before h w"]) -> Float[Tensor, "n channels h2 w2"]:
        change = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(x + change)
