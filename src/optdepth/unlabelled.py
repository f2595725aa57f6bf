"""Inputs without labels, as a model reads them: sentences of a table, images of a table or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .batch import Inputs
from .data import normalise
from .errors import InputError
from .image_tables import IMAGE_COLUMNS
from .pictures import cut, picture
from .sources import Pixels, Source
from .tables import tables
from .texts import LENGTH, tokens

_SUFFIXES = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}


def unlabelled(name: str, source: Source, text: str | None, image_size: int | None, batch: int) -> Iterator[Inputs]:
    """Batches of inputs, in the order of the table or of the files' names.

    Args:
        name: a table of sentences or images, or a folder of images.
        text: column of the sentences.
        image_size: pixels, instead of the model's own.

    Raises:
        InputError: no such source or column, or a model that does not say how it reads.
    """
    reads = source.reads
    if reads is None:
        raise InputError(f"{source.name} does not say how it reads data: call it from Python, od.load(folder)(inputs)")
    if isinstance(reads, Pixels):
        return _images(name, reads.of_size(image_size), batch)
    if text is None:
        raise InputError(f"{source.name} reads sentences: name their column with --text, such as --text sentence")
    table = tables(name, "give a parquet, CSV or JSON lines file, a folder of such, or a hub name")["train"]
    if text not in table.column_names:
        raise InputError(f"{name} has no column {text!r}: it has {', '.join(table.column_names)}; name --text")
    parts = (table.select(range(i, min(i + batch, len(table)))) for i in range(0, len(table), batch))
    return (tokens(part, reads, text, LENGTH, name) for part in parts)


def _images(name: str, reads: Pixels, batch: int) -> Iterator[Inputs]:
    waiting: list[Any] = []
    for cell, where in _cells(Path(name), name):
        found = cut(picture(cell, where, "RGB"), reads.image_size, reads.resize)
        waiting.append(torch.from_numpy(np.array(found)).permute(2, 0, 1))
        if len(waiting) == batch:
            yield normalise(torch.stack(waiting), reads.mean, reads.std)
            waiting = []
    if waiting:
        yield normalise(torch.stack(waiting), reads.mean, reads.std)


def _cells(path: Path, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Images, each as a table's cell, and where each is."""
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in _SUFFIXES) if path.is_dir() else []
    if path.suffix.lower() in _SUFFIXES:
        files = [path]
    for file in files:
        yield {"bytes": None, "path": str(file)}, str(file)
    if files:
        return
    import datasets

    table = tables(name, "give a folder of images, a parquet file, or a hub name")["train"]
    column = next((each for each in IMAGE_COLUMNS if each in table.column_names), None)
    if column is None:
        raise InputError(f"{name} has columns {', '.join(table.column_names)}: name that of the images image")
    for i, row in enumerate(table.select_columns([column]).cast_column(column, datasets.Image(decode=False))):
        yield row[column], f"{name} row {i}"
