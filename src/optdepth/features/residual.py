"""How much a stage moves the state."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..batch import State, hidden
from .feature import Feature, register


def residual_size(before: State, after: State) -> Float[Tensor, " n"]:
    """||X_after - X_before|| / ||X_before|| per sample, in float32 (theory section 5).

    It is 1 for every sample where the shapes differ: such a stage replaces the state, and there is nothing to
    compare. A state of zeros has size 0 if it stays, 1 if it moves.
    """
    x, y = hidden(before), hidden(after)
    if x.shape != y.shape:
        return torch.ones(len(y), device=y.device)
    x, y = x.float().flatten(1), y.float().flatten(1)
    norm, step = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y - x, dim=1)
    zero = norm == 0
    return torch.where(zero, (step > 0).float(), step / torch.where(zero, 1.0, norm))


register(
    Feature(
        "residual",
        "size of what the last stage added, relative to the state it was added to",
        of="state",
        batch=lambda view, _: residual_size(*view.states),
    )
)
