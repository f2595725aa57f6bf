"""Files on disk: written whole or not at all, read with suspicion. Nothing here imports torch, which a bundle lacks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, so that an interrupted command leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that a person can read."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, *, format: str, version: int, make_it: str) -> dict[str, Any]:
    """Reads a JSON object of the format and version given.

    Args:
        make_it: what the user can do to get such a file, for the error message.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; {make_it}")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); {make_it}") from None
    return checked(content, path, format, version, make_it)


def checked(content: Any, path: Path, format: str, version: int, make_it: str) -> dict[str, Any]:
    """A JSON object of the format and version given, or an error that says what it is instead."""
    if not isinstance(content, dict) or content.get("format") != format:
        raise InputError(f"{path} is not an {format} file; {make_it}")
    if content.get("version") != version:
        raise InputError(f"{path} has version {content.get('version')!r}, this optdepth reads {version}; {make_it}")
    return content
