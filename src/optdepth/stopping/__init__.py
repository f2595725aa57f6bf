"""The mathematics of stopping: traces in, rules and statements out. Knows nothing of networks."""

# Every kind of rule, so that `Rule.load` knows it whichever module of this package was asked for first.
from . import baselines, gain, placed, stationary

__all__ = ["baselines", "gain", "placed", "stationary"]
