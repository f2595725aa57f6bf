"""Data from elsewhere read what lies in their own folder, and nothing else of the machine or of the network.

A table's cells may name a file in place of holding it, and the head of a folder's README may say which files are its
data. Both come with the data, so neither is believed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub.constants import HF_HUB_CACHE

from .errors import InputError

_CARDS = ("README.md", ".huggingface.yaml")
_ADDRESS = re.compile(r"://|::")


def check_card(folder: Path) -> None:
    """Refuses a folder whose README sends readers elsewhere.

    Raises:
        InputError: it names an address, or a place outside the folder, or its head is no YAML.
    """
    for card in (folder / name for name in _CARDS):
        if not card.is_file():
            continue
        try:
            told = huggingface_hub.metadata_load(card) or {}
        except Exception as error:  # of the parser, which is not ours to name
            reason = " ".join(str(error).split())
            raise InputError(
                f"the head of {card} is no YAML ({reason:.100}); correct it, or delete {card.name}"
            ) from None
        for text in _texts(told.get("configs")):
            if _ADDRESS.search(text) or os.path.isabs(text) or ".." in text.replace("\\", "/").split("/"):
                raise InputError(
                    f"{card} names {text!r:.100}, which is not in {folder}; put the data there, or correct {card.name}"
                )


def check_paths(paths: Iterable[str], name: str) -> None:
    """Refuses cells that name a file outside their data set.

    Args:
        paths: as cells that hold no bytes have them.
        name: of the folder, or of the data set on the hub, whose files lie in the hub's cache.

    Raises:
        InputError: one is not in the folder; a relative one is nowhere.
    """
    folder = Path(name)
    hub = (HF_HUB_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    kept = (str(folder.absolute()), str(folder.resolve())) if folder.is_dir() else tuple(map(str, hub))
    roots = tuple(os.path.join(os.path.normpath(root), "") for root in (*kept, datasets.config.EXTRACTED_DATASETS_PATH))
    for path in paths:
        if not os.path.normpath(path).startswith(roots):
            raise InputError(
                f"{name} names the file {path!r:.100}, which is not in it; put the image's bytes into the table, or "
                "the file into the folder"
            )


def _texts(told: Any) -> Iterator[str]:
    """Every text in what YAML said."""
    if isinstance(told, str):
        yield told
    elif isinstance(told, dict):
        for held in told.values():
            yield from _texts(held)
    elif isinstance(told, list):
        for held in told:
            yield from _texts(held)
