"""A step of a training ahead of it, to time: it leaves the network, and all randomness, as they were."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..batch import Inputs
from .objective import Objective


def rehearsal(objective: Objective, price: float) -> Callable[[tuple[Inputs, Tensor]], None]:
    """What runs forward and backward on inputs and targets, and updates nothing."""

    def step(batch: tuple[Inputs, Tensor]) -> None:
        kept = [buffer.clone() for buffer in objective.buffers()]
        objective.train()
        with torch.random.fork_rng(devices=[]):  # for modules that draw
            objective(*batch, price)[0].backward()
        objective.zero_grad()
        for buffer, before in zip(objective.buffers(), kept, strict=True):
            buffer.copy_(before)

    return step
