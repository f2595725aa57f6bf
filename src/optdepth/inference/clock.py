"""Time on the clock: an engine beside the full network, in one run, as a ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch.utils._pytree import tree_map

from ..batch import Inputs, hidden
from ..errors import InputError
from ..networks import StagedNetwork, served
from ..progress import shown_steps
from ..stopping.rule import Rule
from ..threads import ThreadChoice
from .engine import Engine
from .timings import Timings

Serve = Callable[[Inputs], object]
"""What answers a batch."""

_SAMPLES = 1024
"""Inputs a turn: enough for the mix of easy and hard ones, few enough for many turns. Single inputs: 128."""


@dataclass(frozen=True)
class Clocked:
    """One rule at one batch size.

    Attributes:
        full, engine: milliseconds a sample, of every batch the median over the repeats; `full` is the network without
            exits.
        speedup: full / engine, measured side by side.
        threads: of torch for both: as many as pay for the full network.
        saving: full cost / mean cost on the same samples: the speed-up that the costs promise.
        noise: of the engine's time, its interquartile range over the turns as a share of its median; 0 for one turn.
        given: milliseconds a sample of the model as it was given, where that is run otherwise; else None.
    """

    method: str
    batch: int
    full: float
    engine: float
    speedup: float
    saving: float
    threads: int
    noise: float = 0.0
    given: float | None = None


def clock(
    network: StagedNetwork,
    rules: Mapping[str, Rule],
    inputs: Inputs,
    *,
    batches: Sequence[int],
    repeats: int = 5,
    timings: Timings | None = None,
    given: Serve | None = None,
    progress: bool = False,
) -> list[Clocked]:
    """Times every rule's engine and the network without exits on the same inputs, see `times`.

    Both run on as many threads as pay for the network without exits, or on the user's own number (`threads.py`).

    Args:
        inputs: N samples of the mix that is served, a tensor (N, ...) or a tuple or dict of such, on the network's
            device.
        batches: sizes to time; 1,024 inputs a turn are cut into batches of that size, 128 at batch 1.
        repeats: turns.
        timings: that the engines go by.
        given: the model as it was given, where the network is run otherwise: timed beside the others.
        progress: a bar on stderr.
    """
    samples = len(hidden(inputs))
    if not batches or min(batches) < 1 or max(batches) > samples:
        raise InputError(f"batch sizes {list(batches)} must lie between 1 and the {samples} inputs there are")
    network = served(network)
    engines = {name: Engine(network, rule, timings=timings) for name, rule in rules.items()}
    rows = []
    for size in batches:
        count = max(4, min(128, _SAMPLES // size))
        chunks = [_slice(inputs, i, i + size) for i in range(0, samples - size + 1, size)][:count]
        # The network without exits runs first of all: a rule may bear any name.
        as_given = [] if given is None else [given]
        serves: list[Serve] = [network.full, *engines.values(), *as_given]
        said = f"timing batches of {size}"
        with torch.inference_mode(), ThreadChoice().running(said, chunks[0], network.full) as threads:
            turns = _turns(serves, chunks, repeats, said if progress else "")
            full, *spent = [_middle(each) for each in turns]
            before = spent.pop() if as_given else None
            for i, (name, engine) in enumerate(engines.items()):
                paid = torch.cat([engine(chunk).cost for chunk in chunks])
                saving = engine.rule.origin.costs.full / float(paid.mean())
                noise = _noise(turns[i + 1])
                rows.append(Clocked(name, size, full, spent[i], full / spent[i], saving, threads, noise, before))
    return rows


def times(serves: Sequence[Serve], chunks: Sequence[Inputs], repeats: int, *, said: str = "") -> list[float]:
    """Milliseconds a sample of each way to serve the same batches.

    They take turns batch by batch, in an order that rotates, so that a slow moment of the machine falls on all of them,
    and of every batch the median over the turns counts.

    Args:
        said: of a bar on stderr; none where empty.
    """
    return [_middle(each) for each in _turns(serves, chunks, repeats, said)]


@torch.inference_mode()
def _turns(
    serves: Sequence[Serve], chunks: Sequence[Inputs], repeats: int, said: str
) -> Float[np.ndarray, "serves repeats chunks"]:
    """The same by turn and batch, to be summed over the batches."""
    spent = np.empty((repeats + 1, len(chunks), len(serves)))
    cuda = hidden(chunks[0]).is_cuda
    for turn in shown_steps(range(repeats + 1), said, shown=bool(said)):
        for i, chunk in enumerate(chunks):
            for j in range(len(serves)):
                which = (i + j + turn) % len(serves)
                if cuda:
                    torch.cuda.synchronize()
                begin = time.perf_counter()
                serves[which](chunk)
                if cuda:
                    torch.cuda.synchronize()
                spent[turn, i, which] = time.perf_counter() - begin
    samples = sum(len(hidden(chunk)) for chunk in chunks)
    return 1e3 * spent[1:].transpose(2, 0, 1) / samples  # the first turn warms up


def _middle(turns: Float[np.ndarray, "repeats chunks"]) -> float:
    return float(np.median(turns, axis=0).sum())


def _noise(turns: Float[np.ndarray, "repeats chunks"]) -> float:
    low, middle, high = np.quantile(turns.sum(axis=1), [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def _slice(inputs: Inputs, first: int, end: int) -> Inputs:
    return tree_map(lambda tensor: tensor[first:end], inputs)
