"""Mutations of files: accidents, which a checksum is to find, and nonsense with a right checksum, which checks are.

An accident changes bytes. Nonsense is what somebody would write who means harm or wrote another program: a value of
another type, a number that is none, a size that nothing has, a tensor of another type or shape. A value that could
have been written, such as another price, is no nonsense: nobody can tell it from one that was meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from optdepth.files import CHECKSUM, write_json
from optdepth.tensor_files import write_tensors

Draw = np.random.Generator

SIZES = frozenset({"exit", "takes", "carried", "kept", "recall", "image_size"})
SIZES |= {"depth", "steps", "width", "classes", "channels", "intervals"}
NEVER_NEGATIVE = SIZES | {"price", "paid", "reach", "look", "answer", "spread", "seed", "std", "version"}
NEVER_NEGATIVE |= {"batch", "full", "engine", "speedup", "saving", "threads"}
MAY_BE_NULL = frozenset({"price", "image_size", "scaler"})
MAY_BE_INFINITE = frozenset({"thresholds"})
MAY_BE_MISSING = frozenset({"posterior_losses", "disagreement"})


def accident(content: bytes, others: list[bytes], draw: Draw) -> tuple[str, bytes]:
    """What happens to files: the name of it, and the file after it."""
    at, size = int(draw.integers(max(len(content), 1))), int(draw.integers(1, 64))
    chunk = content[at : at + size]
    done: dict[str, Callable[[], bytes]] = {
        "a bit flipped": lambda: content[:at] + bytes([content[at] ^ 1 << int(draw.integers(8))]) + content[at + 1 :],
        "a byte replaced": lambda: content[:at] + draw.bytes(1) + content[at + 1 :],
        "the end lost": lambda: content[:at],
        "the start lost": lambda: content[at:],
        "a piece lost": lambda: content[:at] + content[at + size :],
        "a piece doubled": lambda: content[:at] + chunk + content[at:],
        "a piece of zeros": lambda: content[:at] + bytes(len(chunk)) + content[at + size :],
        "a piece of noise": lambda: content[:at] + draw.bytes(len(chunk)) + content[at + size :],
        "bytes put in": lambda: content[:at] + draw.bytes(size) + content[at:],
        "bytes put behind": lambda: content + draw.bytes(size),
        "emptied": lambda: b"",
        "a text instead": lambda: b"hello",
        "noise instead": lambda: draw.bytes(len(content)),
        "another file instead": lambda: others[int(draw.integers(len(others)))],
        "a digit changed": lambda: _digit(content, draw),
        "nested deep": lambda: _nested(content),
    }
    name = list(done)[int(draw.integers(len(done)))]
    return name, done[name]()


def nonsense_json(path: Path, draw: Draw) -> str:
    """Puts nonsense into a JSON file and a right checksum; says what."""
    held = {name: value for name, value in json.loads(path.read_text()).items() if name != CHECKSUM}
    said = _spoilt(held, draw)
    write_json(path, held)
    return said


def nonsense_tensors(path: Path, draw: Draw) -> str:
    """Puts nonsense into the tensors of a file, or into what it says of them, and a right checksum; says what."""
    with safe_open(path, "pt") as file:
        about = {name: value for name, value in json.loads(file.metadata()["about"]).items() if name != CHECKSUM}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    said = _spoilt(about, draw) if draw.random() < 0.5 else _spoilt_tensor(tensors, draw)
    write_tensors(path, tensors, about)
    return said


def _digit(content: bytes, draw: Draw) -> bytes:
    places = [i for i, byte in enumerate(content) if 48 <= byte < 58] or [0]
    at = places[int(draw.integers(len(places)))]
    return content[:at] + str(draw.integers(10)).encode() + content[at + 1 :]


def _nested(content: bytes) -> bytes:
    """A list of lists of lists in place of the first value of JSON; where there is none, alone."""
    before, colon, after = content.partition(b": ")
    return before + colon + b"[" * 100_000 + b"]" * 100_000 + b", " + after if colon else b"[" * 100_000


def _places(held: Any, above: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every value in JSON: what holds it, its key there, and the nearest name."""
    pairs: Any = held.items() if isinstance(held, dict) else enumerate(held)
    for key, value in pairs:
        name = key if isinstance(key, str) else above
        yield held, key, name
        if isinstance(value, dict | list):
            yield from _places(value, name)


def _spoilt(held: dict[str, Any], draw: Draw) -> str:
    """Replaces or takes away one value; says what was done."""
    places = list(_places(held))
    holder, key, name = places[int(draw.integers(len(places)))]
    if isinstance(holder, dict) and draw.random() < 0.15:
        del holder[key]
        return f"{name} missing"
    choices = list(_nonsense(holder[key], name))
    word, value = choices[int(draw.integers(len(choices)))]
    holder[key] = value
    return f"{name} {word}"


def _nonsense(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values of another type than this, or out of any range."""
    if not isinstance(value, str):
        yield "a text", "x"
    if not isinstance(value, bool):
        yield "true", True
    if isinstance(value, bool | str | list | dict) or (value is None and name not in MAY_BE_NULL):
        yield "a number", 7
    if value is not None and name not in MAY_BE_NULL:
        yield "null", None
    if not isinstance(value, list):
        yield "a list", [value]
    if not isinstance(value, dict):
        yield "an object", {"x": value}
    if isinstance(value, str):
        yield "half a letter", "\ud800"
    if isinstance(value, list):
        yield "a list of a list", [value]
    nest: Any = 0
    for _ in range(300):
        nest = [nest]
    yield "nested", nest
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield "beyond floats", 10**400
        yield "a text of it", str(value)
        if name in NEVER_NEGATIVE:
            yield "negative", -8
        if name in SIZES and isinstance(value, int):
            yield "huge", 10**9
            yield "hundreds of thousands", 600_002


def _filled(tensor: Tensor, at: int, number: float) -> Tensor:
    return tensor.reshape(-1).index_fill(0, torch.tensor(at), number).reshape(tensor.shape)


def _spoilt_tensor(tensors: dict[str, Tensor], draw: Draw) -> str:
    """Changes one tensor to one of another type or shape, or with NaN; says what was done."""
    names = sorted(tensors)
    name = names[int(draw.integers(len(names)))]
    tensor = tensors[name]
    made: dict[str, Callable[[], Tensor]] = {
        "of bfloat16": lambda: tensor.to(torch.bfloat16),
        "of int8": lambda: tensor.to(torch.int8) if tensor.dtype != torch.bool else tensor.to(torch.float32),
        "of complex numbers": lambda: tensor.to(torch.complex64),
        "of one dimension more": lambda: tensor.unsqueeze(0),
        "flat": lambda: tensor.reshape(-1) if tensor.dim() > 1 else tensor.reshape(1, -1),
        "a row short": lambda: tensor[:-1] if tensor.dim() else tensor.reshape(1)[:0],
        "a row long": lambda: torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor.repeat(2),
        "empty": lambda: tensor.new_empty(0, *tensor.shape[1:]),
        "huge and empty": lambda: tensor.new_empty(0, 10**9),
    }
    if tensor.is_floating_point() and tensor.numel():
        at = int(draw.integers(tensor.numel()))
        for word, number in (("NaN", torch.nan), ("infinity", -torch.inf)):
            if word == "NaN" or name not in MAY_BE_INFINITE:
                made[f"with {word}"] = partial(_filled, tensor, at, number)
    words = [*made, *(["missing"] if name not in MAY_BE_MISSING else []), "under another name"]
    word = words[int(draw.integers(len(words)))]
    if word in made:
        tensors[name] = made[word]()
    else:
        del tensors[name]
        if word == "under another name":
            tensors[f"{name}x"] = tensor
    return f"{name.lstrip('0123456789.')} {word}"
