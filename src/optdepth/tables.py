"""Tables of samples, from a file, a folder or the hub, as `train` and `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from .errors import InputError
from .outside import check_card

_READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
_WAIT = 10.0
"""Seconds for the hub to say whether it has a data set."""
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
"""Names of folders, whatever the case of their letters, and the splits that they hold."""


def tables(name: str, sources: str) -> dict[str, datasets.Dataset]:
    """The table `train`, and `test` where the source has one, or else a validation split.

    Args:
        name: of a parquet, CSV or JSON lines file, a folder of such or of images, or a data set on the hub.
        sources: what may be given instead, for messages.

    Raises:
        InputError: there is no such source, it cannot be read, or its splits are not those.
    """
    path = Path(name)
    try:
        found = _found(path, name, sources)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"cannot read {name} ({reason:.200}); {sources}") from error
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    judge = next((key for key in ("test", "validation") if key in found), None)
    if "train" not in found or judge is None:
        raise InputError(f"{name} has splits {', '.join(found)}: name one train and one test")
    return {"train": found["train"], "test": found[judge]}


def _found(path: Path, name: str, sources: str) -> dict[str, datasets.Dataset]:
    if path.is_file():
        if path.suffix not in _READERS:
            raise InputError(f"{path} ends in {path.suffix or 'nothing'}; {sources}")
        more = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return datasets.load_dataset(_READERS[path.suffix], data_files=str(path.absolute()), **more)
    if not path.is_dir():
        _check_hub(name, sources)
        return datasets.load_dataset(name)
    files = _files(path)
    check_card(path)
    # A folder by its whole path, so that none is taken for a format of that name, such as csv.
    return datasets.load_dataset(str(path.absolute()), **files)


def _files(folder: Path) -> dict[str, Any]:
    """Which files of a folder are of which split, where it says so in a spelling that `datasets` does not read."""
    below = sorted(path.name for path in folder.iterdir() if path.is_dir())
    splits = {name: split for name in below if (split := _SPLITS.get(name.lower())) is not None}
    if all(name == name.lower() for name in splits) or set(below) - set(splits):
        return {}
    if len(set(splits.values())) < len(splits):
        raise InputError(f"{folder} has folders {', '.join(splits)}: name one train and one test")
    return {"data_files": {split: f"{name}/**" for name, split in splits.items()}}


def _check_hub(name: str, sources: str) -> None:
    """Refuses a name that is no data set of the hub, at once: `datasets` would try again for most of a minute."""
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or (path.parent != Path() and path.parent.is_dir()):
        raise InputError(f"no such folder: {name}; {sources}")
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_WAIT)
    except Exception as error:  # of the hub, of what it speaks through, and of names that are none
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"no such folder: {name}, and the hub does not have it or cannot be reached ({reason:.100}); {sources}; "
            "HF_HUB_OFFLINE=1 takes what was downloaded before"
        ) from None
