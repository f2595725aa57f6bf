"""Stopping problems on finite sets, each with its exact value by dynamic programming over the law it is drawn from."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from optdepth.exit_costs import Costs
from optdepth.trace import Trace


class Problem(NamedTuple):
    """A simulated problem: N paths, the price, and the least mean of loss + price x cost over all stopping rules."""

    trace: Trace
    price: float
    value: float


def secretary(samples: int, seed: int, *, candidates: int = 20) -> Problem:
    """Choose the best of n candidates who come in random order (Ferguson 1989, "Who solved the secretary problem?").

    Seen at each: the rank among those met so far. Loss 1 unless the one chosen is the best of all; looking is free.
    """
    quality = np.random.default_rng(seed).permuted(np.tile(np.arange(candidates), (samples, 1)), axis=1)
    rank = np.stack([1 + (quality[:, :k] > quality[:, [k]]).sum(axis=1) for k in range(candidates)], axis=1)
    losses = (quality < candidates - 1).astype(float)
    value = 1.0
    for k in range(candidates, 0, -1):  # rank 1 with chance 1/k, and then the best of all with chance k/n
        value = min(1 - k / candidates, value) / k + value * (1 - 1 / k)
    return Problem(_trace(losses, rank, ("rank",), seed), 0.0, value)


def parking(samples: int, seed: int, *, spots: int = 20, free: float = 0.2) -> Problem:
    """Park as near as possible (Chow, Robbins & Siegmund 1971): spot k is spots - 1 - k steps away.

    Seen at each: whether it is free. Loss: the steps left to walk; at a taken spot those from the first free one
    beyond the destination, 1 / free on average.
    """
    vacant = np.random.default_rng(seed).random((samples, spots)) < free
    distance = np.arange(spots)[::-1]
    beyond = value = 1 / free
    for steps in reversed(distance):
        value = free * min(steps, value) + (1 - free) * value
    return Problem(_trace(np.where(vacant, distance, beyond), vacant, ("free",), seed), 0.0, value)


def house(samples: int, seed: int, *, offers: int = 20, levels: int = 10, price: float = 0.04) -> Problem:
    """Sell a house, earlier offers still standing, at a price per offer: the monotone case (Chow & Robbins 1961).

    Seen: the best offer so far, of 1..levels as shares of the highest. The loss is the negative of it.
    """
    offer = np.random.default_rng(seed).integers(1, levels + 1, (samples, offers)) / levels
    best = np.maximum.accumulate(offer, axis=1)
    grid = np.arange(1, levels + 1) / levels
    value = -grid
    for _ in range(offers - 1):
        ahead = np.array([value[np.maximum(i, np.arange(levels))].mean() for i in range(levels)])
        value = np.minimum(-grid, price + ahead)
    return Problem(_trace(-best, best, ("best",), seed), price, price + float(value.mean()))


def sequential_test(samples: int, seed: int, *, tosses: int = 30, heads: float = 0.65, price: float = 0.01) -> Problem:
    """Which way is a coin biased, at a price a toss (Wald & Wolfowitz 1948; Arrow, Blackwell & Girshick 1949).

    Heads come with chance `heads` or 1 - `heads`, either equally likely at first. Seen: the chance that it is the
    first, and that of the likelier of the two, which is the answer. Loss 1 if that is wrong.
    """
    random = np.random.default_rng(seed)
    biased = random.random(samples) < 0.5
    up = random.random((samples, tosses)) < np.where(biased, heads, 1 - heads)[:, None]
    odds = (heads / (1 - heads)) ** (2.0 * np.cumsum(up, axis=1) - np.arange(1, tosses + 1))
    chance = odds / (1 + odds)
    answer = np.where(odds == 1, True, odds > 1)
    observations = np.stack([chance, np.maximum(chance, 1 - chance)], axis=2)
    trace = _trace((answer != biased[:, None]).astype(float), observations, ("chance", "confidence"), seed)
    return Problem(trace, price, _wald(tosses, heads, price))


def _wald(tosses: int, heads: float, price: float) -> float:
    """The least mean of being wrong + price x tosses."""
    value = np.full(tosses + 1, np.inf)
    for k in range(tosses, 0, -1):
        first = 1 / (1 + (heads / (1 - heads)) ** -(2.0 * np.arange(k + 1) - k))  # by the number of heads
        now = np.minimum(first, 1 - first)
        if k < tosses:
            head = first * heads + (1 - first) * (1 - heads)
            now = np.minimum(now, price + head * value[1:] + (1 - head) * value[:-1])
        value = now
    return price + float(value.mean())


def dear_tosses(samples: int, seed: int, *, tosses: int = 30, dear: float = 6.0, price: float = 0.005) -> Problem:
    """`sequential_test` where a toss costs 1 of some samples and `dear` of others, which is seen from the start."""
    problem, heads = sequential_test(samples, seed, tosses=tosses, price=price), 0.65
    scale = np.where(np.random.default_rng((seed, 1)).random(samples) < 0.5, 1.0, dear)
    told = np.broadcast_to(scale[:, None, None], (samples, tosses, 1))
    trace = replace(
        problem.trace,
        observations=np.concatenate([problem.trace.observations, told.astype(np.float32)], axis=2),
        features=("chance", "confidence", "scale"),
        costs=Costs.of(scale[:, None] * np.arange(1, tosses + 1), unit="tosses"),
    )
    return Problem(trace, price, (_wald(tosses, heads, price) + _wald(tosses, heads, dear * price)) / 2)


def chain(samples: int, seed: int, *, steps: int = 12, states: int = 6) -> Problem:
    """A Markov chain with random transitions, a random reward or loss where it stops and a random toll on every step.

    Seen: the state, one column for each, and what stopping there would lose now.
    """
    law = np.random.default_rng(0)
    transition = law.dirichlet(np.full(states, 0.5), states)
    ending, toll = law.normal(size=states), law.uniform(0.0, 0.1, states)
    random = np.random.default_rng(seed)
    state = np.empty((samples, steps), dtype=int)
    state[:, 0] = random.integers(0, states, samples)
    for k in range(1, steps):
        passed = random.random(samples)[:, None] > np.cumsum(transition, axis=1)[state[:, k - 1]]
        state[:, k] = np.minimum(passed.sum(axis=1), states - 1)
    price, value = 0.02, ending
    for _ in range(steps - 1):
        value = np.minimum(ending, price + toll + transition @ value)
    paid = np.cumsum(toll[state], axis=1) - toll[state]
    observations = np.concatenate([np.eye(states)[state], ending[state][:, :, None]], axis=2)
    features = (*(f"state {s}" for s in range(states)), "ending")
    return Problem(_trace(ending[state] + paid, observations, features, seed), price, price + float(value.mean()))


def brittle_chain(samples: int, seed: int, *, steps: int = 10, states: int = 5) -> Problem:
    """`chain` that may end by itself wherever it comes to, which then costs a fine, and whose tolls are its costs.

    How likely it ends depends on the state. A path pays the tolls of the states that it has left.
    """
    law = np.random.default_rng(1)
    transition = law.dirichlet(np.full(states, 0.5), states)
    ending, toll, breaks = law.uniform(0, 1, states), law.uniform(0.5, 2.0, states), law.uniform(0.0, 0.4, states)
    fine, price = 0.3, 0.02
    random = np.random.default_rng(seed)
    state = np.empty((samples, steps), dtype=int)
    state[:, 0] = random.integers(0, states, samples)
    broken = np.zeros((samples, steps), dtype=bool)
    for k in range(1, steps):
        passed = random.random(samples)[:, None] > np.cumsum(transition, axis=1)[state[:, k - 1]]
        state[:, k] = np.minimum(passed.sum(axis=1), states - 1)
        broken[:, k] = random.random(samples) < breaks[state[:, k]]
    broken[:, -1] = True  # the last step ends every path, without a fine
    horizon = broken.argmax(axis=1) + 1
    value = ending
    for k in range(steps - 1, 0, -1):
        fined = breaks * (ending + (fine if k < steps - 1 else 0.0))
        value = np.minimum(ending, price * toll + transition @ (fined + (1 - breaks) * value))
    losses = ending[state]
    losses[(np.arange(steps) == horizon[:, None] - 1) & (horizon < steps)[:, None]] += fine
    reach = np.cumsum(toll[state], axis=1) - toll[state]
    observations = np.concatenate([np.eye(states)[state], ending[state][:, :, None]], axis=2)
    features = (*(f"state {s}" for s in range(states)), "ending")
    costs = Costs.of(reach, unit="tolls", horizon=horizon)
    return Problem(_trace(losses, observations, features, seed, costs), price, float(value.mean()))


PROBLEMS: dict[str, Callable[[int, int], Problem]] = {
    "secretary": secretary,
    "parking": parking,
    "house": house,
    "sequential test": sequential_test,
    "chain": chain,
    "dear tosses": dear_tosses,
    "brittle chain": brittle_chain,
}


def _trace(
    losses: np.ndarray, observations: np.ndarray, features: tuple[str, ...], seed: int, costs: Costs | None = None
) -> Trace:
    """Without costs, those count the steps. Each path is a sample of its own, though many look alike."""
    seen, own = observations.reshape(*losses.shape, len(features)).astype(float), (seed << 32) + np.arange(len(losses))
    steps = Costs.of(np.arange(1, losses.shape[1] + 1), unit="steps")
    return Trace(losses, seen, costs or steps, features, identity=own)
