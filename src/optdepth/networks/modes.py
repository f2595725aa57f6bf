"""Modes of a network: as it is served, in evaluation whatever else becomes of it; and as another one is."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
_SHARED = frozenset(vars(nn.Module())) - {"training", "_modules"}
"""What torch keeps of every module: weights, buffers and hooks stay the module's own, whoever looks at them."""


def served(network: M) -> M:
    """The network in evaluation mode, whatever mode it is put into itself, now or later.

    Modules alone are copied, without anything in them: weights, buffers and hooks are the network's own, so that a
    change of those is a change of both. Modules that hold others in lists, tuples, dicts or bound methods are followed;
    what a closure holds keeps the mode that it has.
    """
    return _Copies().module(network)


def served_together(model: nn.Module, network: M) -> tuple[nn.Module, M]:
    """Both as they are `served`; a module that they share is one module in both."""
    copies = _Copies()
    return copies.module(model), copies.module(network)


def in_mode_of(made: M, origin: nn.Module) -> M:
    """A network put together from parts of another: what is new takes that one's mode, each part keeps its own."""
    parts = set(origin.modules())
    for module in made.modules():
        if module not in parts:
            module.training = origin.training
    return made


class _Copies:
    """One copy of each module, wherever it is called from."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}

    def module(self, module: M) -> M:
        if id(module) in self.made:
            found: M = self.made[id(module)]
            return found
        copied = object.__new__(type(module))
        self.made[id(module)] = copied
        held = vars(module)
        vars(copied).update(held, training=False)
        children = held["_modules"].items()  # one may be None, and an empty Sequential is false
        vars(copied)["_modules"] = {name: None if child is None else self.module(child) for name, child in children}
        vars(copied).update({name: self.of(value) for name, value in held.items() if self._may_hold(name, value)})
        return copied

    @staticmethod
    def _may_hold(name: str, value: Any) -> bool:
        return name not in _SHARED and name != "_modules" and isinstance(value, _HOLDERS)

    def of(self, value: Any) -> Any:
        """What a module holds, with copies in place of modules; itself where it holds none."""
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, MethodType):
            return (
                MethodType(value.__func__, self.of(value.__self__)) if isinstance(value.__self__, nn.Module) else value
            )
        if type(value) not in (list, tuple, dict) or id(value) in self.made:
            return self.made.get(id(value), value)
        self.made[id(value)] = value  # one that holds itself comes back here
        items = list(value.values()) if type(value) is dict else list(value)
        copies = [self.of(item) for item in items]
        if all(copied is item for copied, item in zip(copies, items, strict=True)):
            return value
        made = dict(zip(value, copies, strict=True)) if type(value) is dict else type(value)(copies)
        self.made[id(value)] = made
        return made


_HOLDERS = (nn.Module, MethodType, list, tuple, dict)
