"""The streaming engine for a long time: nothing lost, nothing answered twice, memory level."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream


def soak(engine: Engine, images: Tensor, *, seconds: float, seed: int) -> dict[str, Any]:
    """Mixed batches through the streaming engine: counts answers, checks each, and watches the memory.

    Memory is the resident set at each tenth of the time.
    """
    expected = torch.cat([engine(chunk).exit for chunk in images.split(256)])
    choose, drawn, end = random.Random(seed), [0], time.perf_counter() + seconds
    asked: dict[int, int] = {}

    def source() -> Iterator[Tensor]:
        while time.perf_counter() < end:
            for _ in range(choose.choice((1, 3, 8, 50, 256))):
                image = choose.randrange(len(images))
                asked[drawn[0]] = image
                drawn[0] += 1
                yield images[image]

    unlike, memory, most, answers = 0, [], 0, 0
    for answer in stream(engine, source(), batch=64, max_delay=200.0):
        answers += 1
        most = max(most, len(asked))
        unlike += int(answer.exit != int(expected[asked.pop(answer.index)]))  # a second answer would find nothing
        if time.perf_counter() >= end - seconds * (1 - len(memory) / 10) and len(memory) < 10:
            memory.append(_resident())
    return {
        "seconds": seconds,
        "answers": answers,
        "lost": len(asked),
        "exits unlike the engine's": unlike,
        "in flight at most": most,
        "memory, MB": memory,
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * resource.getpagesize() / 1e6
