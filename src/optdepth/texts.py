"""Labelled sentences from a table: parquet, CSV or JSON lines, a folder of such, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from .errors import InputError
from .tables import tables
from .tensors import TensorData

LENGTH = 128
"""Tokens that a sentence is cut to, where nothing else is asked for."""
_SOURCES = "give a parquet, CSV or JSON lines file, a folder of such, or a hub name"
_TEST = 0.2
"""Share of the table that judges, where the source has no test split."""


def load_text(
    name: str,
    tokenizer: Callable[..., Any],
    *,
    text: str,
    label: str = "label",
    seed: int,
    length: int = LENGTH,
    fit: float | None = None,
    certify: float | None = None,
) -> TensorData:
    """Sentences as tokens, cut into four splits that share no row.

    The source's own test split (or else its validation split) is `test`; a source with one table gives a fifth of it.
    `fit` and `certify` are carved out of the rest, stratified by label.

    Args:
        name: a file or a folder of parquet, CSV or JSON lines, or the name of a data set on the hub.
        tokenizer: of transformers, for the model that will read them.
        text, label: columns. Labels are whole numbers from 0 on, or names, which are numbered in alphabetical order.
        seed: of the carving.
        length: tokens at most; more are cut off.
        fit, certify: shares of what is not test; 0.15 each when not given.

    Raises:
        InputError: no such source or column, labels that are missing, or too few samples of a class.
    """
    found = tables(name, _SOURCES)
    for key, table in found.items():
        for column in (text, label):
            if column not in table.column_names:
                there = ", ".join(table.column_names)
                raise InputError(f"{name} has no column {column!r} in {key}: it has {there}; name text= and label=")
    if "test" not in found:
        apart = found["train"].train_test_split(_TEST, seed=seed)
        found = {"train": apart["train"], "test": apart["test"]}
    numbers = _numbered(found, label, name)
    made = {key: (tokens(table, tokenizer, text, length, name), numbers[key]) for key, table in found.items()}
    shares = {"fit": 0.15 if fit is None else fit, "certify": 0.15 if certify is None else certify}
    return TensorData.of(Path(name).name, made["train"], made["test"], seed=seed, **shares)


def _numbered(tables: dict[str, datasets.Dataset], label: str, name: str) -> dict[str, Tensor]:
    """Labels as whole numbers, by table."""
    held = {key: table[label][:] for key, table in tables.items()}
    for key, values in held.items():
        missing = next((i for i, value in enumerate(values) if value is None), None)
        if missing is not None:
            raise InputError(f"{name}: row {missing} of {key} has no {label}; leave such rows out")
    kinds = {type(value) for values in held.values() for value in values}
    if kinds == {str}:
        order = {value: i for i, value in enumerate(sorted({value for values in held.values() for value in values}))}
        held = {key: [order[value] for value in values] for key, values in held.items()}
    elif kinds - {int, bool}:
        said = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"{name}: column {label} holds {said}; labels are whole numbers from 0 on, or names")
    return {key: torch.tensor(values, dtype=torch.int64) for key, values in held.items()}


def tokens(
    table: datasets.Dataset, tokenizer: Callable[..., Any], text: str, length: int, name: str
) -> dict[str, Tensor]:
    """What the tokenizer makes of the sentences of a table, all of one width.

    Raises:
        InputError: a cell of the column holds no text.
    """
    sentences = table[text][:]
    bad = next((i for i, each in enumerate(sentences) if not isinstance(each, str)), None)
    if bad is not None:
        raise InputError(f"{name}: row {bad} of column {text} is no text; leave such rows out")
    made = tokenizer(list(sentences), padding="longest", truncation=True, max_length=length, return_tensors="pt")
    return {str(key): value for key, value in made.items()}
