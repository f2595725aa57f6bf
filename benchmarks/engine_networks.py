"""The networks that the engine is timed on, made where they are not there; with traces, and inputs to time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

import minilm
from optdepth.batch import Inputs, hidden
from optdepth.cli.steps import record, train
from optdepth.costs import flops
from optdepth.networks import StagedNetwork
from optdepth.runs import Run
from optdepth.trace import Trace

RUNS = Path("runs")


@dataclass(frozen=True)
class Subject:
    """One network to time.

    Attributes:
        title: what it is.
        folder: of the run.
        fit, test: traces, costs in FLOPs.
        inputs: of the test split.
        prices: loss that one full pass is worth.
        samples: to time at most, of one batch size.
        timed: batch sizes that stages are timed at.
    """

    title: str
    folder: Path
    network: StagedNetwork
    fit: Trace
    test: Trace
    inputs: Inputs
    prices: tuple[float, ...]
    samples: int
    timed: tuple[int, ...]

    def chunks(self, size: int) -> list[Inputs]:
        """Batches of one size, at least two of them."""
        count = max(2, min(128, self.samples // size))
        rows = min(len(hidden(self.inputs)) // size, count)
        return [tree_map(lambda tensor, i=i: tensor[i * size : (i + 1) * size], self.inputs) for i in range(rows)]


def linear(data: str, text: str) -> Subject:
    """Linear heads on a trunk that gives each of them 2% of its gradient."""
    folder = RUNS / f"{Path(data).name}-linear"
    if not (folder / "traces" / "test.safetensors").is_file():
        loss, heads = "light-supervision", "linear"
        train(out=folder, data=data, epochs=15, precision="auto", exits="all", heads=heads, loss=loss)
        record(folder)
    return _images("resnet20 on CIFAR-10, linear heads", folder)


def conv(data: str, text: str) -> Subject:
    """Heads with convolutions, taught by the last exit on the trunk of a network trained without exits."""
    folder, plain = RUNS / f"{Path(data).name}-taught", RUNS / f"{Path(data).name}-plain"
    if not (folder / "traces" / "test.safetensors").is_file():
        train(out=plain, data=data, epochs=15, precision="auto", exits="last", loss="last-exit")
        given: dict[str, Any] = {"start": plain, "backbone": "frozen", "loss": "last-exit+distillation"}
        train(out=folder, data=data, epochs=2, precision="auto", exits="all", heads="conv", **given)
        record(folder)
    return _images("resnet20 on CIFAR-10, conv heads on the trunk trained without exits", folder)


def text(data: str, text: str) -> Subject:
    """The network of `benchmarks/minilm.py` whose heads alone were trained."""
    held, folder = minilm.sst2(Path(text), 0), minilm.RUNS / "minilm-frozen"
    for name in ("plain", "frozen"):
        network = minilm.trained(name, held, 2, 0)
    costs = flops(network, next(held.batches("fit", 4))[0]).relative()
    fit, test = (minilm.traced(network, held, split, costs, folder) for split in ("fit", "test"))
    title = f"MiniLM on SST-2, linear heads on the trunk trained without exits, {minilm.TOKENS} tokens"
    return Subject(title, folder, network, fit, test, held.splits["test"].inputs, (0.05, 0.1), 256, (1, 4, 16, 64))


def _images(title: str, folder: Path) -> Subject:
    run = Run(folder)
    network = run.network()
    device = next(network.parameters()).device
    images = torch.cat([x for x, _ in itertools.islice(run.data().batches("test", 256), 8)]).to(device)
    traces = run.traces()
    return Subject(
        title, folder, network, traces["fit"], traces["test"], images, (0.1, 0.3, 0.6), 512, (1, 4, 16, 64, 256)
    )


SUBJECTS: dict[str, Callable[[str, str], Subject]] = {"linear": linear, "conv": conv, "text": text}
