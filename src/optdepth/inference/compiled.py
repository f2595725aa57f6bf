"""Stages through torch.compile, one graph for every batch size that the engine runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError


def compiled(modules: Sequence[nn.Module], sizes: int) -> list[Callable[[Any], Any]]:
    """Each module compiled on its own, static in shape, its weights folded in as constants; a graph break is an error.

    Modules of one class share their code, and torch counts compilations by code: `isolate_recompiles` gives each its
    own count, or a deep network would silently fall back to uncompiled code.

    Args:
        sizes: how many batch sizes each will meet.

    Raises:
        InputError: a torch that cannot keep the counts apart.
    """
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise InputError(
            f"compile=True needs a torch whose torch.compile has isolate_recompiles; this is {torch.__version__}"
        )
    options: dict[str, Any] = {
        "fullgraph": True,
        "dynamic": False,
        "options": {"freezing": True},  # batch norms vanish into convolutions, and weights are laid out once
        "recompile_limit": 2 * sizes,
        "isolate_recompiles": True,
    }
    return [torch.compile(module, **options) for module in modules]
