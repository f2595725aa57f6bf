"""What a JSON object that was read back says, by name and type: right, or refused in one line that names it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import InputError

_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number", NoneType: "null"}


class Fields:
    """A JSON object from elsewhere, of which nothing is believed until it is taken by its type.

    Args:
        held: the object.
        where: it comes from, for messages.
        make_it: what the user can do to get a sound one, for messages.
    """

    def __init__(self, held: Mapping[str, Any], where: str, make_it: str) -> None:
        self.held, self._where, self._make_it = held, where, make_it

    def take(self, name: str, kind: Any, *, least: float = -math.inf, most: float = math.inf) -> Any:
        """The value of a field, as the type given.

        Args:
            kind: str, bool, int, float (finite), None, Any, a Literal, a dataclass, or lists, tuples, dicts by str and
                unions of these. A tuple is a list in JSON, and a dataclass an object with its fields.
            least, most: of the numbers in it.

        Raises:
            InputError: it is missing, of another type, or out of range.
        """
        if name not in self.held:
            raise InputError(f"{self._where} lacks {name!r}; {self._make_it}")
        try:
            return _made(self.held[name], kind, name, least, most)
        except (_UnfitError, InputError) as error:  # a dataclass refuses what does not fit together
            raise InputError(f"{self._where} is damaged ({error}); {self._make_it}") from None

    def inner(self, name: str) -> Fields:
        """The object in a field."""
        return Fields(self.take(name, dict[str, Any]), f"{self._where}, {name},", self._make_it)


class _UnfitError(Exception):
    """Says which value is not of its type."""

    def __init__(self, value: Any, where: str, wanted: str) -> None:
        super().__init__(f"{where:.100} is {reprlib.repr(value)}, not {wanted}")


def _made(value: Any, kind: Any, where: str, least: float, most: float) -> Any:
    """The value as this type, or what is wrong."""
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in inner):
            raise _UnfitError(value, where, " or ".join(map(repr, inner)))
        return value
    if origin in (Union, UnionType):
        return _one_of(value, inner, where, least, most)
    if origin is dict:
        _insist(isinstance(value, dict), value, where, "an object")
        return {key: _made(held, inner[1], f"{where}.{key}", least, most) for key, held in value.items()}
    if origin in (list, tuple):
        _insist(isinstance(value, list), value, where, "a list")
        kinds = [inner[0]] * len(value) if origin is list or inner[1:] == (...,) else list(inner)
        _insist(len(kinds) == len(value), value, where, f"a list of {len(kinds)}")
        each = enumerate(zip(value, kinds, strict=True))
        return origin([_made(held, part, f"{where}[{i}]", least, most) for i, (held, part) in each])
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _insist(isinstance(value, dict), value, where, "an object")
        told = get_type_hints(kind)
        hints = {field.name: told[field.name] for field in dataclasses.fields(kind)}
        _insist(value.keys() == hints.keys(), list(value), where, f"an object of {', '.join(hints)}")
        return kind(**{key: _made(held, hints[key], f"{where}.{key}", least, most) for key, held in value.items()})
    return _plain(value, kind, where, least, most)


def _one_of(value: Any, kinds: tuple[Any, ...], where: str, least: float, most: float) -> Any:
    for kind in kinds:
        with contextlib.suppress(_UnfitError):
            return _made(value, kind, where, least, most)
    raise _UnfitError(value, where, " or ".join(_WORDS.get(kind, "a list") for kind in kinds) + _between(least, most))


def _plain(value: Any, kind: Any, where: str, least: float, most: float) -> Any:
    """A text, a truth value, a number or nothing."""
    wanted = _WORDS[kind]
    if kind not in (int, float):
        _insist(type(value) is kind, value, where, wanted)
        # Half of a pair in UTF-16 is no letter, and cannot be written to a page or a terminal.
        _insist(kind is not str or not any("\ud800" <= letter <= "\udfff" for letter in value), value, where, wanted)
        return value
    _insist(type(value) is int or (kind is float and type(value) is float), value, where, wanted)
    try:
        number = kind(value)
        fits = math.isfinite(number) and least <= number <= most
    except OverflowError:
        fits = False
    _insist(fits, value, where, wanted + _between(least, most))
    return number


def _between(least: float, most: float) -> str:
    if least == most:
        return f" that is {least:g}"
    ends = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
    return f" {' and '.join(ends)}" if ends else ""


def _insist(fits: bool, value: Any, where: str, wanted: str) -> None:
    if not fits:
        raise _UnfitError(value, where, wanted)
