"""An import goes downwards only, never back and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "optdepth"

LAYERS: tuple[set[str], ...] = (
    {"errors"},
    {"fields"},
    {"progress", "files", "palette", "batch", "outside", "interrupts", "libraries"},
    {"tensor_files", "tasks", "pictures"},
    {"splits", "features", "samples", "carving", "threads", "rewards", "tables", "sources", "exit_costs"},
    {"recall", "tensors", "image_tables"},
    {"trace", "data", "texts", "labelled"},
    {"stopping", "networks"},
    {"costs", "record", "chains"},
    {"continuous", "training", "inference"},
    {"export", "report"},
    {"early", "unlabelled"},
    {"fit"},
    {"runs", "flows", "fits"},
    {"workflow"},
    {"cli"},
    {"__main__"},
)
"""From the ground up; what stands on one floor does not know its neighbours."""
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its head or later, as dotted names without the package's."""
    here = ("optdepth", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            module = (*base, *node.module.split(".")) if node.module else base
            if module[:1] == ("optdepth",):
                inner = module[1:]
                found |= {".".join(inner)} if node.module else {".".join((*inner, alias.name)) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("optdepth.") for alias in node.names if alias.name.startswith("optdepth.")
            }
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"
}
ARROWS = {name: imported(path) for name, path in FILES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_file_has_a_floor() -> None:
    assert {room(name) for name in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_no_import_climbs(name: str) -> None:
    climbing = [
        other for other in ARROWS[name] if room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not climbing, f"{name} imports {', '.join(climbing)}, which stands no lower"


def test_no_imports_run_in_a_circle() -> None:
    """A package's face imports its files, and the files do not import the face: else this has a cycle."""
    list(TopologicalSorter(ARROWS).static_order())
