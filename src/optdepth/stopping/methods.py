"""The methods there are: each a record of what it is called, what it is for, how it is drawn, and its solver.

The frontier, the command line and the report take their methods from here, so that one that a user registers is
among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from ..errors import InputError
from ..palette import COLOURS
from ..trace import Trace
from .baselines import confidence, entropy, patience
from .family import Family
from .lookahead import lookahead
from .placed import placed
from .snell import snell

Kind = Literal["solved", "baseline"]
"""Solved: by this library's mathematics, or yours. Baseline: a rule in use today, tuned as well as it can be."""
Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True)
class Method:
    """One way to decide where to stop.

    Attributes:
        name: what it is called everywhere: words of small letters and digits.
        kind: whether it is a solved rule, or a baseline that solved rules are held against.
        solve: the family that a trace fits, such as `snell`.
        colour: of its line, a name out of `palette.COLOURS`.
        dash: of its line.
        words: what a legend says of it beside its name; nothing if empty.

    Raises:
        InputError: a name, kind, colour or dash that is none.
    """

    name: str
    kind: Kind
    solve: Callable[[Trace], Family[Any]]
    colour: str
    dash: Dash
    words: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*( [a-z0-9]+)*", self.name):
            raise InputError(f"method name {self.name!r} is not words of small letters and digits, as in 'my rule 2'")
        for what, choices in (("kind", get_args(Kind)), ("colour", tuple(COLOURS)), ("dash", get_args(Dash))):
            if getattr(self, what) not in choices:
                raise InputError(f"{what} of method {self.name!r} is {getattr(self, what)!r}, not {', '.join(choices)}")


_METHODS: dict[str, Method] = {}
METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""Every method by its name, in the order of registration."""

SOLVED = "placed"
"""The solved rule that runs, reports and exports are about: `snell`, looking where a look is worth its cost."""


_TAKEN = ("certified", "full network")
"""Rules of a run that are no method's."""


def register(method: Method) -> None:
    """Adds a method to those there are.

    Raises:
        InputError: there is one of that name, or a run calls something else so.
    """
    if method.name in _METHODS or method.name in _TAKEN:
        raise InputError(f"the name {method.name!r} is taken; give your method another")
    _METHODS[method.name] = method


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]


def baselines() -> tuple[str, ...]:
    """Names of the baselines there are."""
    return tuple(name for name, method in METHODS.items() if method.kind == "baseline")


# A colour for each feature that a threshold is on; dashed where one threshold is common to all exits.
for ours in (
    Method(SOLVED, "solved", placed, "blue", "solid", "solved rule"),
    Method("snell", "solved", snell, "sky", "solid", "solved, looks everywhere"),
    Method("lookahead", "solved", lookahead, "green", "solid"),
    Method("confidence", "baseline", confidence, "orange", "dashed"),
    Method("confidence per exit", "baseline", lambda trace: confidence(trace, per_exit=True), "orange", "solid"),
    Method("entropy", "baseline", entropy, "purple", "dashed"),
    Method("entropy per exit", "baseline", lambda trace: entropy(trace, per_exit=True), "purple", "solid"),
    Method("patience", "baseline", patience, "amber", "dashed"),
    Method("patience per exit", "baseline", lambda trace: patience(trace, per_exit=True), "amber", "solid"),
):
    register(ours)
