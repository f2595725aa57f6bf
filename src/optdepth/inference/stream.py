"""Streaming: samples in as they come, answers out as they are ready; every stage runs on batches as full as can be."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map

from ..batch import Inputs, State, check_answers, check_finite, hidden, plain, select
from ..errors import InputError
from ..interrupts import interrupts
from .engine import Engine
from .legs import Remembered


@dataclass(frozen=True, eq=False)
class Streamed:
    """The answer to one sample of a stream.

    Attributes:
        index: its number in the stream, from 0.
        logits: (C,) of the exit it stopped at; None where it failed.
        exit, cost: as in `Answer`; exit -1 and cost 0 where it failed.
        waited: milliseconds from its arrival to its answer.
        error: what its failure was, in one line; empty otherwise.
    """

    index: int
    logits: Float[Tensor, " C"] | None
    exit: int
    cost: float
    waited: float
    error: str = ""


def stream(
    engine: Engine,
    samples: Iterable[Inputs],
    *,
    batch: int,
    capacity: int | None = None,
    max_delay: float | None = None,
    ordered: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Streamed]:
    """Answers a stream, sample by sample, with the answers `engine` gives.

    Survivors of an exit wait in front of the next stage until there are `batch` of them, so the deep stages run on full
    batches although few samples reach them. Samples of unlike form, types or shapes run apart, such as sentences of
    several lengths, which need no padding then. The next sample is drawn only when the one who iterates asks for an
    answer that is not ready: nothing is read ahead, and a slow reader slows the stream down.

    What a signal handler raises, a time limit say, ends the stream and is raised here.

    Args:
        samples: one sample each, a tensor (...) or a tuple or dict of such, as the engine takes them less the batch, on
            the network's device. Of batches that are tensors, `itertools.chain.from_iterable(batches)`.
        batch: samples a stage runs on when it can.
        capacity: samples in flight at most, from arrival to answer; a batch in front of every stage when not given.
        max_delay: milliseconds that a sample waits for others in all. Once its oldest sample has been here for so long
            a queue is run as it is, full or not, and such a sample goes on to its exit without waiting again. The
            clock is looked at whenever a sample arrives or a stage has run, so an iterable that blocks holds up all.
            None: samples wait until queues are full, the capacity is used up, or the stream ends.
        ordered: answers in the order of arrival; early ones wait, and count as in flight.
        clock: seconds; another one makes tests exact.

    Raises:
        InputError: a batch below 1, a capacity below the batch, or a negative delay.

    Example:
        >>> answers = od.stream(od.Engine(network, od.placed(fit, price=0.05)), iter(images), batch=16, ordered=True)
        >>> [answer.index for answer in answers][:3]
        [0, 1, 2]
    """
    waiting = len(engine.network.exits) * batch if capacity is None else capacity
    if batch < 1 or waiting < batch:
        raise InputError(f"batch {batch}, capacity {waiting}: a batch is at least 1, the capacity at least a batch")
    if max_delay is not None and not max_delay >= 0:
        raise InputError(f"max_delay is {max_delay}; it is in milliseconds, >= 0")
    yield from _Stream(engine, batch, waiting, max_delay, ordered, clock).run(samples)


@dataclass(eq=False)
class _Group:
    """Samples that wait in front of a stage with one state: their numbers, arrivals, and what exits told so far."""

    index: list[int]
    arrived: list[float]
    state: State
    memory: Remembered

    def cut(self, size: int) -> tuple[_Group, _Group | None]:
        """The first `size` samples, and the others."""
        if len(self.index) <= size:
            return self, None
        parts = [
            tree_map(lambda tensor, part=part: tensor[part], (self.state, self.memory))
            for part in (slice(size), slice(size, None))
        ]
        first, rest = parts
        return _Group(self.index[:size], self.arrived[:size], *first), _Group(
            self.index[size:], self.arrived[size:], *rest
        )

    def kept(self, rows: list[int], state: State, memory: Remembered) -> _Group:
        """Some of the samples, one leg on."""
        return _Group([self.index[i] for i in rows], [self.arrived[i] for i in rows], state, memory)


_Key = tuple[int, int]
"""A leg, by number, and the kind of a sample's state in front of it, numbered: what can run together."""

_Kind = tuple[TreeSpec, tuple[tuple[torch.Size, torch.dtype, torch.device], ...]]
"""The form of a state, and the shapes, types and devices in it."""


class _End:
    """Comes after the last sample."""


class _Stream:
    """The queues of one stream, and what is to be done next."""

    def __init__(
        self,
        engine: Engine,
        batch: int,
        capacity: int,
        max_delay: float | None,
        ordered: bool,
        clock: Callable[[], float],
    ) -> None:
        self.engine, self.plan, self.batch, self.capacity = engine, engine.plan(), batch, capacity
        self.delay, self.ordered, self.clock = None if max_delay is None else max_delay / 1e3, ordered, clock
        self.queues: dict[_Key, deque[_Group]] = {}
        self.waiting: dict[_Key, int] = {}
        self.kinds: dict[_Kind, int] = {}
        self.done: deque[Streamed] = deque()
        self.early: dict[int, Streamed] = {}
        self.drawn = self.given = 0

    def run(self, samples: Iterable[Inputs]) -> Iterator[Streamed]:
        source, open_ = iter(samples), True
        while open_ or self.waiting:
            key = self._due() or self._full()
            if key is None and open_ and self.drawn - self.given < self.capacity:
                sample = next(source, _End())
                if isinstance(sample, _End):
                    open_ = False
                    continue
                self._arrive(plain(sample))
                yield from self._ready()
                continue
            if key is None:  # no room for another sample, or none left: the fullest queue, the deepest of those
                key = max(self.waiting, key=lambda key: (self.waiting[key], key[0]))
            self._step(key)
            yield from self._ready()

    def _arrive(self, sample: object) -> None:
        index, at = self.drawn, self.clock()
        self.drawn += 1
        leaves = tree_leaves(sample)
        if leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
            alone = tree_map(lambda tensor: tensor.unsqueeze(0), sample)
            self._put(0, _Group([index], [at], alone, Remembered.nothing()))
        else:
            said = f"it is a {type(sample).__name__}; give a tensor, or a tuple or dict of tensors"
            self._finish([self._failed(index, at, said)])

    def _due(self) -> _Key | None:
        """A queue whose oldest sample has waited long enough, the deepest of them."""
        if self.delay is None:
            return None
        limit = self.clock() - self.delay
        due = [key for key, groups in self.queues.items() if min(min(group.arrived) for group in groups) <= limit]
        return max(due, key=lambda key: key[0], default=None)

    def _full(self) -> _Key | None:
        """A queue that fills a batch, the deepest of them: what is nearly done makes room first."""
        return max((key for key, n in self.waiting.items() if n >= self.batch), key=lambda key: key[0], default=None)

    def _put(self, leg: int, group: _Group) -> None:
        leaves, form = tree_flatten(group.state)
        kind = (form, tuple((leaf.shape[1:], leaf.dtype, leaf.device) for leaf in leaves))
        key = (leg, self.kinds.setdefault(kind, len(self.kinds)))
        self.queues.setdefault(key, deque()).append(group)
        self.waiting[key] = self.waiting.get(key, 0) + len(group.index)

    def _take(self, key: _Key) -> _Group:
        """At most a batch from the front of a queue."""
        groups, taken, size = self.queues[key], [], 0
        while groups and size < self.batch:
            group, rest = groups.popleft().cut(self.batch - size)
            taken.append(group)
            size += len(group.index)
            if rest is not None:
                groups.appendleft(rest)
        self.waiting[key] -= size
        if not groups:
            del self.queues[key], self.waiting[key]
        if len(taken) == 1:
            return taken[0]
        state, memory = tree_map(lambda *parts: torch.cat(parts), *((group.state, group.memory) for group in taken))
        index = [i for group in taken for i in group.index]
        return _Group(index, [at for group in taken for at in group.arrived], state, memory)

    @torch.inference_mode()
    def _step(self, key: _Key) -> None:
        """Runs one leg on one batch of its queue."""
        self._attempt(key[0], self._take(key))

    def _attempt(self, k: int, group: _Group) -> None:
        """Runs a group; where that fails, its samples one by one, so that only those at fault are lost."""
        try:
            self._advance(k, group)
        except Exception as error:
            if interrupts(error):
                raise
            rest: _Group | None = group
            if len(group.index) == 1:
                self._finish([self._failed(group.index[0], group.arrived[0], " ".join(str(error).split()))])
                return
            while rest is not None:
                one, rest = rest.cut(1)
                self._attempt(k, one)

    def _advance(self, k: int, group: _Group) -> None:
        """One leg, answers for those that stop at its exit, and the next queue for the others."""
        engine, leg, n = self.engine, self.plan.legs[k], len(group.index)
        if k == 0:
            check_finite(group.state)
        room = engine.size(n)
        given, memory = group.state, group.memory
        if room > n:
            fill = torch.arange(room, device=hidden(given).device).clamp(max=n - 1)
            given, memory = select((given, memory), fill)
        with engine.threads(room, given, self.plan if k == 0 else None):
            state, answers, stops, memory = leg(given, memory)
        assert answers is not None
        check_answers(answers[:n] if stops is None else answers[:n][stops[:n]])
        if stops is None:
            self._finish(self._answers(group, leg.exit, list(range(n)), answers))
            return
        stopping = stops[:n].tolist()
        leaving = [i for i in range(n) if stopping[i]]
        staying = [i for i in range(n) if not stopping[i]]
        leave = self._answers(group, leg.exit, leaving, answers)
        if staying:
            rows = torch.tensor(staying, device=answers.device)
            self._put(k + 1, group.kept(staying, *select((state, memory), rows)))
        self._finish(leave)  # last of all: what fails before this line is tried again

    def _answers(self, group: _Group, k: int, rows: list[int], logits: Tensor) -> list[Streamed]:
        now, cost = self.clock(), self.plan.paid[k]
        # Copies: a view would keep the logits of the whole batch alive.
        return [Streamed(group.index[i], logits[i].clone(), k, cost, 1e3 * (now - group.arrived[i])) for i in rows]

    def _failed(self, index: int, arrived: float, said: str) -> Streamed:
        error = f"sample {index} of the stream failed: {said:.200}"
        return Streamed(index, None, -1, 0.0, 1e3 * (self.clock() - arrived), error)

    def _finish(self, answers: list[Streamed]) -> None:
        if self.ordered:
            self.early |= {answer.index: answer for answer in answers}
        else:
            self.done.extend(answers)

    def _ready(self) -> Iterator[Streamed]:
        """What can be handed out now."""
        while self.ordered and self.given + len(self.done) in self.early:
            self.done.append(self.early.pop(self.given + len(self.done)))
        while self.done:
            self.given += 1
            yield self.done.popleft()
