"""Legs through torch.compile, one graph for every batch size that the engine runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..batch import Inputs, State
from ..errors import InputError
from .legs import Leg, Outcome, Remembered


class CompiledLeg:
    """A leg as one graph: stages, head, features, decision and recall, with nothing of Python between them."""

    def __init__(self, leg: Leg, options: dict[str, Any]) -> None:
        self.exit, self.looks, self.last = leg.exit, leg.looks, leg.last
        self._run = torch.compile(leg, **options)

    def __call__(self, given: Inputs | State, memory: Remembered) -> Outcome:
        """`Leg.forward`."""
        found: Outcome = self._run(given, memory)
        return found

    def one(self, given: Inputs | State, memory: Remembered) -> Outcome:
        """`Leg.one`; the decision is in the graph."""
        state, answers, stops, memory = self(given, memory)
        return Outcome(state, answers if stops is None or bool(stops) else None, None, memory)


def compiled(legs: Sequence[Leg], sizes: int) -> list[CompiledLeg]:
    """Each leg compiled on its own, static in shape, its weights folded in as constants; a graph break is an error.

    Legs share their code, and torch counts compilations by code: `isolate_recompiles` gives each its own count, or a
    deep network would silently fall back to uncompiled code.

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
    return [CompiledLeg(leg, options) for leg in legs]
