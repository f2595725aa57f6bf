"""The trunk of one network in another: to give a trained network other exits, or other heads."""

from torch import nn

from ..errors import InputError
from .staged import StagedNetwork


def transplant(network: StagedNetwork, source: StagedNetwork) -> None:
    """Copies stem, blocks and last head of `source` into `network`; early heads too where the two have the same.

    The two may have other exits and other early heads, but must have the same trunk.

    Raises:
        InputError: trunks or last heads of other shapes.
    """
    pairs = [(network.stem, source.stem), (network.heads[-1], source.heads[-1])]
    mine, theirs = _blocks(network), _blocks(source)
    if len(mine) != len(theirs):
        raise InputError(f"a trunk of {len(theirs)} blocks cannot be taken into one of {len(mine)}: give equal depths")
    pairs += zip(mine, theirs, strict=True)
    if network.exits == source.exits and [*map(repr, network.heads)] == [*map(repr, source.heads)]:
        pairs += zip(network.heads, source.heads, strict=True)
    for own, other in pairs:
        if _shapes(own) != _shapes(other):
            raise InputError(f"weights {_shapes(other)} cannot be taken into {_shapes(own)}: give equal networks")
    for own, other in pairs:
        own.load_state_dict(other.state_dict())


def _blocks(network: StagedNetwork) -> list[nn.Module]:
    """The blocks of the trunk, however they are cut into stages."""
    return [part for stage in network.stages for part in (stage if isinstance(stage, nn.Sequential) else [stage])]


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
