"""What a network costs in floating-point operations, with trunk, looking and answering kept apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .batch import Inputs, State, hidden, plain
from .exit_costs import Costs
from .networks import StagedNetwork, served
from .networks.work import counted
from .threads import light


@light
def flops(network: StagedNetwork, example: Inputs) -> Costs:
    """Floating-point operations a sample, counted on one pass.

    Counted are matrix products, convolutions and attention; the features and the rule, a few operations a class, are
    left out. The head's work is the cost of looking, and answering is then free.

    Args:
        example: inputs of n samples, a tensor (n, ...) or a tuple or dict of such; the count is divided by n.

    Example:
        >>> od.flops(network, images).relative().full
        1.0
    """
    counts: list[float] = []
    example = plain(example)

    def measured(work: Callable[[], State]) -> State:
        count, result = counted(work)
        counts.append(count / len(hidden(example)))
        return result

    _walk(network, example, measured)
    return _costs(np.asarray(counts), "FLOPs")


@torch.inference_mode()
def _walk(network: StagedNetwork, inputs: Inputs, measured: Callable[[Callable[[], State]], State]) -> None:
    """One pass as it is served, every part through `measured`: the stem, then stage and head, exit by exit."""
    network = served(network)
    state = measured(lambda: network.start(inputs))
    for k in range(len(network.exits)):
        state = measured(lambda k=k, before=state: network.advance(before, k))  # type: ignore[misc]
        measured(lambda k=k, state=state: network.answer(state, k))  # type: ignore[misc]


def _costs(parts: np.ndarray, unit: str) -> Costs:
    """Costs from the parts of one pass: stem, stage, head, stage, head, ..."""
    stages = parts[1::2].copy()
    stages[0] += parts[0]
    return Costs.of(np.cumsum(stages), parts[2::2], 0.0, unit)
