"""`own`: a copy of the network's own head."""

from __future__ import annotations

from torch import nn

from ...errors import InputError
from .kind import HeadKind, Place


def make(place: Place) -> nn.Module:
    """The copy, or why there is none."""
    try:
        return place.own()
    except InputError as error:
        raise InputError(f"head='own' at {place.name}: {error}; {place.other}") from None


KIND = HeadKind("own", "a copy of all that the model has behind its last block, pooler included", make)
