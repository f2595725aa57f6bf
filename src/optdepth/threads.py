"""How many threads a piece of work runs on: as many as pay, never all because they are there.

Threads wait for each other at the end of every operation. Small operations gain little by that; and where another
process wants a core, the wait is for a thread that is not running, and the same work takes ten times as long as on one
thread. So the number is measured on the work itself, here and now, and it is one unless more are clearly faster.

What the user has set wins, and nothing is measured then:

- `with on_threads(n)` around the work;
- `OMP_NUM_THREADS` or `MKL_NUM_THREADS` in the environment;
- `torch.set_num_threads(n)`, unless n is all processors or all cores: torch takes those by itself, so that a call
  cannot be told from no call. For all of them, use one of the other two.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import median
from typing import ParamSpec, TypeVar

import psutil
import torch
from threadpoolctl import threadpool_limits

from .batch import Tree, front, hidden
from .errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS, _RUN = 0.5, 0.1
"""A trial of two numbers of threads, and one run on one thread: large work is tried on a part of its samples."""
_LEAST = 2
"""Samples that work is tried on at the least: batch norm in training needs two."""
_PAIRS = 5
"""After so many pairs of runs more threads that are not ahead are given up."""
_SHARE = 0.8
"""Of the time that more threads could save at the best, they must save this: twice as many must take 0.6 of the time.
With less to win, it is lost as soon as another process wants a core."""
_RUIN = 2.0
"""More threads that once take so many times as long are given up at once: threads do so that wait for a core."""


@dataclass(frozen=True)
class _Force:
    """A number of threads in force, and whether it is the user's own."""

    count: int
    own: bool


_FORCE: ContextVar[_Force | None] = ContextVar("threads", default=None)


def own() -> int | None:
    """The number of threads that the user has set, see above; None where the choice is the library's."""
    if (force := _FORCE.get()) is not None:
        return force.count if force.own else None
    count = torch.get_num_threads()
    return count if count not in _all() or any(name in os.environ for name in _VARIABLES) else None


@functools.cache
def _all() -> frozenset[int]:
    """What torch takes by itself: the processors that this process may use, or as many as there are cores."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return frozenset({allowed, min(allowed, psutil.cpu_count(logical=False) or allowed)})


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Runs a block on so many threads of torch, as the user's own setting: nothing in it chooses another number.

    torch keeps a number for each thread of Python; one that first uses torch while the block runs takes this one.

        with on_threads(2):
            od.train(...)

    Raises:
        InputError: a number below 1.
    """
    if count < 1:
        raise InputError(f"count={count} threads: give at least 1")
    with _forced(_Force(count, own=True)):
        yield


@contextmanager
def chosen(count: int) -> Iterator[int]:
    """Runs a block on a number of threads that is known to pay, or on the user's own, and says on how many.

    Nothing in the block chooses another number, and neither does this one within a block for which one was chosen.
    """
    if _FORCE.get() is not None or own() is not None:
        yield torch.get_num_threads()
        return
    with _forced(_Force(count, own=False)):
        yield count


@contextmanager
def _forced(force: _Force) -> Iterator[None]:
    before, token = torch.get_num_threads(), _FORCE.set(force)
    if before != force.count:
        torch.set_num_threads(force.count)
    try:
        yield
    finally:
        _FORCE.reset(token)
        if before != force.count:
            torch.set_num_threads(before)


def said(count: int) -> str:
    """A number of threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def about(rows: int) -> str:
    """Names batches of like size, from a power of two to the next."""
    return f"about {1 << rows.bit_length() - 1}"


def light(work: Callable[P, R]) -> Callable[P, R]:
    """Marks a function of small operations, such as a solver's, for which one thread is known to be best.

    It runs on one thread, of torch and of the BLAS behind numpy and scipy, or on the user's own number.
    """

    @functools.wraps(work)
    def on_one(*args: P.args, **kwargs: P.kwargs) -> R:
        if _FORCE.get() is _LIGHT or own() is not None:
            return work(*args, **kwargs)
        with _forced(_LIGHT), threadpool_limits(1, user_api="blas"):
            return work(*args, **kwargs)

    return on_one


_LIGHT = _Force(1, own=False)


class ThreadChoice:
    """As many threads as pay for each kind of work, tried out when it first runs.

    For work on an accelerator nothing is chosen: torch's threads have little to do there.

    Args:
        clock: seconds; another one makes tests exact.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._counts: dict[Hashable, int] = {}

    @contextmanager
    def running(self, kind: Hashable, inputs: Tree, work: Callable[[Tree], object] | None) -> Iterator[int]:
        """Runs a block on as many threads as pay for it, or on the user's own number, and says on how many.

        Args:
            kind: what has the same number.
            inputs: of the block; large work is tried on some of them.
            work: does what the block does, and leaves nothing behind. None: there is no time for a trial now, and the
                number is one until there was.
        """
        most, free = torch.get_num_threads(), _FORCE.get() is None and own() is None
        if hidden(inputs).device.type != "cpu":
            self._counts[kind] = most
        if free and kind not in self._counts and work is not None:
            self._counts[kind] = paying(inputs, work, most, self.clock)
            _LOG.info("%s on %d of %d threads", kind, self._counts[kind], most)
        with chosen(self._counts.get(kind, 1)) as count:
            yield count


def paying(
    inputs: Tree, work: Callable[[Tree], object], most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """How many of at most `most` threads pay: one, and twice as many as long as that is clearly faster.

    Work is tried on as many samples as one thread does in a tenth of a second, and on two at the least.
    """
    count, rows = 1, len(hidden(inputs))

    def spent(count: int) -> float:
        with _forced(_Force(count, own=False)):
            begin = clock()
            work(some)
            return clock() - begin

    some = front(inputs, _LEAST)
    if most > 1 and rows > _LEAST:
        spent(1)  # the first run of all finds nothing ready
        some = front(inputs, max(_LEAST, int(_LEAST * _RUN / max(spent(1), 1e-9))))
    while count < most and _faster(spent, count, more := min(2 * count, most), clock):
        count = more
    return count


def _faster(spent: Callable[[int], float], few: int, many: int, clock: Callable[[], float]) -> bool:
    """Whether many threads are clearly faster than few, by medians of runs that take turns."""
    allowed, begin = 1 - _SHARE * (1 - few / many), clock()
    slow: list[float] = []
    fast: list[float] = []
    while True:
        slow.append(spent(few))
        fast.append(spent(many))
        over = clock() - begin >= _SECONDS
        if fast[-1] > _RUIN * slow[-1]:
            return False
        ahead = median(fast[1:] or fast) <= allowed * median(slow[1:] or slow)  # the first ones find nothing ready
        if over or (len(slow) > _PAIRS and not ahead):
            return ahead
