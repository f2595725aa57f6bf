"""Progress on stderr, for people at a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def shown_steps(steps: Iterable[T], said: str, *, total: int | None = None, shown: bool = True) -> Iterator[T]:
    """The steps, with a bar on stderr while they are taken; no bar where stderr is not a terminal."""
    console = Console(stderr=True)
    off = not (shown and console.is_terminal)
    return iter(track(steps, said, total=total, console=console, disable=off, transient=True))
