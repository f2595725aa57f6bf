"""Files changed on purpose and given a right checksum, as somebody who means harm would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from optdepth.files import CHECKSUM, write_json
from optdepth.tensor_files import write_tensors


def restamp_json(path: Path, **changes: Any) -> None:
    """Sets fields of a JSON file; None takes one away."""
    held = json.loads(path.read_text()) | changes
    write_json(path, {name: value for name, value in held.items() if value is not None and name != CHECKSUM})


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and what it says of them."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        about = json.loads(file.metadata()["about"])
    return tensors, {name: value for name, value in about.items() if name != CHECKSUM}


def restamp_tensors(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Changes the tensors of a file, or what it says of them, in place."""
    tensors, about = opened(path)
    change(tensors, about)
    write_tensors(path, tensors, about)
