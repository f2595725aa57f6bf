"""What stages, looks and gathering cost on this machine, by batch size: where to look, and whether to compact."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..batch import Inputs, State, hidden, now, plain, select
from ..errors import InputError
from ..exit_costs import Costs
from ..features import Memory
from ..networks import StagedNetwork, served
from ..stopping.gain import GainRule
from ..stopping.regression import Additive
from ..stopping.rule import Origin
from ..threads import ThreadChoice, said
from .look import Look
from .running_batch import RunningBatch

_SIZES = (1, 4, 16, 64, 256)
_RAMPS = 8
"""Pieces of a feature's curve in the rule that looks are timed with: as many as `snell` fits."""
_TURN = 5
"""Passes at one batch size before the next size has its turn."""
_APART = 4
"""Exits from one look to the next while looks are timed."""
_WORTH = 0.97
"""A batch is cut where that takes less than this share of its time: less is within what a measurement is off."""


@dataclass(frozen=True, eq=False)
class Timings:
    """Milliseconds a batch, by batch size.

    Attributes:
        network: fingerprint of the network timed.
        sizes: (S,) batch sizes, rising.
        stages: (K, S) of each stage, the stem in the first.
        looks: (K, S) of looking at each exit: head, features, decision, and taking out half of the batch; at the last
            exit the head alone.
        gathers: (K, S) of gathering so many samples of the state after stage k out of a batch twice as large.
        threads: (S,) of torch while a size was timed: as many as pay for it.

    Example:
        >>> timings = od.Timings.measure(network, images, sizes=(1, 16), repeats=1)
        >>> engine = od.Engine(network, od.placed(fit, price=0.05), timings=timings)
    """

    network: str
    sizes: Float[np.ndarray, " S"]
    stages: Float[np.ndarray, "K S"]
    looks: Float[np.ndarray, "K S"]
    gathers: Float[np.ndarray, "K S"]
    threads: tuple[int, ...]

    _sizes: list[float] = field(init=False, repr=False)
    _upto: list[list[float]] = field(init=False, repr=False)
    _looks: list[list[float]] = field(init=False, repr=False)
    _gathers: list[list[float]] = field(init=False, repr=False)
    _pieces: dict[tuple[int, tuple[bool, ...]], int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.stages.shape
        if not all(each.shape == shape for each in (self.looks, self.gathers)) or shape[1:] != self.sizes.shape:
            shapes = ", ".join(str(getattr(self, name).shape) for name in ("sizes", "stages", "looks", "gathers"))
            raise InputError(f"timings of shapes {shapes}: give (S,) sizes, and (K, S) of stages, looks and gathers")
        if len(self.threads) != len(self.sizes) or not (np.diff(self.sizes, prepend=0.0) > 0).all():
            raise InputError(f"timings at sizes {self.sizes.tolist()} on {self.threads} threads: sizes rise, one each")
        if not all(np.isfinite(each).all() and (each >= 0).all() for each in (self.stages, self.looks, self.gathers)):
            raise InputError("timings that are negative, NaN or infinite: measure them again")
        object.__setattr__(self, "_sizes", self.sizes.tolist())
        object.__setattr__(self, "_upto", np.cumsum(self.stages, axis=0).tolist())
        object.__setattr__(self, "_looks", self.looks.tolist())
        object.__setattr__(self, "_gathers", self.gathers.tolist())

    @classmethod
    def measure(
        cls,
        network: StagedNetwork,
        example: Inputs,
        *,
        features: Sequence[str] = ("margin",),
        sizes: Sequence[int] = _SIZES,
        repeats: int = 15,
    ) -> Self:
        """Medians over repeats, the sizes in turns so that a slow moment of the machine falls on all of them.

        The machine should be doing nothing else. Stages are timed in passes of their own, as they run where no exit is
        looked at. Each size is timed on as many threads as pay for it, or on the user's own number (`threads.py`).

        Args:
            example: inputs on the network's device; repeated to fill the sizes.
            features: that the rule reads.
            sizes: rising. Between them times are interpolated, beyond them extrapolated, linearly.
            repeats: passes timed at each size, at least; in turns of five.

        Raises:
            InputError: sizes that do not rise from 1 on, or no repeats.
        """
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
            raise InputError(f"sizes {list(sizes)}: give batch sizes that rise from 1 on, such as 1, 4, 16, 64")
        if repeats < 1:
            raise InputError(f"repeats is {repeats}; at least one pass must be timed")
        example = plain(example)
        network, rows = served(network), hidden(example)
        look = Look(_stand_in(len(network.exits), features).to(rows.device))
        batches = [select(example, torch.arange(size, device=rows.device) % len(rows)) for size in sizes]
        choice, threads = ThreadChoice(), []
        turns: list[list[Float[np.ndarray, "3 K"]]] = []
        for _ in range(math.ceil(repeats / _TURN)):
            turns.append([])
            for size, batch in zip(sizes, batches, strict=True):
                with torch.inference_mode(), choice.running(f"batches of {size}", batch, network.full) as count:
                    turns[-1].append(_turn(network, batch, look))
                threads.append(count)
        medians = np.median(turns, axis=0).transpose(1, 2, 0)
        stages, looks, gathers = np.maximum.accumulate(medians, axis=2)  # more samples never take less: that is noise
        held = np.asarray(sizes, dtype=float)
        return cls(network.fingerprint(), held, stages, looks, gathers, tuple(threads[: len(sizes)]))

    def check(self, network: str) -> None:
        """Refuses timings of another network."""
        if network != self.network:
            raise InputError(f"the timings are of network {self.network}, this is {network}; measure them again")

    def costs(self, batch: int) -> Costs:
        """Milliseconds a sample at a batch size, as an engine with these timings runs it."""
        rows = self.piece(batch)
        stages = [self.stage(k, rows) / rows for k in range(len(self.stages))]
        looks = [_at(self._sizes, each, rows) / rows for each in self._looks]
        threads = said(self.threads_at(rows))
        return Costs.of(np.cumsum(stages), looks, 0.0, f"ms a sample at batch {batch}, {threads}")

    def threads_at(self, rows: int) -> int:
        """How many pay for a batch of so many samples: as for the largest size measured that is no larger."""
        return self.threads[max(bisect_right(self._sizes, rows) - 1, 0)]

    def piece(self, rows: int, looks: Sequence[bool] = ()) -> int:
        """The batch size to run so many samples in: less than all where large batches take longer a sample, as they do
        on a CPU once a state no longer fits its caches.

        Args:
            looks: at which exits there is a look; what small batches lose is mostly lost there.
        """
        asked = rows, tuple(looks)
        if asked not in self._pieces:
            sizes = [int(size) for size in self._sizes if size < rows]
            each = {size: self._full(size, asked[1]) / size for size in (*sizes, rows)}
            size = max(size for size, spent in each.items() if spent <= min(each.values()) / _WORTH)
            self._pieces[asked] = math.ceil(rows / math.ceil(rows / size))  # equal pieces
        return self._pieces[asked]

    def stage(self, k: int, rows: int) -> float:
        """Milliseconds of stage k on so many samples."""
        return self._until(k, rows) - self._until(k - 1, rows)

    def pays(self, k: int, until: int, rows: int, room: int) -> bool:
        """Whether gathering `room` of `rows` samples after stage k saves more than it costs.

        Counted are the stages up to `until`, the next exit looked at: there one may compact again.
        """
        saved = self._until(until, rows) - self._until(k, rows) - self._until(until, room) + self._until(k, room)
        return saved > _at(self._sizes, self._gathers[k], room)

    def _full(self, rows: int, looks: Sequence[bool]) -> float:
        """Milliseconds of all stages and of the looks."""
        looked = (each for each, looks_there in zip(self._looks, looks, strict=False) if looks_there)
        return self._until(len(self._upto) - 1, rows) + sum(_at(self._sizes, each, rows) for each in looked)

    def _until(self, k: int, rows: int) -> float:
        """Milliseconds of the stages up to k."""
        return _at(self._sizes, self._upto[k], rows) if k >= 0 else 0.0


def latency(
    network: StagedNetwork, example: Inputs, *, features: Sequence[str] = ("margin",), repeats: int = 30
) -> Costs:
    """Milliseconds a sample, at the batch size of the example, on as many threads as pay for it (`threads.py`).

    Looking at an exit is what an engine does there: head, features, decision, and taking out those that stop. At a
    small batch that costs far more than the head's own work.

    Args:
        example: inputs of n samples, on the network's device.
        features: that the rule to be solved will read.
        repeats: passes timed, of which the median counts.

    Example:
        >>> latency(network, images[:8], repeats=1).unit
        'ms a sample at batch 8, ...
    """
    batch = len(hidden(plain(example)))
    return Timings.measure(network, example, features=features, sizes=(batch,), repeats=repeats).costs(batch)


def _stand_in(exits: int, features: Sequence[str]) -> GainRule:
    """A rule as dear to ask as a solved one, which never stops."""
    shape = (len(features), _RAMPS)
    low = torch.arange(_RAMPS).expand(shape) / _RAMPS
    ramps = {"low": low, "scale": torch.full(shape, float(_RAMPS)), "weight": torch.full(shape, -0.5 / _RAMPS)}
    gains = [Additive(**ramps, intercept=torch.tensor(float(len(features)))) for _ in range(exits - 1)]
    nothing = np.zeros(exits)
    return GainRule(Origin(Costs.of(np.arange(1.0, exits + 1), nothing, nothing, "")), features, gains)


def _turn(network: StagedNetwork, inputs: Inputs, look: Look) -> Float[np.ndarray, "3 K"]:
    """Medians of some passes at one batch size: `Timings.stages`, `looks` and `gathers`.

    The first pass is left out: batches of another size came before, and left their data in the caches.
    """
    stages = [_stages(network, inputs) for _ in range(_TURN + 1)][1:]
    looks = [_looks(network, inputs, look) for _ in range(3)]
    return np.vstack([np.median(stages, axis=0), np.median(looks, axis=0)])


@torch.inference_mode()
def _stages(network: StagedNetwork, inputs: Inputs) -> list[float]:
    """Milliseconds of every stage, one after another; the stem in the first."""
    device = hidden(inputs).device
    begin, state, spent = now(device), network.start(inputs), []
    for k in range(len(network.exits)):
        state = network.advance(state, k)
        end = now(device)
        spent.append(1e3 * (end - begin))
        begin = end
    return spent


@torch.inference_mode()
def _looks(network: StagedNetwork, inputs: Inputs, look: Look) -> tuple[list[float], list[float]]:
    """Milliseconds of the look after every stage, and of gathering the batch out of twice its size.

    A pass looks at one exit in `_APART`, as solved rules do. Between looks the stages drive the look's code and data
    out of the processor's caches, and it takes several times as long as it does again and again.
    """
    looks, gathers = np.empty(len(network.exits)), np.empty(len(network.exits))
    rows, device, last = len(hidden(inputs)), hidden(inputs).device, len(network.exits) - 1
    index = 2 * torch.arange(rows, device=device)
    half, twice = torch.arange(rows, device=device) % 2 == 1, torch.arange(2 * rows, device=device) // 2

    def looked(k: int, before: State, state: State, memory: Memory) -> Memory:
        logits: Tensor = network.answer(state, k)
        if k == last:
            return memory
        if rows == 1:
            return look.one(k, logits, before, state, memory)[1]
        _, after = look.batch(k, logits, before, state, memory)
        running = RunningBatch(rows, rows, last, device)
        running.settle(k, logits, half, running.stopping(half))
        select((state, after), running.compact(running.left))
        return after

    for first in range(min(_APART, last + 1)):
        state = network.start(inputs)
        memory: Memory = {}
        for k in range(last + 1):
            before, state = state, network.advance(state, k)
            if k % _APART == first:
                begin = now(device)
                memory = looked(k, before, state, memory)
                looks[k] = now(device) - begin
                double = select(state, twice)
                begin = now(device)
                select(double, index)
                gathers[k] = now(device) - begin
    return (1e3 * looks).tolist(), (1e3 * gathers).tolist()


def _at(sizes: Sequence[float], values: Sequence[float], rows: int) -> float:
    """The line through the two sizes nearest to `rows`, in proportion where there is one size alone; never less than in
    proportion below the sizes measured, where such a line may fall below nothing.

    In Python numbers: an engine asks at every exit, and a numpy call costs more than the arithmetic.
    """
    if len(sizes) == 1:
        return values[0] * rows / sizes[0]
    upper = min(max(bisect_left(sizes, rows), 1), len(sizes) - 1)
    low, high = sizes[upper - 1], sizes[upper]
    line = values[upper - 1] + (values[upper] - values[upper - 1]) * (rows - low) / (high - low)
    return line if rows >= low else max(line, values[0] * rows / low)
