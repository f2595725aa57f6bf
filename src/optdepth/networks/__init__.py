"""Networks that can stop: stem, stages and heads. Nothing here knows of stopping rules."""

from .cut import stage
from .heads import Pool, PooledConv, PooledLinear, PooledMLP, TokenHead
from .looped import looped, unrolled
from .ode import neural_ode
from .resnet import resnet
from .staged import Exit, StagedNetwork, load_network
from .transplant import transplant

__all__ = [
    "Exit",
    "Pool",
    "PooledConv",
    "PooledLinear",
    "PooledMLP",
    "StagedNetwork",
    "TokenHead",
    "hidden",
    "load_network",
    "looped",
    "neural_ode",
    "resnet",
    "select",
    "stage",
    "transplant",
    "unrolled",
]
