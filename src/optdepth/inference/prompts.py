"""Token numbers that a decoder is given, checked before anything is run on them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError


def vocabulary_of(model: Any) -> int:
    """How many tokens a model of transformers knows."""
    return len(model.get_input_embeddings().weight)


def checked_prompt(
    prompt: object, mask: object, vocabulary: int, what: str = "a prompt"
) -> tuple[Int[Tensor, "n p"], Int[Tensor, "n p"] | None]:
    """The prompt and its mask, as whole numbers.

    Raises:
        InputError: a prompt that is no table of tokens of the vocabulary, or a mask that is none of it.
    """
    numbers = checked_tokens(prompt, vocabulary, what)
    if numbers.ndim != 2 or 0 in numbers.shape:
        raise InputError(f"{what} of shape {tuple(numbers.shape)}: give (n, p) token numbers, n and p from 1 on")
    if mask is None:
        return numbers, None
    if not isinstance(mask, Tensor) or mask.shape != numbers.shape or not bool(((mask == 0) | (mask == 1)).all()):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(f"mask is {given}: give zeros and ones of the prompt's shape, {tuple(numbers.shape)}")
    ones = mask.long()
    if not ones[:, -1].all() or (ones.diff(dim=1) < 0).any():
        raise InputError("mask must have padding (0) on the left and ones behind it, in every row: pad on the left")
    return numbers, ones


def checked_tokens_to_write(tokens: object) -> None:
    """How many tokens a caller asks for.

    Raises:
        InputError: no whole number from 1 on.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise InputError(f"{tokens!r} tokens to write: give a whole number from 1 on")


def checked_pick(picked: object, n: int, vocabulary: int) -> Int[Tensor, " n"]:
    """What a caller's `pick` returns.

    Raises:
        InputError: it is not one token a sequence.
    """
    numbers = checked_tokens(picked, vocabulary, "what pick= returns")
    if numbers.shape != (n,):
        raise InputError(f"what pick= returns has shape {tuple(numbers.shape)}: give one token a sequence, ({n},)")
    return numbers


def checked_tokens(given: object, vocabulary: int, what: str) -> Int[Tensor, "*size"]:
    """Token numbers, as 64-bit whole numbers.

    Raises:
        InputError: no tensor, no whole numbers, or numbers that the vocabulary lacks.
    """
    if not isinstance(given, Tensor):
        raise InputError(f"{what} is a {type(given).__name__}: give a tensor of token numbers, torch.tensor(...)")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise InputError(f"{what} holds {given.dtype}: give token numbers, of torch.int64")
    numbers = given.long()
    if len(bad := ((numbers < 0) | (numbers >= vocabulary)).nonzero()):
        row = f" in sequence {int(bad[0, 0])}" if bad.shape[1] else ""
        found = int(numbers[tuple(bad[0])])
        raise InputError(f"{what} holds token {found}{row}: the model has 0 to {vocabulary - 1}")
    return numbers
