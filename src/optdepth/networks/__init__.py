"""Networks that can stop: stem, stages and heads. Nothing here knows of stopping rules."""

from .heads import PooledConv, PooledLinear
from .looped import looped, unrolled
from .resnet import resnet
from .staged import (
    Exit,
    StagedNetwork,
    hidden,
    load_network,
    residual_size,
    select,
)
from .transplant import transplant

__all__ = [
    "Exit",
    "PooledConv",
    "PooledLinear",
    "StagedNetwork",
    "hidden",
    "load_network",
    "looped",
    "residual_size",
    "resnet",
    "select",
    "transplant",
    "unrolled",
]
