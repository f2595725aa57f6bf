"""In what precision a bundle computes, and how far it may be from torch by that.

Graphs compute as the network does, except in bfloat16, which numpy has no type for and a processor's runtime few
kernels: such a network is written in float32, where its weights are the same numbers, and inputs are cast at the edge.

In half precision rounding moves a decision now and then. So a sample may stop in the bundle where torch stops it, or
where torch in float32 does, and nowhere else; how many do the latter is counted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..batch import Inputs, hidden
from ..networks import StagedNetwork
from ..stopping.rule import Rule
from .inputs import Array
from .parts import parts_of, through

_HALVES = (torch.bfloat16, torch.float16)
_RTOL, _ATOL = 1e-3, 1e-4
"""What answers may differ by from torch: float32 through tens of layers, summed in another order."""
_PLACES = 16
"""And in half precision: so many units in the last place of the largest answer, which all others were summed beside."""


class Precision:
    """Of a network and the inputs that it is exported with.

    Attributes:
        half: float16 or bfloat16; None for more.
        network: as it is written.
    """

    def __init__(self, network: StagedNetwork, batches: Sequence[Inputs]) -> None:
        kinds = {tensor.dtype for tensor in (*network.parameters(), *tree_leaves(batches))}
        self.half = next((kind for kind in _HALVES if kind in kinds), None)
        self._wide = network if self.half is None else copy.deepcopy(network).float()
        self.network = self._wide if self.half == torch.bfloat16 else network

    @property
    def name(self) -> str:
        """In words; empty where there is nothing to say."""
        return "" if self.half is None else str(self.half).removeprefix("torch.")

    def edge(self, batch: Inputs) -> Inputs:
        """Inputs as the bundle takes them."""
        return _wide(batch) if self.half == torch.bfloat16 else batch

    def stopped(self, rule: Rule, batch: Inputs) -> Int[np.ndarray, " n"] | None:
        """Where torch in float32 stops the samples; None where it computes in that anyway."""
        if self.half is None:
            return None
        inputs = _wide(batch)
        parts = parts_of(self._wide, rule, inputs)
        exit = torch.full((len(hidden(inputs)),), parts[-1].exit)
        for part, passed in reversed(list(zip(parts, through(parts, inputs), strict=True))):
            if passed.stops is not None:
                exit[passed.stops] = part.exit
        return exit.numpy()

    @staticmethod
    def alike(mine: Array, its: Tensor) -> float | None:
        """The largest difference between answers of a bundle and of torch; None where they do not agree."""
        other = (its.float() if its.dtype == torch.bfloat16 else its).numpy()
        rtol, atol = _RTOL, _ATOL
        if its.dtype in _HALVES:
            rtol = _PLACES * torch.finfo(its.dtype).eps
            atol = rtol * float(np.abs(other[np.isfinite(other)]).max(initial=0.0))
        if not np.allclose(mine, other, rtol=rtol, atol=atol):
            return None
        unlike = mine != other  # where both are minus infinity there is nothing to subtract
        return float(np.abs(mine[unlike].astype(np.float64) - other[unlike].astype(np.float64)).max(initial=0.0))


def _wide(batch: Inputs) -> Inputs:
    return tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, batch)
