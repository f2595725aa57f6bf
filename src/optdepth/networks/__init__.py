"""Networks that can stop: stem, stages and heads. Nothing here knows of stopping rules."""

from .cut import stage
from .heads import HEADS, HeadKind, Place, Pool, PooledBranch, PooledConv, PooledLinear, PooledMLP, TokenHead, register
from .looped import looped, unrolled
from .modes import served
from .ode import neural_ode
from .resnet import resnet
from .staged import Exit, StagedNetwork, load_network
from .transplant import transplant

__all__ = [
    "HEADS",
    "Exit",
    "HeadKind",
    "Place",
    "Pool",
    "PooledBranch",
    "PooledConv",
    "PooledLinear",
    "PooledMLP",
    "StagedNetwork",
    "TokenHead",
    "load_network",
    "looped",
    "neural_ode",
    "register",
    "resnet",
    "served",
    "stage",
    "transplant",
    "unrolled",
]
