"""Residual networks of our own for small images."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .basic_block import BasicBlock
from .heads import HeadKind, Place, Pool, PooledLinear, head_kind
from .staged import BUILDERS, Exit, StagedNetwork

_SIZE = 32
"""Pixels of the images of the paper, at which heads are sized."""


def resnet(
    depth: int = 20,
    *,
    classes: int,
    channels: int = 3,
    width: int = 16,
    exits: Sequence[str] | Literal["all", "ends", "last"] = "all",
    heads: str = "linear",
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
        heads: of the exits before the last, a kind out of `networks.HEADS`: "linear" (`PooledLinear`); "conv"
            (`PooledConv`), which answer far better early and cost 1 to 2% of a resnet20 at each look; "branch"
            (`PooledBranch` in the first two stages, `PooledConv` in the third), which answer better still there and
            cost 9 and 6%; "tail" (a residual block a step there), better again at 17 and 9%; or any other that reads
            maps. Two of them, such as "conv+tail", are in the first two stages two exits a block, "stage1.block2" and
            "stage1.block2+tail": a glance, and a look for those whom it leaves unsure. The third has the first alone.
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
    kinds = [head_kind(name, "heads") for name in heads.split("+")]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"heads={heads!r} names a kind twice: give each once, such as 'conv+tail'")
    per_stage = (depth - 2) // 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(per_stage, classes, channels, width, kinds)
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


def _build(per_stage: int, classes: int, channels: int, width: int, kinds: Sequence[HeadKind]) -> StagedNetwork:
    """An exit of each kind after each block. The trunk and the last head draw their weights first."""
    widths = [width * 2**stage for stage in range(3) for _ in range(per_stage)]
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    before = [width, *widths[:-1]]
    blocks = [BasicBlock(a, b, stride=1 if a == b else 2) for a, b in zip(before, widths, strict=True)]
    for module in nn.ModuleList([stem, *blocks]).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    last = PooledLinear(widths[-1], classes)
    names = [f"stage{k // per_stage + 1}.block{k % per_stage + 1}" for k in range(len(blocks))]
    places = _places(names, stem, blocks, last, torch.zeros(1, channels, _SIZE, _SIZE))
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    exits: list[Exit] = []
    for k, (block, size, place) in enumerate(zip(blocks, widths, places, strict=True)):
        here = kinds if size < 4 * width else kinds[:1]  # in the last stage conv and tail heads are the same
        for kind in here:
            stages.append(block if kind is here[0] else nn.Sequential())
            heads.append(last if k == len(blocks) - 1 else kind.make(place))
            exits.append(Exit(place.name if kind is here[0] else f"{place.name}+{kind.name}", k + 1))
    return StagedNetwork(stem, stages, heads, exits)


@torch.no_grad()
def _places(
    names: Sequence[str], stem: nn.Module, blocks: Sequence[nn.Module], last: nn.Module, image: Tensor
) -> list[Place]:
    """Where heads may stand: behind each block, with its state of an image. Their widths are made for the network."""
    trunk = nn.ModuleList([stem, *blocks]).eval()
    states = list(itertools.accumulate(blocks, lambda state, block: block(state), initial=stem(image)))[1:]
    trunk.train()

    def own() -> nn.Module:
        raise InputError("these networks keep theirs for the last exit")

    return [
        Place(name, state, last(states[-1]), states[-1], math.inf, 1, Pool, own)
        for name, state in zip(names, states, strict=True)
    ]


BUILDERS["resnet"] = resnet
