"""`auto`: the network's own head where a copy of it fits, else a linear one."""

from __future__ import annotations

from torch import nn

from ...errors import InputError
from . import linear, token
from .kind import HeadKind, Place


def make(place: Place) -> nn.Module:
    """It draws no weights, whichever it is."""
    try:
        return place.own()
    except InputError as error:
        if place.answer.dim() == 2:
            return linear.make(place)
        if place.per_token:
            return token.make(place)
        raise InputError(f"head='auto' at {place.name}: {error}; {place.other}") from None


KIND = HeadKind(
    "auto", "`own` where a copy fits the state, else `linear`, or `token` where every token has an answer", make
)
