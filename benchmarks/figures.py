"""Figures of a benchmark: where they come from, how they are kept, and how a table of them is written."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optdepth.files import write_atomically
from optdepth.threads import own, said

RESULTS = Path(__file__).parent / "results"
"""Where figures, pages and pictures go: one folder a benchmark, scripts apart from it."""
_VERSIONS = ("optdepth", "torch", "numpy", "scikit-learn", "datasets")
_INTO = " > "
"""Between the keys of a path, in the name of a column."""


def provenance(script: str | Path, *, also: Sequence[str] = (), device: str = "cpu") -> dict[str, Any]:
    """What made the figures: command, commit, machine and versions.

    Args:
        script: the file of the benchmark; the arguments are those of the present command.
        also: further packages whose versions count.
    """
    return {
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]]),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "machine": f"{_processor()}, {said(count) if (count := own()) else 'as many threads as pay'}, {device}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in (*_VERSIONS, *also)},
    }


def made_by(made: dict[str, Any]) -> str:
    """Provenance as a sentence of a page."""
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items() if number)
    return f"`{made['command']}`, commit {made['commit']}, {made['machine']}, {versions}."


def save(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON: records of one form as arrays, one a field, and an array on one line."""
    write_atomically(path, (_written(_packed(figures), 0) + "\n").encode())


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote."""
    figures: dict[str, Any] = _unpacked(json.loads(path.read_text()))
    return figures


def table_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _packed(value: Any) -> Any:
    """Records of one form, a list of them, become {"rows": n, "columns": {path: values}}."""
    if isinstance(value, dict):
        return {key: _packed(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(row, dict) for row in value):
            rows = [_leaves(row) for row in value]
            if all(row.keys() == rows[0].keys() for row in rows):
                return {"rows": len(rows), "columns": {path: _packed([row[path] for row in rows]) for path in rows[0]}}
        return [_packed(held) for held in value]
    return value


def _leaves(record: dict[str, Any], above: str = "") -> dict[str, Any]:
    """What is in a record that holds records, by path."""
    found: dict[str, Any] = {}
    for key, held in record.items():
        path = f"{above}{key}"
        found |= _leaves(held, f"{path}{_INTO}") if isinstance(held, dict) and held else {path: held}
    return found


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(held) for held in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"rows", "columns"}:
        return {key: _unpacked(held) for key, held in value.items()}
    records: list[dict[str, Any]] = [{} for _ in range(value["rows"])]
    for path, column in value["columns"].items():
        *above, last = path.split(_INTO)
        for record, held in zip(records, _unpacked(column), strict=True):
            for key in above:
                record = record.setdefault(key, {})
            record[last] = held
    return records


def _written(value: Any, depth: int) -> str:
    """JSON with a line for every key of an object, and none inside an array."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, separators=(",", ":"))
    inner = ",\n".join(
        f"{'  ' * (depth + 1)}{json.dumps(key)}: {_written(held, depth + 1)}" for key, held in value.items()
    )
    return f"{{\n{inner}\n{'  ' * depth}}}"


def _output(*command: str) -> str:
    """What a command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    """The model of the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def _version(name: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
