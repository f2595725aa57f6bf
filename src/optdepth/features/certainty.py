"""How sure an exit's answer is: confidence, margin, entropy."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .feature import Feature, register
from .view import View, ViewOfOne


def _margin(view: View, _: None) -> Float[Tensor, "n ..."]:
    first, second = view.top
    return first - second


def _margin_of_one(view: ViewOfOne, _: None) -> float:
    second, first = sorted(view.probabilities)[-2:]
    return first - second


def _entropy(view: View, _: None) -> Float[Tensor, "n ..."]:
    return torch.special.entr(view.probabilities).sum(-1) / math.log(view.logits.shape[-1])


def _entropy_of_one(view: ViewOfOne, _: None) -> float:
    shares = view.probabilities
    return -sum([p * math.log(p) for p in shares if p > 0.0]) / math.log(len(shares))


register(
    Feature(
        "confidence",
        "probability of the most likely class",
        of="classes",
        batch=lambda view, _: view.best,
        one=lambda view, _: view.best,
        tokens="least",
        smooth=True,
    )
)
register(
    Feature(
        "margin",
        "probability of the most likely class minus that of the runner-up",
        of="classes",
        batch=_margin,
        one=_margin_of_one,
        tokens="least",
        smooth=True,
        frugal=True,
    )
)
register(
    Feature(
        "entropy",
        "entropy of the class distribution, as a share of log(classes)",
        of="classes",
        batch=_entropy,
        one=_entropy_of_one,
        smooth=True,
        frugal=True,
    )
)
