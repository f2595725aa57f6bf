"""The rule that a fitted continuation value gives: stop where going on gains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..features import frugal_features
from ..trace import Trace
from .regression import Function, restored
from .rule import Origin, Rule


class GainRule(Rule):
    """Stops where the fitted gain of going on, E[Y_k - U_{k+1} | s_k], is not positive.

    Args:
        gains: one fitted function for each exit but the last, of the features named.
    """

    def __init__(self, origin: Origin, features: Sequence[str], gains: Sequence[Function]) -> None:
        super().__init__(origin, features)
        self.gains = tuple(gains)
        if len(self.gains) != len(origin.costs) - 1:
            raise InputError(f"{len(self.gains)} gains for {len(origin.costs)} exits; one each but the last")
        for gain in self.gains:
            gain.check(self.features)

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        return self.gains[k](observation) <= 0

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        return self.gains[k].at(observation) <= 0

    def score(self, k: int, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        return self.gains[k](observation)

    def arguments(self) -> dict[str, Any]:
        tensors = {
            f"{k}.{name}": value for k, gain in enumerate(self.gains) for name, value in gain.arguments().items()
        }
        return {"features": list(self.features), "kinds": [type(gain).__name__ for gain in self.gains], **tensors}

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        gains = [restored(kind, f"{k}.", arguments) for k, kind in enumerate(arguments["kinds"])]
        return cls(origin, arguments["features"], gains)


def frugal(trace: Trace) -> tuple[str, ...]:
    """The features that a fitted rule reads unless told otherwise: few where the trace is of logits, else all."""
    few = frugal_features()
    return few if set(few) <= set(trace.features) else trace.features
