"""optdepth: depth as an optimal stopping problem, solved on recorded traces and measured costs.

    network --record--> Trace --solve--> Rule
    Engine(network, rule)(inputs) -> Answer

    fit, EarlyExit, load                            a model and data to one that stops early, in one call
    stage, resnet, load_data, TensorData            networks with exits, and data in splits
    train, DepthLoss                                trained, where they are not yet
    record, flops, latency, Costs, Trace            what every sample meets at every exit, and what that costs
    snell, placed, stationary                       families of solved rules
    confidence, patience                            families of thresholds, tuned
    Family, Rule, evaluate, gap, finite_depth       rules by price or budget, certified, judged, bounded
    Engine, stream, Timings, Monitor, Decoder       the network run by a rule
    chains                                          chains of thought, ended by a rule
    StoppingProblem, free_boundary, FlowEngine      the same in continuous time
    StagedNetwork, load_network, InputError

In examples `classifier` is a small model of residual blocks, as somebody has it; `network` a small network with three
exits, `data` the digits, `images` and `labels` some of them, `costs` those of the network, and `fit`, `certify` and
`test` the traces of its splits.

The public names are listed in `__init__.pyi`; each is imported when it is first used, so that the mathematics can be
had without the weight of training, and the command line answers at once.
"""

from importlib.metadata import version as _version

import lazy_loader

__version__ = _version("optdepth")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
