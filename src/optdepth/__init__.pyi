from .costs import flops, latency
from .data import load_data
from .errors import InputError
from .inference.engine import Answer, Engine
from .networks import StagedNetwork, load_network, resnet
from .record import record
from .stopping.baselines import confidence, entropy, patience
from .stopping.bounds import prophet
from .stopping.evaluate import Evaluation, evaluate
from .stopping.lookahead import lookahead
from .stopping.rule import FixedDepth, Rule
from .stopping.snell import snell
from .trace import Costs, Trace
from .training.depth_loss import DepthLoss
from .training.loop import train

__all__ = [
    "Answer",
    "Costs",
    "DepthLoss",
    "Engine",
    "Evaluation",
    "FixedDepth",
    "InputError",
    "Rule",
    "StagedNetwork",
    "Trace",
    "confidence",
    "entropy",
    "evaluate",
    "flops",
    "latency",
    "load_data",
    "load_network",
    "lookahead",
    "patience",
    "prophet",
    "record",
    "resnet",
    "snell",
    "train",
]
