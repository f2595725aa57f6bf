from . import chains
from .continuous.flow import FlowEngine
from .continuous.obstacle import free_boundary
from .continuous.problem import StoppingProblem
from .costs import flops
from .data import load_data
from .errors import InputError
from .exit_costs import Costs
from .inference.decoding import Decoder
from .inference.engine import Engine
from .inference.monitor import Monitor
from .inference.stream import stream
from .inference.timings import Timings, latency
from .networks import StagedNetwork, load_network, resnet, stage
from .record import record
from .stopping.baselines import confidence, entropy, patience
from .stopping.bounds import gap
from .stopping.evaluate import evaluate
from .stopping.family import Family
from .stopping.finite import finite_depth
from .stopping.lookahead import lookahead
from .stopping.placed import placed
from .stopping.rule import Rule
from .stopping.snell import snell
from .stopping.stationary import stationary
from .tensors import TensorData
from .trace import Trace
from .training.depth_loss import DepthLoss
from .training.loop import train

__all__ = [
    "Costs",
    "Decoder",
    "DepthLoss",
    "Engine",
    "Family",
    "FlowEngine",
    "InputError",
    "Monitor",
    "Rule",
    "StagedNetwork",
    "StoppingProblem",
    "TensorData",
    "Timings",
    "Trace",
    "chains",
    "confidence",
    "entropy",
    "evaluate",
    "finite_depth",
    "flops",
    "free_boundary",
    "gap",
    "latency",
    "load_data",
    "load_network",
    "lookahead",
    "patience",
    "placed",
    "record",
    "resnet",
    "snell",
    "stage",
    "stationary",
    "stream",
    "train",
]
