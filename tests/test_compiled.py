"""Compiled engines, each promise in a process of its own, see `compiling`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("promise", ["stages_are_whole_graphs_and_not_compiled_again", "sentences_of_any_length"])
def test_a_compiled_engine_keeps_its_promises(promise: str) -> None:
    code = f"import compiling; compiling.{promise}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
