"""Where labelled images come from: the embedded digits, a folder, or the hub, as tables of undecoded images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from jaxtyping import Int64, Shaped
from sklearn.datasets import load_digits
from xxhash import xxh3_64

from .errors import InputError
from .outside import check_paths
from .pictures import stored
from .progress import bar
from .tables import tables

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
SOURCES = "give 'digits', a folder of parquet files or images, or a hub name"


def read_tables(name: str, label: str | None = None) -> dict[str, datasets.Dataset]:
    """Tables with columns `image` (undecoded) and `label`: `train`, and `test` where the source has one.

    Args:
        label: the column that holds the labels; one of `LABEL_COLUMNS` when not given.
    """
    if name == "digits":
        return {"train": _digits()}
    return {key: _standard(table, name, label) for key, table in tables(name, SOURCES).items()}


def _digits() -> datasets.Dataset:
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8)
    cells = [{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in images]  # no encoder's choice
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    )
    table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    return _standard(table, "digits")


def _standard(table: datasets.Dataset, name: str, chosen: str | None = None) -> datasets.Dataset:
    columns = table.column_names
    image = next((column for column in IMAGE_COLUMNS if column in columns), None)
    wanted_label = LABEL_COLUMNS if chosen is None else (chosen,)
    label = next((column for column in wanted_label if column in columns), None)
    if image is None or label is None:
        missing, wanted = ("image", IMAGE_COLUMNS) if image is None else ("label", wanted_label)
        raise InputError(f"{name} has columns {', '.join(columns)}: name the {missing} column {' or '.join(wanted)}")
    if len(table) == 0:
        raise InputError(f"{name} has a split without rows; {SOURCES}")
    table = table.select_columns([image, label])
    table = table.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    try:
        table = table.cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: column {image} holds no images; store encoded files in it") from error
    for batch in table.data["image"].chunks:  # without the bytes
        named = batch.field("path").filter(batch.field("bytes").is_null()).drop_null()
        check_paths(named.to_pylist(), name)
    return table


def classes_of(tables: dict[str, datasets.Dataset], name: str) -> tuple[str, ...]:
    """Class names; where the source has none, the labels of its train split are 0..C-1."""
    feature = tables["train"].features["label"]
    names = tuple(getattr(feature, "names", None) or ())
    for key, table in tables.items():
        labels = labels_of(table)
        if labels.dtype.kind not in "iu":
            raise InputError(f"{name}: labels of {key} are {feature}, some perhaps missing; give integers")
        names = names or tuple(str(label) for label in range(labels.max() + 1))
        if len(bad := np.flatnonzero((labels < 0) | (labels >= len(names)))):
            label = labels[bad[0]]
            raise InputError(
                f"{name}: label {label} in row {bad[0]} of {key} is not in 0..{len(names) - 1}: correct it"
            )
    return names


def labels_of(table: datasets.Dataset) -> Shaped[np.ndarray, " n"]:
    """As the table holds them, whatever they are."""
    return np.asarray(table["label"][:])  # sliced: a column itself is read element by element


def cells(table: datasets.Dataset, doing: str) -> Iterator[dict[str, Any]]:
    """The table's images, undecoded; with a bar on stderr where they take longer than two seconds."""
    begin, chunk = time.monotonic(), 512  # rows of a table are fast to read in chunks, slow one by one
    with bar() as progress:
        task = progress.add_task(doing, total=len(table), visible=False)
        for start in range(0, len(table), chunk):
            yield from table[start : start + chunk]["image"]
            progress.update(task, completed=start, visible=time.monotonic() - begin > 2)


def digests(table: datasets.Dataset, classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """Hash of each image as it is stored and of the name of its class: XXH3, the same everywhere."""
    found = np.empty(len(table), dtype=np.uint64)
    for i, (cell, label) in enumerate(zip(cells(table, "reading images"), labels_of(table), strict=True)):
        digest = xxh3_64(classes[label].encode() + b"\0")
        digest.update(stored(cell, f"row {i} of the data"))
        found[i] = digest.intdigest()
    return found.view(np.int64)
