"""Kinds of early heads, one a file. A new one is a file and a line here, or `register` of your own."""

from ...errors import InputError
from . import auto, branch, conv, linear, mlp, own, tail, token
from .branch import PooledBranch
from .conv import PooledConv
from .kind import HeadKind, Place
from .linear import PooledLinear
from .mlp import PooledMLP
from .pool import Pool, Real, RealTokens
from .pooled import Pooled
from .token import TokenHead

__all__ = [
    "HEADS",
    "HeadKind",
    "Place",
    "Pool",
    "Pooled",
    "PooledBranch",
    "PooledConv",
    "PooledLinear",
    "PooledMLP",
    "Real",
    "RealTokens",
    "TokenHead",
    "head_kind",
    "register",
]

HEADS: dict[str, HeadKind] = {}
"""The kinds there are, by name."""


def register(kind: HeadKind) -> None:
    """Makes a kind of head known by its name, to `resnet` and `stage` alike.

    Raises:
        InputError: a name that is taken, or that is not of letters, digits and underscores.
    """
    if not kind.name.isidentifier():
        raise InputError(f"a kind of head named {kind.name!r}: give letters, digits and underscores")
    if kind.name in HEADS:
        raise InputError(f"there is a kind of head named {kind.name!r} ({HEADS[kind.name].words}); give another name")
    HEADS[kind.name] = kind


def head_kind(name: str, argument: str = "head") -> HeadKind:
    """The kind of that name.

    Raises:
        InputError: there is none; those there are are listed.
    """
    if name not in HEADS:
        raise InputError(f"{argument}={name!r}: give one of {', '.join(HEADS)}")
    return HEADS[name]


register(auto.KIND)
register(own.KIND)
register(linear.KIND)
register(mlp.KIND)
register(conv.KIND)
register(branch.KIND)
register(tail.KIND)
register(token.KIND)
