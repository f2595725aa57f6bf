"""Legs through torch.compile, one graph for every batch size that the engine runs, and for all lengths of samples."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..batch import State
from ..errors import InputError
from .legs import Leg, Outcome, Remembered

_KINDS = 6
"""Graphs of a leg for one batch size at most: for tensors of a caller and such as are made in here, each for one
length, for any, and for samples of length 1, which torch never takes for any."""


class CompiledLeg:
    """A leg as one graph: stages, head, features, decision and recall, with nothing of Python between them.

    The batch size is a constant of the graph. So is every other size, until it is seen to differ from one call to the
    next, as the length of texts does: from then on it is free, in this leg alone.
    """

    def __init__(self, leg: Leg, options: dict[str, Any]) -> None:
        self.exit, self.looks, self.last = leg.exit, leg.looks, leg.last
        self._run = torch.compile(leg, **options)
        self._met: dict[int, torch.Size] = {}
        self._free: set[tuple[int, int]] = set()

    def __call__(self, given: State, memory: Remembered) -> Outcome:
        """`Leg.forward`.

        Raises:
            InputError: the network is compiled anew for each length.
        """
        for i, leaf in enumerate(tree_leaves((given, memory))):
            self._notice(i, leaf)
        try:
            found: Outcome = self._run(given, memory)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise InputError(
                f"up to exit {self.exit} the network must be compiled anew for each size of its samples: pad them to a "
                "few sizes, or leave compile=True out"
            ) from error
        return found

    def one(self, given: State, memory: Remembered) -> Outcome:
        """`Leg.one`; the decision is in the graph."""
        state, answers, stops, memory = self(given, memory)
        return Outcome(state, answers if stops is None or bool(stops) else None, None, memory)

    def _notice(self, i: int, leaf: Tensor) -> None:
        """Marks the sizes of a leaf that are free; the first, the batch, never is."""
        met = self._met.setdefault(i, leaf.shape)
        if met[1:] != leaf.shape[1:] and len(met) == leaf.dim():
            self._free |= {(i, d) for d in range(1, leaf.dim()) if met[d] != leaf.shape[d]}
        for d in range(1, leaf.dim()):
            if (i, d) in self._free:
                torch._dynamo.maybe_mark_dynamic(leaf, d)


def compiled(legs: Sequence[Leg], sizes: int) -> list[CompiledLeg]:
    """Each leg compiled on its own for its batch sizes, its weights folded in as constants; a graph break is an error.

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
        "dynamic": False,  # but for what is marked
        "options": {"freezing": True},  # batch norms vanish into convolutions, and weights are laid out once
        "recompile_limit": _KINDS * sizes,
        "isolate_recompiles": True,
    }
    return [CompiledLeg(leg, options) for leg in legs]
