"""Which input says what is padding: found by what the model does with it, not by its name.

An input of zeros and ones, one a token, is a mask where the contents of a token that it marks by one of the two make no
difference to the model's answer, and where, unmarked, they do. Or where a sequence answers as its first half does alone
once the second is marked: so a waveform does, of which a mark makes a frame. What the input is called, whether it is
given by name or by position, and whether ones or zeros mark padding, is all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..errors import InputError
from ..interrupts import interrupts
from .signature import Signature

Mask = tuple[str | int, float] | Literal["auto"] | None
"""An input, by its key or position, and what it is at padding; found by itself; or nothing is padding."""

_ROWS = 2
"""Samples of the example that are tried."""


@dataclass(frozen=True)
class Padding:
    """What a model's inputs say of padding.

    Attributes:
        masks: inputs (n, tokens) that say what is padding, their keys or positions, and what they are at padding.
        unknown: inputs that may, where the model's answers do not tell, with their keys or positions.
    """

    masks: tuple[tuple[fx.Node, str | int, float], ...] = ()
    unknown: tuple[tuple[fx.Node, str | int], ...] = ()

    def along(self, axis: Any) -> tuple[fx.Node, float] | None:
        """The mask that has one number for each of so many tokens, if there is one.

        Raises:
            InputError: an input may be one, and it cannot be told.
        """
        for node, _, value in self.masks:
            if _same(node, axis):
                return node, value
        for node, name in self.unknown:
            if _same(node, axis):
                raise InputError(
                    f"whether the input {name!r} says what is padding cannot be told from the model's answers: give "
                    f"mask=({name!r}, 0) where zeros mark it, mask=({name!r}, 1) where ones do, or mask=None"
                )
        return None


def padding_of(
    run: Callable[..., Tensor],
    signature: Signature,
    inputs: Sequence[fx.Node],
    tensors: Sequence[Tensor],
    asked: Mask,
) -> Padding:
    """What the inputs say of padding.

    Args:
        run: flat tensors -> the model's answer.
        inputs: the placeholders of its graph.
        tensors: the example, flat.
        asked: the caller's word on it.

    Raises:
        InputError: the caller names no input of the model.
    """
    if asked is None:
        return Padding()
    names: Sequence[str | int] = signature.names if signature.form == "dict" else range(len(inputs))
    if asked != "auto":
        places = dict(zip(names, inputs, strict=True))
        name, value = asked if isinstance(asked, tuple) and len(asked) == 2 else (None, 0)
        if name not in places or len(places[name].meta["val"].shape) != 2:
            raise InputError(
                f"mask={asked!r}: give 'auto', None, or an input (n, tokens) and what it is at padding, such as "
                f"({next(iter(places))!r}, 0); the inputs are {', '.join(map(repr, places))}"
            )
        padded = (tensors[names.index(name)] == value).all(1)
        if bool(padded.any()):
            raise InputError(
                f"mask={asked!r} marks all of sample {int(padded.int().argmax())} of the example as padding: give the "
                "number that the input has there"
            )
        return Padding(((places[name], name, float(value)),))
    masks: list[tuple[fx.Node, str | int, float]] = []
    unknown: list[tuple[fx.Node, str | int]] = []
    for i, node in enumerate(inputs):
        if not binary(tensors[i]):
            continue
        found = _Trial(run, inputs, tensors, i).verdict()
        if isinstance(found, float):
            masks.append((node, names[i], found))
        elif found is None:
            unknown.append((node, names[i]))
    return Padding(tuple(masks), tuple(unknown))


class _Trial:
    """The question whether one input is a mask, put to the model.

    Args:
        run: flat tensors -> the model's answer.
        inputs: the placeholders of its graph.
        tensors: the example, flat.
        i: which input.
    """

    def __init__(
        self, run: Callable[..., Tensor], inputs: Sequence[fx.Node], tensors: Sequence[Tensor], i: int
    ) -> None:
        self.run, self.i, self.given = run, i, [tensor[:_ROWS] for tensor in tensors]
        self.mask, axis = self.given[i], inputs[i].meta["val"].shape[1]
        self.length = self.mask.shape[1]
        self.along = [
            tensor.dim() > 1 and tensor.shape[1] == self.length and _same(node, axis)
            for node, tensor in zip(inputs, tensors, strict=True)
        ]
        self.noise = 4 * torch.finfo(run(*map(torch.clone, self.given)).dtype).eps

    def verdict(self) -> float | Literal["no"] | None:
        """The number by which it marks padding; "no" where it marks none; None where that cannot be told."""
        seen = False
        for padding in (0, 1):
            faint = []  # of coarse numbers contents may say little, and yet nothing at all where they are marked
            for place in (self.length - 1, 0, self.length // 2):
                free, marked = self._moved(place, padding)
                if self.noise < free < torch.inf:
                    if marked <= 1e-3 * free:
                        return float(padding)
                    seen = True
                elif free < torch.inf and (free or marked):
                    faint.append(marked == 0)
            if len(faint) > 1 and all(faint):
                return float(padding)
        for padding in (0, 1):
            if self._halves(padding):
                return float(padding)
        return "no" if seen else None

    def _moved(self, place: int, padding: int) -> tuple[float, float]:
        """How far other contents at a place move the answer, until it is marked and then; infinity where none is."""
        swapped = [
            _swapped(tensor, place) if along and j != self.i else tensor
            for j, (tensor, along) in enumerate(zip(self.given, self.along, strict=True))
        ]
        if all(torch.equal(one, other) for one, other in zip(self.given, swapped, strict=True)):
            return torch.inf, torch.inf
        free = torch.full_like(self.mask, 1 - padding)
        marked = free.clone()
        marked[:, place] = padding
        elsewhere = torch.arange(self.length, device=free.device) != place
        moved = []
        for mask in (free, marked):
            one, other = self._answer(self.given, mask), self._answer(swapped, mask)
            if one is None or other is None or one.shape != other.shape:
                return torch.inf, torch.inf
            if one.dim() > 2 and one.shape[1] == self.length:
                one, other = one[:, elsewhere], other[:, elsewhere]
            moved.append(_apart(one, other))
        return moved[0], moved[1]

    def _halves(self, padding: int) -> bool:
        """Whether a sequence answers as its first half does alone once the second is marked, and only then."""
        half = (self.length + 1) // 2
        free = torch.full_like(self.mask, 1 - padding)
        marked = free.clone()
        marked[:, half:] = padding
        short = [tensor[:, :half] if along else tensor for tensor, along in zip(self.given, self.along, strict=True)]
        whole, halved, alone = (
            self._answer(*each) for each in ((self.given, free), (self.given, marked), (short, free[:, :half]))
        )
        if whole is None or halved is None or alone is None:
            return False
        if whole.dim() > 2:
            whole, halved = whole[:, : alone.shape[1]], halved[:, : alone.shape[1]]
        if not whole.shape == halved.shape == alone.shape:
            return False
        apart = _apart(whole, alone)
        return self.noise < apart < torch.inf and _apart(halved, alone) <= 1e-3 * apart

    def _answer(self, tensors: Sequence[Tensor], mask: Tensor) -> Tensor | None:
        """The model's answer with another mask; None where it raises, as on lengths that it is not made for."""
        try:
            given = (mask if j == self.i else tensor for j, tensor in enumerate(tensors))
            return self.run(*map(torch.clone, given)).float()
        except Exception as error:  # whatever a model raises
            if interrupts(error):
                raise
            return None


def _apart(one: Tensor, other: Tensor) -> float:
    """How far answers are from each other, as a share of the largest; infinity where they are none."""
    if not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
        return torch.inf
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))


def _swapped(tensor: Tensor, place: int) -> Tensor:
    """Other contents at a place: another of the tensor's own integers, or other numbers."""
    made = tensor.clone()
    if tensor.is_floating_point():
        made[:, place] = 1 - tensor[:, place] / 2
    else:
        low, high = tensor.min(), tensor.max()
        made[:, place] = torch.where(tensor[:, place] == high, low, high)
    return made


def binary(tensor: Tensor) -> bool:
    """Whether a tensor has a zero or a one for each token of each sample, (n, tokens)."""
    return tensor.dim() == 2 and bool(((tensor == 0) | (tensor == 1)).all())


def _same(node: fx.Node, axis: Any) -> bool:
    shape = node.meta["val"].shape
    return len(shape) > 1 and statically_known_true(shape[1] == axis)
