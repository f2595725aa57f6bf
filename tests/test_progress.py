"""The bar on stderr: in a narrow terminal its words give way, never the count or the time that is left."""

import io
import re

import pytest
from rich.console import Console

from optdepth.progress import bar

SAID = "epoch 12/30 on 2 threads, loss 0.123, accuracy 45.6% at the first exit, 78.9% at the last"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("said", [SAID, "solving"])
def test_the_time_that_is_left_is_shown_in_terminals_of_any_width(width: int, said: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    seconds = iter(range(1_000))
    progress = bar(console=console)
    progress.get_time = lambda: float(next(seconds))
    with progress:
        task = progress.add_task(said, total=11_730)
        for _ in range(5):
            progress.update(task, advance=200)
    assert isinstance(console.file, io.StringIO)
    lines = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", console.file.getvalue())
    shown = [line for line in re.split(r"[\r\n]", lines) if line.strip()]
    assert all(len(line) <= width for line in shown)
    assert re.search(r"1000/11730 +\d+:\d\d:\d\d *$", shown[-1])
    assert shown[-1].startswith(said[:12] if said == SAID else said)
