"""What may be seen of answers that are numbers: change, level."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .feature import Feature, register
from .view import View


def _change(view: View, earlier: Tensor | None) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(view.numbers if earlier is None else view.numbers - earlier, dim=1)


register(
    Feature(
        "change",
        "distance of the answer from the previous exit's (from zero at the first exit)",
        of="numbers",
        batch=_change,
        keep=lambda view, _: view.numbers,
    )
)
register(
    Feature(
        "level",
        "mean of the numbers in the answer: the answer itself where it is one number",
        of="numbers",
        batch=lambda view, _: view.numbers.mean(1),
        smooth=True,
    )
)
