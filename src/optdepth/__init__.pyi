from .continuous.flow import FlowEngine
from .continuous.obstacle import free_boundary
from .continuous.problem import StoppingProblem
from .costs import flops
from .data import load_data
from .errors import InputError
from .inference.budget import BudgetedEngine
from .inference.decoding import Decoder, token_flops
from .inference.engine import Answer, Engine
from .inference.looped import looped_engine
from .inference.monitor import Monitor
from .inference.stream import stream
from .inference.timings import Timings, latency
from .networks import StagedNetwork, load_network, looped, neural_ode, resnet, stage, unrolled
from .recall import best_recall
from .record import record
from .stopping.baselines import confidence, entropy, patience
from .stopping.bounds import gap, prophet
from .stopping.certify import Certificate
from .stopping.evaluate import Evaluation, evaluate
from .stopping.family import Family
from .stopping.finite import finite_depth
from .stopping.lookahead import lookahead
from .stopping.placed import placed
from .stopping.placement import place
from .stopping.rule import FixedDepth, Rule
from .stopping.snell import snell
from .stopping.stationary import stationary
from .tensors import TensorData
from .trace import Costs, Trace
from .training.depth_loss import DepthLoss
from .training.loop import train

__all__ = [
    "Answer",
    "BudgetedEngine",
    "Certificate",
    "Costs",
    "Decoder",
    "DepthLoss",
    "Engine",
    "Evaluation",
    "Family",
    "FixedDepth",
    "FlowEngine",
    "InputError",
    "Monitor",
    "Rule",
    "StagedNetwork",
    "StoppingProblem",
    "TensorData",
    "Timings",
    "Trace",
    "best_recall",
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
    "looped",
    "looped_engine",
    "neural_ode",
    "patience",
    "place",
    "placed",
    "prophet",
    "record",
    "resnet",
    "snell",
    "stage",
    "stationary",
    "stream",
    "token_flops",
    "train",
    "unrolled",
]
