"""Classes by their names, as files name them."""

from __future__ import annotations

from typing import TypeVar

from ..errors import InputError

T = TypeVar("T")


def enrol(kinds: dict[str, type[T]], kind: type[T]) -> None:
    """Adds a class under its name. The same class defined again, as in a notebook, takes the place of the first.

    Raises:
        InputError: another class has the name; a file could not tell the two apart.
    """
    there = kinds.get(kind.__name__, kind)
    if (there.__module__, there.__qualname__) != (kind.__module__, kind.__qualname__):
        raise InputError(
            f"there is a {kind.__name__} already, {there.__module__}.{there.__qualname__}, and files say no more than "
            f"the name: call {kind.__module__}.{kind.__qualname__} something else"
        )
    kinds[kind.__name__] = kind
