from . import chains
from .continuous.flow import FlowEngine
from .continuous.obstacle import free_boundary
from .continuous.problem import StoppingProblem
from .costs import flops
from .data import load_data
from .early import EarlyExit, load
from .errors import InputError
from .exit_costs import Costs
from .fit import fit
from .inference.decoding import Decoder
from .inference.engine import Engine
from .inference.monitor import Monitor
from .inference.stream import stream
from .inference.timings import Timings, latency
from .networks import StagedNetwork, load_network, resnet, stage
from .record import record
from .stopping.baselines import confidence, patience
from .stopping.bounds import gap
from .stopping.evaluate import evaluate
from .stopping.family import Family
from .stopping.finite import finite_depth
from .stopping.placed import placed
from .stopping.rule import Rule
from .stopping.snell import snell
from .stopping.stationary import stationary
from .tensors import TensorData
from .trace import Trace
from .training.depth_loss import DepthLoss
from .training.loop import train

__version__: str

__all__ = [
    "Costs",
    "Decoder",
    "DepthLoss",
    "EarlyExit",
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
    "evaluate",
    "finite_depth",
    "fit",
    "flops",
    "free_boundary",
    "gap",
    "latency",
    "load",
    "load_data",
    "load_network",
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
