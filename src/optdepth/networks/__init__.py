"""Networks that can stop: stem, stages and heads. Nothing here knows of stopping rules."""

from .heads import PooledLinear
from .looped import looped, unrolled
from .ode import neural_ode
from .resnet import resnet
from .staged import (
    Exit,
    StagedNetwork,
    hidden,
    load_network,
    residual_size,
    select,
)

__all__ = [
    "Exit",
    "PooledLinear",
    "StagedNetwork",
    "hidden",
    "load_network",
    "looped",
    "neural_ode",
    "residual_size",
    "resnet",
    "select",
    "unrolled",
]
