"""What a bundle takes, in its manifest and when it is served. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[Any]

Inputs = Array | tuple[Array, ...] | list[Array] | Mapping[str, Array]
"""One array, or a tuple or dict of arrays, the batch first in each."""


def described(form: str, names: Sequence[str], batches: Sequence[Sequence[Array]]) -> dict[str, Any]:
    """What the manifest says of inputs like these batches; sizes that are not the same in all of them are free.

    A free size bears a name, "n" for the number of samples, and sizes that change together bear the same one.
    """
    free: dict[tuple[int, ...], str] = {}
    leaves = []
    for name, *arrays in zip(names, *batches, strict=True):
        shape: list[int | str] = ["n"]
        for sizes in list(zip(*(array.shape for array in arrays), strict=True))[1:]:
            shape.append(sizes[0] if len(set(sizes)) == 1 else free.setdefault(sizes, f"m{len(free) + 1}"))
        leaves.append({"name": name, "dtype": str(arrays[0].dtype), "shape": shape})
    return {"form": form, "leaves": leaves}


@dataclass(frozen=True)
class Leaf:
    """One array of the inputs; a free size of its shape is a name."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class LeafAbout:
    """One array as a manifest has it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class TakesAbout:
    """The inputs as a manifest has them."""

    form: Literal["tensor", "tuple", "dict"]
    leaves: tuple[LeafAbout, ...]


class Takes:
    """The form, names, types and shapes of a bundle's inputs; prints as a phrase.

    Raises:
        TypeError, ValueError: the manifest says no such thing.
    """

    def __init__(self, about: TakesAbout) -> None:
        self.form = about.form
        self.leaves = [Leaf(leaf.name, np.dtype(leaf.dtype), leaf.shape) for leaf in about.leaves]
        if not self.leaves or any(not leaf.shape or leaf.dtype.kind not in "biuf" for leaf in self.leaves):
            raise ValueError("inputs that are no arrays of numbers")
        if self.form == "tensor" and len(self.leaves) > 1:
            raise ValueError(f"a tensor of {len(self.leaves)} parts")
        each = [
            f"{leaf.name + ' ' if self.form == 'dict' else ''}{leaf.dtype} ({', '.join(map(str, leaf.shape))})"
            for leaf in self.leaves
        ]
        self._said = each[0] if self.form == "tensor" else f"a {self.form} of {', '.join(each)}"

    def __str__(self) -> str:
        return self._said

    def flat(self, inputs: Inputs) -> list[Array]:
        """The arrays in the order of the manifest, checked."""
        arrays = self._arrays(inputs)
        sizes: dict[str, int] = {}
        for leaf, array in zip(self.leaves, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise self._unfit(f"{leaf.name} is a {type(array).__name__}, no array")
            fits = array.dtype == leaf.dtype and array.ndim == len(leaf.shape)
            if not fits or any(
                got != (sizes.setdefault(want, got) if isinstance(want, str) else want)
                for want, got in zip(leaf.shape, array.shape, strict=True)
            ):
                raise self._unfit(f"{leaf.name} is {array.dtype} {array.shape}")
        if len(arrays[0]) == 0:
            raise self._unfit("an empty batch has no answers")
        for array in arrays:
            _check_finite(array)
        return arrays

    def _arrays(self, inputs: Inputs) -> list[Any]:
        if self.form == "tensor":
            return [inputs]
        if self.form == "dict" and isinstance(inputs, Mapping):
            names = [leaf.name for leaf in self.leaves]
            if set(inputs) != set(names):
                raise self._unfit(f"inputs of the names {', '.join(map(str, inputs)) or 'none'}")
            return [inputs[name] for name in names]
        if self.form == "tuple" and isinstance(inputs, tuple | list) and len(inputs) == len(self.leaves):
            return list(inputs)
        many = f" of {len(inputs)}" if isinstance(inputs, tuple | list | Mapping) else ""
        raise self._unfit(f"inputs are a {type(inputs).__name__}{many}")

    def _unfit(self, what: str) -> InputError:
        return InputError(f"{what}; the bundle takes {self._said}")


def _check_finite(array: Array) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):  # the sum of a batch may overflow where its samples are finite
        finite = np.isfinite(array.sum())
    if not finite:
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if len(bad):
            raise InputError(f"sample {bad[0]} of the batch holds NaN or infinity; clean or drop it")
