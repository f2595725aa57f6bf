"""Chains of thought as a trace: an exit at each probe, and the end of the chain as its horizon."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..errors import InputError
from ..exit_costs import Costs
from ..stopping.evaluate import applied
from ..stopping.family import check_price
from ..stopping.snell import snell
from ..threads import light
from ..trace import Trace
from .records import Chain
from .sight import FEATURES, Sight

Schedule = tuple[int, ...]
"""Tokens at which a chain is probed, rising: at each of them, or as soon after as it can be."""

_FOLDS = 3


def growing(first: int, factor: float, until: int) -> Schedule:
    """A schedule from `first` tokens on, each distance to the next a share of the tokens so far, at least `first`.

    Probing every so many tokens is dear early on and needless late; with a factor of 1 it is that.

    Args:
        first: tokens of the first probe, >= 1; also the least distance.
        factor: tokens at a probe over those at the one before, >= 1.
        until: no probe beyond these.

    Example:
        >>> od.chains.growing(48, 1.5, 400)
        (48, 96, 144, 216, 324)
    """
    if not (first >= 1 and factor >= 1 and until >= first):
        raise InputError(
            f"first {first}, factor {factor:g}, until {until}: give first >= 1, factor >= 1, until >= first"
        )
    when = [first]
    while (after := max(when[-1] + first, int(when[-1] * factor))) <= until:
        when.append(after)
    return tuple(when)


def trace(chains: Sequence[Chain], when: Schedule) -> Trace:
    """A trace of K exits: K - 1 probes as scheduled, and last the end of the chain; costs are in tokens.

    A chain that ends before a probe is due has ended: its horizon. At the end it has paid its tokens and the probes on
    the way, and answers by itself. Where a recording was probed more rarely than scheduled, the next recorded probe
    stands for the one that was due.

    Args:
        chains: recorded ones; their questions are the samples' identity.
        when: to probe.

    Raises:
        InputError: no chains, or a schedule that does not rise.
    """
    if not chains:
        raise InputError("no chains: give at least one")
    when, shape = checked(when), (len(chains), len(when) + 1)
    losses, reach, look = np.ones(shape), np.zeros(shape), np.zeros(shape)
    observations, horizon = np.zeros((*shape, len(FEATURES)), dtype=np.float32), np.ones(len(chains), dtype=np.int64)
    for i, chain in enumerate(chains):
        sight, k = Sight(), 0
        for j in taken(chain, when):
            probe = chain.probes[j]
            sight = sight.after(probe)
            losses[i, k], reach[i, k], look[i, k] = chain.losses[j], probe.tokens, probe.cost
            observations[i, k], k = sight.observation(probe), k + 1
        losses[i, k], reach[i, k], horizon[i] = chain.losses[-1], chain.tokens, k + 1
    costs = Costs.of(reach, look, unit="tokens", horizon=horizon)
    return Trace(losses, observations, costs, FEATURES, identity=np.array([chain.identity for chain in chains]))


def taken(chain: Chain, when: Schedule) -> list[int]:
    """Which of a chain's recorded probes a schedule takes."""
    found: list[int] = []
    places = iter(range(len(chain.probes)))
    for due in when:
        place = next((j for j in places if chain.probes[j].tokens >= due), None)
        if place is None:
            break
        found.append(place)
    return found


@light
def schedule(chains: Sequence[Chain], candidates: Sequence[Schedule], *, price: float, seed: int = 0) -> Schedule:
    """When to probe: the schedule whose solved rule has the least mean of loss + price x tokens, probes paid.

    Features such as a streak are of the probes taken, so each candidate is a trace and a rule of its own. Each third of
    the questions is judged by a rule of the others.

    Args:
        chains: that fit; none that judges.
        candidates: schedules to choose from, such as some of `growing`.
        price: loss that one token is worth.
        seed: of the thirds.

    Raises:
        InputError: no candidates, or too few chains to solve on.
    """
    check_price(price)
    if not candidates:
        raise InputError("no candidates: give schedules, such as growing(48, 1.5, 8000)")
    fold = np.random.default_rng(seed).permutation(len(chains)) % _FOLDS
    values = []
    for when in candidates:
        whole, total = trace(chains, when), 0.0
        for f in range(_FOLDS):
            rule = snell(whole.select(np.flatnonzero(fold != f)), price=price, features=FEATURES, seed=seed)
            found = applied(rule, whole.select(np.flatnonzero(fold == f)))
            total += float((found.losses + price * found.costs).sum())
        values.append(total / len(chains))
    return checked(candidates[int(np.argmin(values))])


def checked(when: Schedule) -> Schedule:
    """A schedule, or what is wrong with it."""
    times = tuple(int(each) for each in when)
    if not times or times[0] < 1 or any(after <= before for before, after in pairwise(times)):
        raise InputError(f"probes at {times!s:.60} tokens: give numbers >= 1 that rise, such as growing(48, 1.5, 8000)")
    return times
