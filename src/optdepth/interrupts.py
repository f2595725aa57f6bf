"""Exceptions that signal handlers raise: they belong to whoever set the handler, not to the code they interrupt."""

from __future__ import annotations

from itertools import pairwise
from types import FrameType, TracebackType


def interrupts(error: BaseException) -> bool:
    """Whether a signal handler raised this error, or one that it came from.

    Python calls a handler with the signal's number and the frame that it interrupts; whoever else calls a function has
    no such frame to give. So the handler is known by what it was called with, wherever it is in the traceback.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if _through_handler(one.__traceback__):
            return True
        waiting += [one.__cause__, one.__context__]
    return False


def _through_handler(trace: TracebackType | None) -> bool:
    while trace is not None:
        if any(isinstance(a, int) and isinstance(b, FrameType) for a, b in pairwise(_given(trace.tb_frame))):
            return True
        trace = trace.tb_next
    return False


def _given(frame: FrameType) -> list[object]:
    """The positional arguments that a frame was called with."""
    code, held = frame.f_code, frame.f_locals
    named = [held.get(name) for name in code.co_varnames[: code.co_argcount]]
    rest = code.co_argcount + code.co_kwonlyargcount
    return [*named, *(held.get(code.co_varnames[rest], ()) if code.co_flags & _MANY else ())]


_MANY = 0x04
"""Of a code's flags: it takes *args."""
