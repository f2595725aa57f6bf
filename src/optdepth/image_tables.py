"""Where labelled images come from: the embedded digits, a folder, or the hub, as tables of undecoded images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
from jaxtyping import Int64, Shaped
from sklearn.datasets import load_digits
from xxhash import xxh3_64

from .errors import InputError
from .outside import check_card, check_paths
from .pictures import stored
from .progress import bar

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
SOURCES = "give 'digits', a folder of parquet files or images, or a hub name"
_WAIT = 10.0
"""Seconds for the hub to say whether it has a data set."""
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
"""Names of folders, whatever the case of their letters, and the splits that they hold."""


def read_tables(name: str) -> dict[str, datasets.Dataset]:
    """Tables with columns `image` (undecoded) and `label`: `train`, and `test` where the source has one."""
    if name == "digits":
        return {"train": _digits()}
    folder = Path(name)
    files = _files(folder) if folder.is_dir() else None
    if files is None:
        _check_hub(name)
    else:
        check_card(folder)
    try:
        # A folder by its whole path, so that none is taken for a format of that name, such as csv.
        found = datasets.load_dataset(name) if files is None else datasets.load_dataset(str(folder.absolute()), **files)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"cannot read {name} ({reason:.200}); {SOURCES}") from error
    if len(found) == 1:
        return {"train": _standard(next(iter(found.values())), name)}
    judge = next((key for key in ("test", "validation") if key in found), None)
    if "train" not in found or judge is None:
        raise InputError(f"{name} has splits {', '.join(found)}: name one train and one test")
    return {"train": _standard(found["train"], name), "test": _standard(found[judge], name)}


def _files(folder: Path) -> dict[str, Any]:
    """Which files of a folder are of which split, where it says so in a spelling that `datasets` does not read."""
    below = sorted(path.name for path in folder.iterdir() if path.is_dir())
    splits = {name: split for name in below if (split := _SPLITS.get(name.lower())) is not None}
    if all(name == name.lower() for name in splits) or set(below) - set(splits):
        return {}
    if len(set(splits.values())) < len(splits):
        raise InputError(f"{folder} has folders {', '.join(splits)}: name one train and one test")
    return {"data_files": {split: f"{name}/**" for name, split in splits.items()}}


def _check_hub(name: str) -> None:
    """Refuses a name that is no data set of the hub, at once: `datasets` would try again for most of a minute."""
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or (path.parent != Path() and path.parent.is_dir()):
        raise InputError(f"no such folder: {name}; {SOURCES}")
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_WAIT)
    except Exception as error:  # of the hub, of what it speaks through, and of names that are none
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"no such folder: {name}, and the hub does not have it or cannot be reached ({reason:.100}); {SOURCES}; "
            "HF_HUB_OFFLINE=1 takes what was downloaded before"
        ) from None


def _digits() -> datasets.Dataset:
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8)
    cells = [{"bytes": b"P5 8 8 255\n" + image.tobytes(), "path": None} for image in images]  # no encoder's choice
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    )
    table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    return _standard(table, "digits")


def _standard(table: datasets.Dataset, name: str) -> datasets.Dataset:
    columns = table.column_names
    image = next((column for column in IMAGE_COLUMNS if column in columns), None)
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    if image is None or label is None:
        missing, wanted = ("image", IMAGE_COLUMNS) if image is None else ("label", LABEL_COLUMNS)
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
