"""A looped network run for as long as the stationary rule says, with no number of steps given."""

from __future__ import annotations

from ..networks import StagedNetwork
from ..networks.looped import unrolled
from ..stopping.stationary import Stationary, with_steps
from .engine import Engine


def looped_engine(network: StagedNetwork, rule: Stationary) -> Engine:
    """The engine of a looped network without a greatest depth.

    The block is unrolled to `rule.limit` steps, where bound (A) of theory section 5 says that no sample can gain what
    it has paid; that costs no memory to speak of, and only steps that some sample takes are run.

    Args:
        network: looped, with any number of steps.
        rule: solved by `stationary`.

    Raises:
        InputError: a network that is not looped, or that the rule was not solved for.
    """
    recorded = unrolled(network, len(rule.origin.costs))
    rule.check(recorded.fingerprint(), len(recorded.exits))
    longer = unrolled(network, rule.limit)
    return Engine(longer, rule.over(with_steps(rule.origin.costs, rule.limit), longer.fingerprint()))
