"""Batches: what a network takes and hands on, some of its samples, and whether they can be computed with."""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .errors import InputError

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | dict[str, Tensor]
"""What a network takes: one tensor, or a tuple or dict of tensors, the batch first in each. A list stands for a tuple,
of which a `DataLoader` makes one."""

State = Inputs | tuple["State", ...] | list["State"] | dict[str, "State"]
"""A pytree of tensors whose first dimension is the batch; for our residual networks, one tensor."""

Tree = TypeVar("Tree", bound=State)


def hidden(state: State) -> Tensor:
    """The main tensor of a state: the state itself, or its first tensor leaf."""
    if isinstance(state, Tensor):
        return state
    leaf = next((leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)), None)
    if leaf is None:
        raise InputError(f"a state of type {type(state).__name__} holds no tensor: return one from the stage")
    return leaf


def select(state: Tree, index: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> Tree:
    """The state of some samples: row numbers, or a mask over the batch."""
    rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
    # The usual state is one tensor, and `tree_map` takes as long as gathering a few samples of it.
    if isinstance(state, Tensor):
        chosen: Any = _gather(state, rows)
        return chosen
    return tree_map(lambda tensor: _gather(tensor, rows), state)


def _gather(tensor: Tensor, rows: Int[Tensor, " m"]) -> Tensor:
    """`tensor[rows]` in the layout that the tensor has, each row copied as one piece: several times faster on a CPU."""
    if tensor.is_contiguous() or tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.index_select(0, rows)
    return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def check_finite(inputs: State, first: int = 0) -> None:
    """Refuses a batch with NaN or infinity, naming the sample; `first` is the number of the batch's first one."""
    for tensor in [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs):
        # One cheap pass in the usual case; `torch.isfinite` is four more operations.
        if not tensor.is_floating_point() or math.isfinite(tensor.sum().item()):
            continue
        bad = torch.nonzero(~torch.isfinite(tensor.flatten(1)).all(dim=1))
        if len(bad):
            raise InputError(f"sample {first + int(bad[0])} of the batch holds NaN or infinity; clean or drop it")


def now(device: torch.device) -> float:
    """Seconds on the clock, with all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
