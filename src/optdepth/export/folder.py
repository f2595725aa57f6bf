"""The folder of a bundle: written to beside what is there, taken over once all is well, and never another's.

A graph's file bears its own checksum in its name. So a new bundle's files never overwrite an older one's, which serves
until the manifest is replaced; and a file is known for a bundle's by what is in it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from ..files import parsed, writing
from .runtime import FORMAT, MANIFEST

_FRESH = ".unchecked"
"""Where in its folder a bundle lies until it has been checked: the same file system, so that moving is renaming."""
_GRAPH = re.compile(r"exit\d+-([0-9a-f]{16})\.\w+")


def graph_file(exit: int, digest: str, suffix: str) -> str:
    """The name of a graph's file.

    Args:
        digest: SHA-256 of its content.
    """
    return f"exit{exit}-{digest[:16]}{suffix}"


@contextmanager
def bundle_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write a bundle into, which takes an earlier bundle's place where no error comes, else does not.

    Raises:
        InputError: the folder has anything in it but an earlier bundle.
        FileError: it cannot be written to.
    """
    with writing(folder):
        earlier = _earlier(folder)
        new, fresh = not folder.exists(), folder / _FRESH
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            _move(fresh, folder, earlier)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if new:
                with suppress(OSError):  # it holds a bundle now
                    folder.rmdir()


def _move(fresh: Path, folder: Path, earlier: list[Path]) -> None:
    files = sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST)  # it names the others, so it goes last
    for path in files:
        path.replace(folder / path.name)
    for path in earlier:
        if path.name not in {file.name for file in files}:
            path.unlink()


def _earlier(folder: Path) -> list[Path]:
    """The files of a bundle that lies there, and no others."""
    if not folder.exists():
        return []
    held = [path for path in sorted(folder.iterdir()) if path.name != _FRESH] if folder.is_dir() else [folder]
    others = [path for path in held if not _of_a_bundle(path)]
    if others:
        raise InputError(
            f"{folder} holds something else than a bundle, {others[0].name}; give an empty folder, or move that away"
        )
    return held


def _of_a_bundle(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.name == MANIFEST:
        with suppress(ValueError, RecursionError):
            manifest = parsed(path.read_bytes())
            return isinstance(manifest, dict) and manifest.get("format") == FORMAT
        return False
    named = _GRAPH.fullmatch(path.name)
    return named is not None and hashlib.sha256(path.read_bytes()).hexdigest().startswith(named[1])
