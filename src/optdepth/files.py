"""Files on disk: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:  # a bundle is read where there is no torch
    from torch import Tensor


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


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON description of them to one safetensors file; tensors that share memory, each whole."""
    from safetensors.torch import save as tensor_bytes

    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr()
        held[name] = tensor.clone() if shared in seen else tensor
        seen.add(shared)
    write_atomically(path, tensor_bytes(held, metadata={"about": json.dumps(about)}))


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
    return _checked(content, path, format, version, make_it)


def read_tensors(path: Path, *, format: str, version: int, make_it: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote: the tensors and their description."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"no such file: {path}; {make_it}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors: dict[str, Tensor] = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - not a dict
            }
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); {make_it}") from None
    return tensors, _checked(about, path, format, version, make_it)


def _checked(content: Any, path: Path, format: str, version: int, make_it: str) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != format:
        raise InputError(f"{path} is not an {format} file; {make_it}")
    if content.get("version") != version:
        raise InputError(f"{path} has version {content.get('version')!r}, this optdepth reads {version}; {make_it}")
    return content
