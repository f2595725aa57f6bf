"""Why torch.export cannot follow a model, in one line, and what helps in that case."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError

_HERE, _TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
_BY_VALUES = ("data-dependent", "DataDependent", "dynamic shape operator")


def cannot_follow(model: nn.Module, error: Exception, whole: Sequence[str]) -> InputError:
    """What to say of an error of torch.export.

    Args:
        whole: the submodules that were kept whole.
    """
    name, reason = type(model).__name__, " ".join(str(error).split())
    at = "" if (place := _place(error)) is None else f" at {place}"
    if any(words in f"{type(error).__name__} {reason}" for words in _BY_VALUES):
        return InputError(
            f"{name} decides by values{at}, which a graph cannot ({reason:.120}): make that an operation on tensors, "
            "such as torch.where, or stage a part of the model without it"
        )
    if "(batch)" in reason:
        return InputError(
            f"{name} works at the batch size of the example alone{at} ({reason:.120}), so no sample could leave: make "
            "its code work for any, or stage a part of the model that does"
        )
    said = f"{type(error).__name__}: {reason:.240}"
    if whole:
        return InputError(
            f"torch.export cannot follow {name} outside of its blocks{at} ({said}): put that code into a module of its "
            "own, or stage the part of the model that holds the blocks"
        )
    return InputError(
        f"torch.export cannot follow {name}{at} ({said}); name its blocks with blocks=[...], so that their insides "
        "need not be followed"
    )


def _place(error: BaseException | None) -> str | None:
    """The innermost line of code that is neither torch's nor this library's, of the error or what it came from."""
    found = None
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            path = Path(frame.f_code.co_filename)
            if path.is_file() and not path.is_relative_to(_HERE) and not path.is_relative_to(_TORCH):
                found = f"{path.name}:{line}"
        error = error.__cause__ or error.__context__
    return found
