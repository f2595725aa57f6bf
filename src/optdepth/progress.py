"""Progress on stderr, for people at a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

T = TypeVar("T")


def bar(*, shown: bool = True, transient: bool = True, console: Console | None = None) -> Progress:
    """What shows steps and the time that is left; nothing where stderr is not a terminal.

    In a narrow terminal the words give way, then the bar; the count and the time are always whole.

    Args:
        transient: it is gone when all steps are done.
        console: to write to; stderr when not given.
    """
    console = Console(stderr=True) if console is None else console
    return Progress(
        TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
        BarColumn(None, table_column=Column(ratio=1, min_width=4, max_width=40)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TimeRemainingColumn(compact=False, table_column=Column(no_wrap=True, min_width=7)),
        console=console,
        transient=transient,
        disable=not (shown and console.is_terminal),
        expand=True,
    )


def shown_steps(steps: Iterable[T], said: str, *, total: int | None = None, shown: bool = True) -> Iterator[T]:
    """The steps, with a bar on stderr while they are taken; no bar where stderr is not a terminal."""
    with bar(shown=shown) as progress:
        yield from progress.track(steps, total, description=said)
