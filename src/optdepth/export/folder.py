"""The folder of a bundle: written to beside what is there, taken over once all is well, and never another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from .runtime import FORMAT, MANIFEST

_FRESH = ".unchecked"
"""Where in its folder a bundle lies until it has been checked: the same file system, so that moving is renaming."""


@contextmanager
def bundle_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write a bundle into; where no error comes, its files replace an earlier bundle's.

    Raises:
        InputError: the folder has anything in it but an earlier bundle, or cannot be written to.
    """
    _refuse_others(folder)
    new, fresh = not folder.exists(), folder / _FRESH
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        _move(fresh, folder)
    except OSError as error:
        raise InputError(f"cannot write a bundle to {folder} ({error.strerror}); give another folder") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new:
            with suppress(OSError):  # it holds a bundle now
                folder.rmdir()


def _move(fresh: Path, folder: Path) -> None:
    files = sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST)  # it has the checksums, so it goes last
    for path in files:
        path.replace(folder / path.name)
    for path in folder.iterdir():
        if path.name not in {_FRESH, *(file.name for file in files)}:
            path.unlink()


def _refuse_others(folder: Path) -> None:
    if not folder.exists():
        return
    held = [path for path in sorted(folder.iterdir()) if path.name != _FRESH] if folder.is_dir() else [folder]
    try:
        earlier = json.loads((folder / MANIFEST).read_bytes())
        known = {MANIFEST, *(str(graph["file"]) for graph in earlier["graphs"])}
        if earlier["format"] != FORMAT:
            known = set()
    except (OSError, ValueError, TypeError, KeyError):
        known = set()
    others = [path for path in held if path.name not in known]
    if others:
        raise InputError(f"{folder} holds something else than a bundle, {others[0].name}; give an empty folder")
