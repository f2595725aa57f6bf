"""Tensors on disk, as safetensors without pickle: written whole or not at all, with a checksum, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from .errors import InputError
from .fields import Fields
from .files import CHECKSUM, as_json, check_digest, checked, damaged, digest_of, parsed, reading, write_atomically


class Tensors:
    """Tensors that were read back, each taken by its type and number of dimensions.

    Attributes:
        held: all of them, by name.
    """

    def __init__(self, held: Mapping[str, Tensor], path: Path, make_it: str) -> None:
        self.held, self._path, self._make_it = dict(held), path, make_it

    def take(self, name: str, dtype: torch.dtype, *dims: int) -> np.ndarray:
        """The one of that name, as an array of one of the numbers of dimensions given.

        Raises:
            InputError: it is missing, or of another type or number of dimensions.
        """
        if name not in self.held:
            raise InputError(f"{self._path} lacks {name!r}; {self._make_it}")
        tensor = self.held[name]
        if tensor.dtype != dtype or tensor.dim() not in dims:
            wanted = " or ".join(map(str, dims))
            found = f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype} of {wanted} dimensions"
            raise damaged(self._path, ValueError(found), self._make_it)
        return tensor.numpy()

    def optional(self, name: str, dtype: torch.dtype, dims: int) -> np.ndarray | None:
        """The same, or None where there is none of that name."""
        return self.take(name, dtype, dims) if name in self.held else None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON description of them to one safetensors file; tensors that share memory, each whole."""
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr()
        held[name] = tensor.clone() if shared in seen else tensor
        seen.add(shared)
    plain = as_json(path, about)
    text = json.dumps({**plain, CHECKSUM: _digest(held, plain)})  # one text: safetensors writes several in any order
    write_atomically(path, tensor_bytes(held, metadata={"about": text}))


def read_tensors(path: Path, *, format: str, version: int, make_it: str) -> tuple[Tensors, Fields]:
    """Reads what `write_tensors` wrote: the tensors and their description.

    Raises:
        InputError: it is missing, of another format or version, or not as it was written.
    """
    with reading(path, make_it):
        try:
            with safe_open(path, framework="pt") as file:
                about = parsed((file.metadata() or {}).get("about", "{}"))
                checked(about, path, format, version, make_it)
                held: dict[str, Tensor] = {
                    name: file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118 - not a dict
                }
        except SafetensorError as error:
            raise damaged(path, error, make_it) from None
        told = about.pop(CHECKSUM, None)
        check_digest(_digest(held, about), told, path, make_it)
        return Tensors(held, path, make_it), Fields(about, str(path), make_it)


def _digest(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """SHA-256 of the description and, by sorted name, each tensor's name, type, shape and bytes."""
    digest = digest_of(about)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        flat = flat.as_strided(flat.shape, (1,))  # which a single number, or none, need not have
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
