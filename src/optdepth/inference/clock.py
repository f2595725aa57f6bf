"""Time on the clock: an engine beside the full network, in one run, as a ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._pytree import tree_map

from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.staged import Inputs, hidden
from ..progress import shown_steps
from ..stopping.rule import Rule
from .engine import Engine

_SAMPLES = 1024
"""Inputs a turn: enough for the mix of easy and hard ones, few enough for many turns. Single inputs: 128."""


@dataclass(frozen=True)
class Clocked:
    """One rule at one batch size.

    Attributes:
        full, engine: milliseconds a sample, medians over the repeats; `full` is the network without exits.
        speedup: median over the repeats of full / engine, measured side by side.
        saving: full cost / mean cost on the same samples: the speed-up that the costs promise.
    """

    method: str
    batch: int
    full: float
    engine: float
    speedup: float
    saving: float


def clock(
    network: StagedNetwork,
    rules: Mapping[str, Rule],
    inputs: Inputs,
    *,
    batches: Sequence[int],
    repeats: int = 5,
    progress: bool = False,
) -> list[Clocked]:
    """Times every rule's engine and the network without exits on the same inputs, taking turns.

    Args:
        inputs: N samples of the mix that is served, a tensor (N, ...) or a tuple or dict of such, on the network's
            device.
        batches: sizes to time; 1,024 inputs a turn are cut into batches of that size, 128 at batch 1.
        repeats: turns; figures are medians over them.
        progress: a bar on stderr.
    """
    samples = len(hidden(inputs))
    if not batches or min(batches) < 1 or max(batches) > samples:
        raise InputError(f"batch sizes {list(batches)} must lie between 1 and the {samples} inputs there are")
    network.eval()
    engines = {name: Engine(network, rule) for name, rule in rules.items()}
    rows = []
    for size in batches:
        chunks = [_slice(inputs, i, i + size) for i in range(0, samples - size + 1, size)][
            : max(4, min(128, _SAMPLES // size))
        ]
        full: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in engines}
        said = f"timing batches of {size}"
        for turn in shown_steps(range(repeats + 1), said, shown=progress):
            spent = {name: _timed(engine, chunks) for name, engine in engines.items()}
            alone = _timed(network.full, chunks)
            if turn == 0:  # warms up
                continue
            full.append(alone)
            for name in engines:
                times[name].append(spent[name])
        for name, engine in engines.items():
            paid = torch.cat([engine(chunk).cost for chunk in chunks])
            rows.append(
                Clocked(
                    method=name,
                    batch=size,
                    full=float(np.median(full)),
                    engine=float(np.median(times[name])),
                    speedup=float(np.median(np.divide(full, times[name]))),
                    saving=engine.rule.origin.costs.full / float(paid.mean()),
                )
            )
    return rows


@torch.inference_mode()
def _timed(serve: Callable[[Inputs], object], chunks: Sequence[Inputs]) -> float:
    """Milliseconds a sample."""
    cuda = hidden(chunks[0]).is_cuda
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for chunk in chunks:
        serve(chunk)
    if cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin) / sum(len(hidden(chunk)) for chunk in chunks)


def _slice(inputs: Inputs, first: int, end: int) -> Inputs:
    return tree_map(lambda tensor: tensor[first:end], inputs)
