"""Chains of thought: ending the thinking of a reasoning model where more of it would not help.

    read, split, Chain, Probe       recorded chains, by question
    growing, schedule               when to probe, which costs tokens itself
    trace                           an exit at each probe; then any solver, certificate and evaluation
    Thinker                         told of each probe as it comes, says stop or go on

Example:
    >>> od.chains.growing(48, 2.0, 400)
    (48, 96, 192, 384)
"""

from .records import Chain, Probe, read, split
from .thinker import Thinker, Thought
from .traces import Schedule, growing, schedule, trace

__all__ = ["Chain", "Probe", "Schedule", "Thinker", "Thought", "growing", "read", "schedule", "split", "trace"]
