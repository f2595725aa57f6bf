"""The README's Python runs as printed, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_as_printed(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert "mean cost" in done.stdout


def test_the_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
    from optdepth.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^optdepth (\w+)", README, flags=re.M)) <= known


def test_every_test_named_in_the_theory_is_there() -> None:
    theory = (ROOT / "docs" / "theory.md").read_text()
    file = ""
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", theory):
        file = name or file
        if not file:
            continue
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in text, f"{file}::{test}"
