"""Feature: one record a kind of observation, which is all that the rest of the package knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ..errors import InputError
from .view import View, ViewOfOne

Answers = Literal["classes", "numbers"]
"""Logits of classes, one row a sample (n, C) or one a token (n, t, C); or numbers, (n,) or (n, ...)."""
Kind = Literal["classes", "numbers", "state"]
"""What a feature is of: a kind of answer, or the network's state, whatever it answers."""


@dataclass(frozen=True)
class Feature:
    """A kind of observation: what may be seen at an exit without the label (theory, section 2).

    Where a sample has logits for many tokens, a feature of classes is one number a token, pooled over those that are
    no padding.

    Attributes:
        name: of the observation's column.
        words: what it is, for people.
        of: what it is computed of. Every feature of classes is recorded of logits, every feature of numbers of other
            answers, every feature of the state besides.
        batch: (view, earlier) -> (n,), one number a sample, or (n, t), one a token. Of the state it reads
            `view.states` alone.
        one: the same for a single sample in Python numbers, quicker than tensors of one element; None where there is
            none, and `batch` is asked.
        keep: (view, value) -> what it wants back as `earlier` at the next exit looked at: tensors, the batch first in
            each, or numbers from one sample; at the first exit `earlier` is None. None for a feature of this exit
            alone. What has a history cannot be read where exits are passed by.
        tokens: how it is pooled over tokens.
        smooth: whether it changes continuously along a path of the state, so that a path meets its boundary.
        frugal: whether rules read it unless told otherwise: every feature is time on the clock at each look.

    Raises:
        InputError: a record that contradicts itself.
    """

    name: str
    words: str
    of: Kind
    batch: Callable[[View, Any], Tensor]
    one: Callable[[ViewOfOne, Any], float] | None = None
    keep: Callable[[Any, Any], Any] | None = None
    tokens: Literal["mean", "least"] = "mean"
    smooth: bool = False
    frugal: bool = False

    def __post_init__(self) -> None:
        if self.of not in get_args(Kind):
            raise InputError(f"feature {self.name!r} is of {self.of!r}; choose from {', '.join(get_args(Kind))}")
        if self.of == "state" and self.one is not None:
            raise InputError(f"feature {self.name!r} is of the state, which is tensors: leave one= out")
        if self.smooth and (self.of == "state" or self.history):
            raise InputError(f"feature {self.name!r} compares with the exit before, so it is not smooth along a path")

    @property
    def history(self) -> bool:
        """Whether it refers to the exit looked at before."""
        return self.keep is not None


FEATURES: dict[str, Feature] = {}
"""All there are, by name. The columns of a trace stand in this order."""


def register(feature: Feature) -> Feature:
    """Makes a feature known: to recorders, rules, engines and boundaries alike.

    Raises:
        InputError: the name is taken.
    """
    if feature.name in FEATURES:
        raise InputError(f"a feature {feature.name!r} is registered already: give this one another name")
    FEATURES[feature.name] = feature
    return feature


def features_of(kind: Kind) -> tuple[str, ...]:
    """The features of a kind of answer, or of the state."""
    return tuple(name for name, feature in FEATURES.items() if feature.of == kind)


def frugal_features() -> tuple[str, ...]:
    """The features that rules read unless told otherwise."""
    return tuple(name for name, feature in FEATURES.items() if feature.frugal)


def with_history(names: Sequence[str]) -> tuple[str, ...]:
    """Those that refer to the exit looked at before; a trace may have columns of its own, which do not."""
    return tuple(name for name in names if name in FEATURES and FEATURES[name].history)


def not_smooth(names: Sequence[str]) -> tuple[str, ...]:
    """Those that may jump along a path, or of which nobody knows."""
    return tuple(name for name in names if name not in FEATURES or not FEATURES[name].smooth)
