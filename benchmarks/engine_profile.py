"""Where an engine's time goes: stages, heads, looks, samples that leave, and the rest; and how a stage's time depends
on the batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from optdepth.batch import Inputs, hidden, select
from optdepth.inference import engine as engine_module
from optdepth.inference.engine import Engine
from optdepth.inference.legs import Leg
from optdepth.inference.look import Look
from optdepth.inference.running_batch import RunningBatch
from optdepth.networks import StagedNetwork

PARTS = ("check", "stages", "heads", "looks", "leaving", "gathering", "rest")


def where(engine: Engine, chunks: Sequence[Inputs], repeats: int) -> dict[str, float]:
    """Milliseconds a batch in each part of a call; the median over the repeats of each batch, then the mean."""
    engine(chunks[0])
    found = np.empty((repeats, len(chunks), len(PARTS)))
    with _timed() as spent:
        for turn in range(repeats):
            for i, chunk in enumerate(chunks):
                spent.clear()
                begin = time.perf_counter()
                engine(chunk)
                spent["rest"] = time.perf_counter() - begin - sum(spent.values())
                found[turn, i] = [1e3 * spent[part] for part in PARTS]
    return dict(zip(PARTS, np.median(found, axis=0).mean(axis=0).tolist(), strict=True))


@contextmanager
def _timed() -> Iterator[Counter[str]]:
    """Every part of the engine's calls with a clock around it, about a microsecond each."""
    spent: Counter[str] = Counter()

    def clocked(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = work(*given, **named)
            spent[part] += time.perf_counter() - begin
            return result

        return call

    places: list[tuple[Any, str, str]] = [
        (engine_module, "check_finite", "check"),
        (Leg, "advance", "stages"),
        (Leg, "head", "heads"),
        (Look, "batch", "looks"),
        (Look, "one", "looks"),
        (RunningBatch, "stopping", "leaving"),
        (RunningBatch, "settle", "leaving"),
        (RunningBatch, "compact", "gathering"),
        (engine_module, "select", "gathering"),
    ]
    patches = [mock.patch.object(at, name, clocked(part, getattr(at, name))) for at, name, part in places]
    try:
        for patch in patches:
            patch.start()
        yield spent
    finally:
        mock.patch.stopall()


@torch.inference_mode()
def by_size(network: StagedNetwork, example: Inputs, k: int, sizes: Sequence[int]) -> list[dict[str, float]]:
    """Microseconds a sample of stage k: at the first call with a batch size, and the median of the calls after it."""
    state, rows = network.start(example), hidden(example)
    for stage in range(k):
        state = network.advance(state, stage)
    found = []
    for size in sizes:
        part, spent = select(state, torch.arange(size, device=rows.device) % len(rows)), []
        for _ in range(12):
            begin = time.perf_counter()
            network.advance(part, k)
            spent.append(1e6 * (time.perf_counter() - begin) / size)
        found.append({"size": size, "first": spent[0], "after": float(np.median(spent[1:]))})
    return found
