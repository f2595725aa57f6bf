"""How much an exit's answer agrees with those before: streak, divergence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .feature import Feature, register
from .view import View, ViewOfOne


def _streak(view: View, earlier: tuple[Tensor, Tensor] | None) -> Float[Tensor, "n ..."]:
    if earlier is None:
        return torch.ones_like(view.prediction, dtype=torch.float32)
    prediction, streak = earlier
    return torch.where(view.prediction == prediction, streak + 1.0, 1.0)


def _streak_of_one(view: ViewOfOne, earlier: tuple[int, float] | None) -> float:
    return earlier[1] + 1.0 if earlier is not None and earlier[0] == view.prediction else 1.0


def _divergence(view: View, earlier: Tensor | None) -> Float[Tensor, "n ..."]:
    if earlier is None:
        return view.logits.new_ones(*view.logits.shape[:-1])
    return (view.probabilities - earlier).abs().sum(-1) / 2


def _divergence_of_one(view: ViewOfOne, earlier: list[float] | None) -> float:
    if earlier is None:
        return 1.0
    return sum([abs(p - q) for p, q in zip(view.probabilities, earlier, strict=True)]) / 2


register(
    Feature(
        "streak",
        "number of exits in a row, this one included, that predict the same class; of every token",
        of="classes",
        batch=_streak,
        one=_streak_of_one,
        keep=lambda view, streak: (view.prediction, streak),
        tokens="least",
        frugal=True,
    )
)
register(
    Feature(
        "divergence",
        "total variation distance to the previous exit's class distribution (1 at the first exit)",
        of="classes",
        batch=_divergence,
        one=_divergence_of_one,
        keep=lambda view, _: view.probabilities,
    )
)
