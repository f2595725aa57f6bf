"""Time on the clock: an engine beside the full network, in one run, as a ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._pytree import tree_map

from ..batch import Inputs, hidden
from ..errors import InputError
from ..networks import StagedNetwork, served
from ..progress import shown_steps
from ..stopping.rule import Rule
from ..threads import ThreadChoice
from .engine import Engine
from .timings import Timings

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
    """

    method: str
    batch: int
    full: float
    engine: float
    speedup: float
    saving: float
    threads: int


def clock(
    network: StagedNetwork,
    rules: Mapping[str, Rule],
    inputs: Inputs,
    *,
    batches: Sequence[int],
    repeats: int = 5,
    timings: Timings | None = None,
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
        serves: list[Serve] = [network.full, *engines.values()]
        said = f"timing batches of {size}"
        with torch.inference_mode(), ThreadChoice().running(said, chunks[0], network.full) as threads:
            full, *spent = times(serves, chunks, repeats, said=said if progress else "")
            for (name, engine), each in zip(engines.items(), spent, strict=True):
                paid = torch.cat([engine(chunk).cost for chunk in chunks])
                saving = engine.rule.origin.costs.full / float(paid.mean())
                rows.append(Clocked(name, size, full, each, full / each, saving, threads))
    return rows


Serve = Callable[[Inputs], object]


@torch.inference_mode()
def times(serves: Sequence[Serve], chunks: Sequence[Inputs], repeats: int, *, said: str = "") -> list[float]:
    """Milliseconds a sample of each way to serve the same batches.

    They take turns batch by batch, in an order that rotates, so that a slow moment of the machine falls on all of them,
    and of every batch the median over the turns counts.

    Args:
        said: of a bar on stderr; none where empty.
    """
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
    middle = np.median(spent[1:], axis=0)  # the first turn warms up
    each: list[float] = (1e3 * middle.sum(axis=0) / sum(len(hidden(chunk)) for chunk in chunks)).tolist()
    return each


def _slice(inputs: Inputs, first: int, end: int) -> Inputs:
    return tree_map(lambda tensor: tensor[first:end], inputs)
