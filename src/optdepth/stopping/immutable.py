"""Immutable: what is not changed once it is made, so that all it works out when it is made stays true.

Rules and fitted functions are: they decide by tensors in a batch and by Python numbers for one sample, and nothing may
come between the two. So they are no torch modules, whose tensors a state dict, a change of precision or an average of
weights writes over in place. As in Equinox, attributes are set in `__init__` and never again.
"""

from __future__ import annotations

import copy
from abc import ABCMeta
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InputError


class _Made(ABCMeta):
    """Closes what it makes behind the outermost `__init__`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        places = (_device(leaf) for leaf in tree_leaves(vars(made)))
        vars(made)["device"] = next((place for place in places if place is not None), torch.device("cpu"))
        return made


class Immutable(metaclass=_Made):
    """Attributes are set while it is made. Copies and pickles of it are as it is.

    What derives from it holds tensors of its own under private names and hands out copies, so that they cannot be
    written to in place; lists it takes it holds as tuples.

    Attributes:
        device: where its tensors are.
    """

    device: torch.device

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)
        object.__delattr__(self, name)

    def _refuse(self, name: str) -> None:
        if "device" in vars(self):
            kind = type(self).__name__
            raise InputError(f"{name!r} of a {kind} cannot be changed: {kind} objects are immutable; make a new one")

    def to(self, device: torch.device | str) -> Self:
        """The same on a device: itself if it is there.

        Raises:
            InputError: no device. A precision is none: numbers stay in that they were solved in.
        """
        try:
            where = torch.device(device)
        except (TypeError, RuntimeError):
            raise InputError(
                f"{device!r} is no device to move a {type(self).__name__} to, such as 'cpu' or 'cuda:0'; it keeps its "
                "precision"
            ) from None
        where = torch.empty(0, device=where).device  # of several, its number too
        if where == self.device:
            return self
        moved = object.__new__(type(self))
        vars(moved).update(tree_map(lambda leaf: _moved(leaf, where), vars(self)))
        vars(moved)["device"] = where
        return moved


def _device(leaf: Any) -> torch.device | None:
    """Where something is; None where that says nothing."""
    if isinstance(leaf, nn.Module):
        return next((tensor.device for tensor in leaf.parameters()), None)
    return leaf.device if isinstance(leaf, Tensor | Immutable) else None


def _moved(leaf: Any, device: torch.device) -> Any:
    """It, or where it has tensors a copy with these on the device."""
    if isinstance(leaf, nn.Module):
        return copy.deepcopy(leaf).to(device)
    return leaf.to(device) if isinstance(leaf, Tensor | Immutable) else leaf
