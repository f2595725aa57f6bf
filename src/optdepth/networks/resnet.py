"""Residual networks of our own for small images."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .heads import PooledBranch, PooledConv, PooledLinear
from .staged import BUILDERS, Exit, StagedNetwork


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


def _block(before: int, after: int) -> tuple[nn.Module, ...]:
    """A residual block that halves the map, as a step of a `PooledBranch`."""
    return (BasicBlock(before, after, 2),)


HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": lambda size, classes, width: PooledLinear(size, classes),
    "conv": lambda size, classes, width: PooledConv(size, classes, 2 * width),
    "branch": lambda size, classes, width: (
        PooledBranch(size, classes, {width: 3, 2 * width: 2}[size])  # all end at the same size
        if size < 4 * width
        else PooledConv(size, classes, 2 * width)  # where the map is small, it sees as much for less
    ),
    "tail": lambda size, classes, width: (
        PooledBranch(size, classes, {width: 2, 2 * width: 1}[size], _block)
        if size < 4 * width
        else PooledConv(size, classes, 2 * width)
    ),
}
"""Kinds of early heads: channels of the state, classes, and width of the network -> head."""

Heads = Literal["linear", "conv", "branch", "tail", "conv+tail"]


def resnet(
    depth: int = 20,
    *,
    classes: int,
    channels: int = 3,
    width: int = 16,
    exits: Sequence[str] | Literal["all", "ends", "last"] = "all",
    heads: Heads = "linear",
    seed: int,
) -> StagedNetwork:
    """The residual network for CIFAR of He et al. 2016, arXiv:1512.03385: 6n+2 layers in three stages.

    Args:
        depth: 6n+2 layers, at least 8; n blocks a stage.
        classes: how many logits.
        channels: of the input images, (n, channels, height, width), of any size from 8x8.
        width: channels of the first stage; the others have two and four times as many.
        exits: "all" for one after each block; "ends", after the first block and each of the last stage, where solved
            rules look if heads are large (docs/depth_loss.md); "last"; or names such as "stage1.block2", the last among
            them.
        heads: of the exits before the last: "linear" (`PooledLinear`); "conv" (`PooledConv`), which answer far better
            early and cost 1 to 2% of a resnet20 at each look; "branch" (`PooledBranch` in the first two stages,
            `PooledConv` in the third), which answer better still there and cost 9 and 6%; "tail" (a residual block a
            step there), better again at 17 and 9%; or "conv+tail", in the first two stages two exits a block, such as
            "stage1.block2" and "stage1.block2+tail": a glance, and a look for those whom it leaves unsure.
        seed: of the weights. Trunk and heads do not depend on which exits are chosen.

    Raises:
        InputError: a depth that is not 6n+2 (the nearest are named), an unknown exit or kind of head, or sizes below 1.

    Example:
        >>> len(od.resnet(20, classes=10, seed=0).exits)
        9
    """
    if depth < 8 or (depth - 2) % 6:
        lower = max(8, depth - (depth - 2) % 6)
        raise InputError(f"depth {depth} is not 6n+2 from 8 on: the nearest are {lower} and {lower + 6}")
    if min(classes, channels, width) < 1:
        raise InputError(f"classes {classes}, channels {channels}, width {width}: each must be at least 1")
    if heads not in get_args(Heads):
        raise InputError(f"heads={heads!r}: give {' or '.join(map(repr, get_args(Heads)))}")
    per_stage = (depth - 2) // 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(per_stage, classes, channels, width, heads.split("+"))
    names = [exit.name for exit in network.exits]
    if isinstance(exits, str):
        ends = [exit.name for exit in network.exits if exit.depth == 1 or exit.depth > 2 * per_stage]
        chosen = {"all": names, "ends": ends, "last": names[-1:]}
        if exits not in chosen:
            raise InputError(f"exits={exits!r}: give 'all', 'ends', 'last', or a list of {', '.join(names)}")
        exits = chosen[exits]
    network.config = {
        "family": "resnet",
        "depth": depth,
        "classes": classes,
        "channels": channels,
        "width": width,
        "heads": heads,
        "seed": seed,
    }
    # A layout in memory that a CPU trains with in a quarter less time (fp32), and a GPU's half precision wants.
    kept = network.keep(exits)
    kept.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    return kept


def _build(per_stage: int, classes: int, channels: int, width: int, kinds: Sequence[str]) -> StagedNetwork:
    """An exit of each kind after each block. The trunk and the last head draw their weights first."""
    widths = [width * 2**stage for stage in range(3) for _ in range(per_stage)]
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    before = [width, *widths[:-1]]
    blocks = [BasicBlock(a, b, stride=1 if a == b else 2) for a, b in zip(before, widths, strict=True)]
    for module in nn.ModuleList([stem, *blocks]).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    last = PooledLinear(widths[-1], classes)
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    exits: list[Exit] = []
    for k, (block, size) in enumerate(zip(blocks, widths, strict=True)):
        name = f"stage{k // per_stage + 1}.block{k % per_stage + 1}"
        here = kinds if size < 4 * width else kinds[:1]  # in the last stage conv and tail heads are the same
        for kind in here:
            stages.append(block if kind == here[0] else nn.Sequential())
            heads.append(last if k == len(blocks) - 1 else HEADS[kind](size, classes, width))
            exits.append(Exit(name if kind == here[0] else f"{name}+{kind}", k + 1))
    return StagedNetwork(stem, stages, heads, exits)


BUILDERS["resnet"] = resnet
