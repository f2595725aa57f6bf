"""Inputs that a network cannot run: what is wrong with them, found by trying, and what to give instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from ..batch import Inputs
from ..errors import InputError
from ..interrupts import interrupts

FAILURES = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, KeyError, AssertionError)
"""What torch raises where tensors do not fit its operators, and code of models where inputs do not fit them."""

Run = Callable[[Any], object]


@contextmanager
def explained(network: nn.Module, run: Run, inputs: Inputs) -> Iterator[None]:
    """Runs a block; where it fails because of the inputs, says why, and what to give.

    They are at fault where the network fails on them by itself, with no rule and nothing compiled; any other error
    goes on as it is. A remedy is named only if with it the network runs.

    Args:
        run: the network alone, inputs -> answer.

    Raises:
        InputError: the network cannot run the inputs.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        if not interrupts(error) and (reason := _reason_against(network, run, inputs)):
            raise InputError(reason) from error
        raise


def _reason_against(network: nn.Module, run: Run, inputs: Inputs) -> str:
    """Why a network cannot run inputs, and what to give; empty where it can."""
    watch = _Lookups()
    try:
        with watch:
            run(inputs)
    except FAILURES as found:
        said = " ".join(str(found).split())
    else:
        return ""
    if watch.missing is not None:
        return _unknown(inputs, *watch.missing)
    about = ", ".join(f"{name} {_kind(leaf)}" for name, leaf in _named(inputs))
    return f"the network cannot run {about} ({said:.160}); {_remedy(network, run, inputs)}"


class _Lookups(TorchDispatchMode):
    """Notes the first numbers that are looked up in a table which lacks rows for some, and how many it has."""

    missing: tuple[Tensor, int] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            rows, numbers = len(args[0]), args[1]
            if self.missing is None and bool(((numbers < 0) | (numbers >= rows)).any()):
                self.missing = numbers, rows
        return func(*args, **(kwargs or {}))


def _unknown(inputs: Inputs, numbers: Tensor, rows: int) -> str:
    """Of numbers some of which a table lacks: tokens beyond the vocabulary, or positions beyond the last."""
    where = ((numbers < 0) | (numbers >= rows)).nonzero()[0]
    number = int(numbers[tuple(where)])
    for name, leaf in _named(inputs):
        if torch.equal(leaf.long(), numbers.long()):
            return f"{name} holds {number} in sample {int(where[0])}: the network knows 0 to {rows - 1}; give such"
    length = numbers.shape[-1] if numbers.dim() else 0
    if length > 1 and bool((numbers.diff(dim=-1) == 1).all()):
        return f"samples of length {length} ask for position {number}: the network has {rows}; give shorter ones"
    return f"the network looks up {number} in a table of {rows} rows: give inputs as those it was trained on"


def _remedy(network: nn.Module, run: Run, inputs: Inputs) -> str:
    """The first change with which the network runs."""
    weights = list(network.parameters())
    weight = next((each for each in weights if each.is_floating_point()), weights[0])
    changes: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (f"move them to {weight.device}, where it is", lambda leaf: leaf.to(weight.device)),
        (
            f"give floats as {weight.dtype}, the type of its weights",
            lambda leaf: leaf.to(weight.dtype) if leaf.is_floating_point() else leaf,
        ),
        (
            f"give them as {weight.dtype}, the type of its weights, on the scale it was trained on",
            lambda leaf: leaf.to(weight.dtype),
        ),
        ("give whole numbers, of torch.int64", lambda leaf: leaf.long()),
        ("give a batch, with the samples first: inputs[None]", lambda leaf: leaf[None]),
    ]
    for said, change in changes:
        try:
            run(tree_map(change, inputs))
        except FAILURES:
            continue
        return said
    return "give inputs as those it was trained on"


def _named(inputs: Inputs) -> list[tuple[str, Tensor]]:
    return [(f"inputs{keystr(path)}", leaf) for path, leaf in tree_flatten_with_path(inputs)[0]]


def _kind(leaf: Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
