"""optdepth: depth as an optimal stopping problem, solved on recorded traces and measured costs.

    network --record--> Trace --solve--> Rule
    Engine(network, rule)(inputs) -> Answer

The public names are listed in `__init__.pyi`; each is imported when it is first used, so that the mathematics can be
had without the weight of training, and the command line answers at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
