from .costs import flops, latency
from .data import load_data
from .errors import InputError
from .inference.budget import BudgetedEngine
from .inference.endless import endless
from .inference.engine import Answer, Engine
from .inference.monitor import Monitor
from .inference.stream import stream
from .inference.timings import Timings
from .networks import StagedNetwork, load_network, looped, resnet, unrolled
from .recall import best_recall
from .record import record
from .stopping.baselines import confidence, entropy, patience
from .stopping.bounds import gap, prophet
from .stopping.certify import Certificate, certified
from .stopping.evaluate import Evaluation, evaluate
from .stopping.finite import finite_depth
from .stopping.lookahead import lookahead
from .stopping.placed import placed
from .stopping.placement import place
from .stopping.rule import FixedDepth, Rule
from .stopping.snell import snell, snell_family
from .stopping.stationary import stationary
from .trace import Costs, Trace
from .training.depth_loss import DepthLoss
from .training.loop import train

__all__ = [
    "Answer",
    "BudgetedEngine",
    "Certificate",
    "Costs",
    "DepthLoss",
    "Engine",
    "Evaluation",
    "FixedDepth",
    "InputError",
    "Monitor",
    "Rule",
    "StagedNetwork",
    "Timings",
    "Trace",
    "best_recall",
    "certified",
    "confidence",
    "endless",
    "entropy",
    "evaluate",
    "finite_depth",
    "flops",
    "gap",
    "latency",
    "load_data",
    "load_network",
    "lookahead",
    "looped",
    "patience",
    "place",
    "placed",
    "prophet",
    "record",
    "resnet",
    "snell",
    "snell_family",
    "stationary",
    "stream",
    "train",
    "unrolled",
]
