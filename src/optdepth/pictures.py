"""Pictures as they are stored: read, put upright, and brought to 8 bits a channel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import InputError

_BITS16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes of 16 bits a pixel; some formats keep them in 32."""


def stored(cell: dict[str, Any], where: str) -> bytes:
    """The encoded image in a table's cell, or in the file that it names.

    Raises:
        InputError: there is none.
    """
    try:
        if cell["bytes"] is None and not Path(cell["path"]).is_file():  # a pipe or a device would never end
            raise OSError("no such file")
        content: bytes = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    except (OSError, TypeError) as error:
        raise InputError(f"{where} ({cell and cell['path']}): unreadable image; replace or remove it") from error
    return content


def picture(cell: dict[str, Any], where: str, mode: str) -> Image.Image:
    """The picture in a table's cell, upright as its EXIF data say, in a mode of 8 bits a channel.

    Args:
        where: it is, for messages.
        mode: "L" or "RGB".

    Raises:
        InputError: it is no whole image, or one of numbers without a known range.
    """
    content = stored(cell, where)
    try:
        found: Image.Image = Image.open(io.BytesIO(content))
        ImageOps.exif_transpose(found, in_place=True)
        if found.mode in _BITS16:
            found = _from_16_bits(found, where)
        elif found.mode == "F":
            raise InputError(f"{where} ({cell['path']}) holds floating numbers: store it in 8 or 16 bits a channel")
        return found.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} ({cell['path']}): unreadable image; replace or remove it") from error


def _from_16_bits(found: Image.Image, where: str) -> Image.Image:
    """PIL cuts larger numbers off at 255 where it converts; here 65,535 is white."""
    numbers = np.asarray(found).astype(np.int64)
    if numbers.min() < 0 or numbers.max() > 65535:
        raise InputError(f"{where} holds numbers from {numbers.min()} to {numbers.max()}: store 8 or 16 bits a channel")
    return Image.fromarray(np.rint(numbers / 257).astype(np.uint8))


def cut(found: Image.Image, size: int, resize: int) -> Image.Image:
    """Shorter side to `resize`, then `size` x `size` out of the centre."""
    if resize == size:
        return ImageOps.fit(found, (size, size), Image.Resampling.BILINEAR)
    share = resize / min(found.size)
    wide = found.resize([max(size, round(side * share)) for side in found.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in wide.size)
    return wide.crop((left, top, left + size, top + size))
