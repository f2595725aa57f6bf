"""Pictures of the inputs that stop first and last."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Int
from PIL import Image

from .study import Study

_SHOWN = 16
_PIXELS = 96
"""Longest side of a picture kept; larger ones are made smaller."""


@dataclass(frozen=True)
class Picture:
    """One input: its picture as a data address or its text, its label (or nothing), its exit, and whether it was
    answered right."""

    source: str
    text: str
    label: str
    exit: str
    right: bool


@dataclass(frozen=True)
class Gallery:
    """Some pictures under one heading."""

    title: str
    pictures: tuple[Picture, ...]


def galleries(
    study: Study, show: Callable[[int], Image.Image | str], labels: Sequence[str] | None
) -> tuple[Gallery, ...]:
    """The inputs at which the solved rule stops first, and those at which it stops last."""
    stopped_at = study.solved.stopped_at

    def picture(i: int) -> Picture:
        label, seen = "" if labels is None else labels[i], show(i)
        source, text = ("", seen) if isinstance(seen, str) else (address(seen), "")
        return Picture(source, text, label, study.names[stopped_at[i]], bool(study.solved.losses[i] == 0))

    first, last = (tuple(picture(int(i)) for i in _least(key)) for key in (stopped_at, -stopped_at))
    return Gallery("Stop first", first), Gallery("Stop last", last)


def _least(key: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    """Samples with the least keys; those that tie for the last places are taken evenly over the trace."""
    order = np.argsort(key, kind="stable")
    edge = key[order[:_SHOWN]][-1]
    sure, tied = np.flatnonzero(key < edge), np.flatnonzero(key == edge)
    places = np.linspace(0, len(tied) - 1, min(_SHOWN - len(sure), len(tied))).round().astype(int)
    return np.concatenate([sure, tied[places]])


def address(image: Image.Image, pixels: int = _PIXELS) -> str:
    """A picture as a data address, no longer a side than so many pixels; a very small one is enlarged by the page."""
    small = image.convert("RGB")
    small.thumbnail((pixels, pixels))
    buffer = BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
