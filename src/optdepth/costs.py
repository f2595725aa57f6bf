"""What a network costs: floating-point operations or time, with trunk, looking and answering kept apart."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .errors import InputError
from .networks import StagedNetwork
from .networks.staged import Inputs, State, hidden, residual_size
from .observe import Memory, Observer
from .trace import Costs


def flops(network: StagedNetwork, example: Inputs) -> Costs:
    """Floating-point operations a sample, counted by `torch.utils.flop_counter` on one pass.

    The counter sees matrix products and convolutions; the features and the rule, a few operations a class, are
    left out. The head's work is the cost of looking, and answering is then free.

    Args:
        example: inputs of n samples, a tensor (n, ...) or a tuple or dict of such; the count is divided by n.
    """
    counts: list[float] = []

    def measured(work: Callable[[], Tensor]) -> Tensor:
        with FlopCounterMode(display=False) as counter:
            result = work()
        counts.append(counter.get_total_flops() / len(hidden(example)))
        return result

    _walk(network, example, measured)
    return _costs(np.asarray(counts), "FLOPs")


def latency(
    network: StagedNetwork,
    example: Inputs,
    *,
    features: tuple[str, ...] = ("confidence",),
    repeats: int = 30,
    warmup: int = 5,
) -> Costs:
    """Milliseconds a sample, at the batch size of the example and torch's present number of threads.

    The median over repeats of every part's time, parts interleaved pass by pass so that a slow moment of the machine
    falls on all of them. Looking is the head, the features a rule reads, one comparison and its transfer to Python.

    Args:
        example: inputs of n samples, on the network's device.
        features: that the rule to be solved will read.
        repeats, warmup: passes timed, and passes before them.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; at least one pass must be timed")
    observer, first = Observer(features), hidden(example)
    passes = []
    for _ in range(warmup + repeats):
        times: list[float] = []

        def measured(work: Callable[[], Tensor], times: list[float] = times) -> Tensor:
            begin = now(first.device)
            result = work()
            times.append(1e3 * (now(first.device) - begin) / len(first))
            return result

        _walk(network, example, measured, observer)
        passes.append(times)
    middle = np.median(np.asarray(passes[warmup:]), axis=0)
    return _costs(middle, f"ms a sample at batch {len(first)}, {torch.get_num_threads()} threads")


@torch.inference_mode()
def _walk(
    network: StagedNetwork,
    inputs: Inputs,
    measured: Callable[[Callable[[], Tensor]], Tensor],
    observer: Observer | None = None,
) -> None:
    """One pass in evaluation mode, every part through `measured`: the stem, then stage and look, exit by exit."""
    training = network.training
    network.eval()
    memory: Memory = {}

    def look(k: int, before: State, state: State) -> Tensor:
        nonlocal memory
        logits = network.answer(state, k)
        if observer is not None:
            residual = residual_size(before, state) if observer.needs_residual else None
            seen, memory = observer(logits, memory, residual)
            (seen[:, 0] >= 2).sum().item()
        return logits

    state = measured(lambda: network.start(inputs))
    for k in range(len(network.exits)):
        before = state
        state = measured(lambda k=k, before=before: network.advance(before, k))  # type: ignore[misc]
        measured(lambda k=k, before=before, state=state: look(k, before, state))  # type: ignore[misc]
    network.train(training)


def _costs(parts: np.ndarray, unit: str) -> Costs:
    """Costs from the parts of one pass: stem, stage, look, stage, look, ..."""
    stages = parts[1::2].copy()
    stages[0] += parts[0]
    return Costs.of(np.cumsum(stages), parts[2::2], 0.0, unit)


def now(device: torch.device) -> float:
    """Seconds on the clock, with all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
