"""Tensors on disk, as safetensors without pickle: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from .errors import InputError
from .files import checked, write_atomically


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON description of them to one safetensors file; tensors that share memory, each whole."""
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr()
        held[name] = tensor.clone() if shared in seen else tensor
        seen.add(shared)
    write_atomically(path, tensor_bytes(held, metadata={"about": json.dumps(about)}))


def read_tensors(path: Path, *, format: str, version: int, make_it: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote: the tensors and their description."""
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
    return tensors, checked(about, path, format, version, make_it)
