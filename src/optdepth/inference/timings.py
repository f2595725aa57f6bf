"""What stages and gathering cost on this machine, by batch size: whether it pays to compact a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from jaxtyping import Float

from ..costs import now
from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.staged import Inputs, hidden, select


@dataclass(frozen=True, eq=False)
class Timings:
    """Milliseconds a batch, by batch size.

    Attributes:
        network: fingerprint of the network timed.
        sizes: (S,) batch sizes, rising.
        stages: (K, S) of each stage.
        gathers: (K, S) of gathering so many samples of the state after stage k out of a batch twice as large.
    """

    network: str
    sizes: Float[np.ndarray, " S"]
    stages: Float[np.ndarray, "K S"]
    gathers: Float[np.ndarray, "K S"]

    @classmethod
    @torch.inference_mode()
    def measure(
        cls,
        network: StagedNetwork,
        example: Inputs,
        *,
        sizes: Sequence[int] = (1, 4, 16, 64),
        repeats: int = 15,
    ) -> Self:
        """Medians over repeats, pass by pass; the machine should be doing nothing else.

        Args:
            example: inputs on the network's device; repeated to fill the sizes.
            sizes: at least two, rising. Between them costs are interpolated, beyond them extrapolated, linearly.
            repeats: passes timed at each size, after one that warms up.
        """
        if len(sizes) < 2 or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
            raise InputError(f"sizes {list(sizes)}: give at least two batch sizes, rising, such as 1, 4, 16, 64")
        if repeats < 1:
            raise InputError(f"repeats is {repeats}; at least one pass must be timed")
        network.eval()
        columns, rows = [], hidden(example)
        for size in sizes:
            inputs = select(example, torch.arange(size, device=rows.device) % len(rows))
            passes = [_one_pass(network, inputs) for _ in range(repeats + 1)]
            columns.append(np.median(np.asarray(passes[1:]), axis=0))
        stages, gathers = np.stack(columns, axis=-1)
        return cls(network.fingerprint(), np.asarray(sizes, dtype=float), stages, gathers)

    def check(self, network: str) -> None:
        """Refuses timings of another network."""
        if network != self.network:
            raise InputError(f"the timings are of network {self.network}, this is {network}; measure them again")

    def stage(self, k: int, rows: int) -> float:
        """Milliseconds of stage k on so many samples."""
        return _at(self.sizes, self.stages[k], rows)

    def pays(self, k: int, until: int, rows: int, room: int) -> bool:
        """Whether gathering `room` of `rows` samples after stage k saves more than it costs.

        Counted are the stages up to `until`, the next exit looked at: there one may compact again.
        """
        saved = sum(self.stage(j, rows) - self.stage(j, room) for j in range(k + 1, until + 1))
        return saved > _at(self.sizes, self.gathers[k], room)


def _one_pass(network: StagedNetwork, inputs: Inputs) -> tuple[list[float], list[float]]:
    """Milliseconds of every stage, and of gathering the batch after it out of twice its size."""
    stages, gathers = [], []
    rows, device = len(hidden(inputs)), hidden(inputs).device
    index = 2 * torch.arange(rows, device=device)
    twice = torch.arange(2 * rows, device=device) // 2

    def timed(work: Callable[[], object]) -> tuple[object, float]:
        begin = now(device)
        result = work()
        return result, 1e3 * (now(device) - begin)

    state = network.start(inputs)
    for k in range(len(network.exits)):
        state, spent = timed(lambda k=k, state=state: network.advance(state, k))  # type: ignore[misc]
        stages.append(spent)
        double = select(state, twice)
        gathers.append(timed(lambda double=double: select(double, index))[1])  # type: ignore[misc]
    return stages, gathers


def _at(sizes: np.ndarray, values: np.ndarray, rows: int) -> float:
    """The line through the two sizes nearest to `rows`."""
    upper = min(max(int(np.searchsorted(sizes, rows)), 1), len(sizes) - 1)
    low, high = sizes[upper - 1], sizes[upper]
    return float(values[upper - 1] + (values[upper] - values[upper - 1]) * (rows - low) / (high - low))
