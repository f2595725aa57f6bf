"""A rule that looks at some exits only: those that are worth their look, by measured costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..features import with_history
from ..trace import Trace
from .family import solver
from .placement import keep, place
from .rule import FixedDepth, Origin, Rule
from .snell import snell


class Placed(Rule):
    """A rule solved on some of the exits; the others are passed by, and their heads are not run.

    Args:
        inner: solved on `keep(trace, exits)`.
        exits: those kept, rising, the last one among them.
    """

    def __init__(self, origin: Origin, inner: Rule, exits: Sequence[int]) -> None:
        super().__init__(origin, inner.features)
        if history := with_history(inner.features):
            raise InputError(
                f"{history[0]} refers to the exit before, which a placed rule may not look at; leave it out"
            )
        self._inner, self._kept = inner, _checked(exits, len(origin.costs))
        if len(exits) != len(inner.origin.costs):
            raise InputError(f"exits {tuple(exits)} do not fit a rule between {len(inner.origin.costs)} exits")

    @property
    def inner(self) -> Rule:
        return self._inner

    @property
    def kept(self) -> tuple[int, ...]:
        return self._kept

    @property
    def last(self) -> int:
        return self._kept[self._inner.last]

    @property
    def looks(self) -> tuple[bool, ...]:
        return self._spread(self._inner.looks)

    @property
    def decides(self) -> tuple[bool, ...]:
        return self._spread(self._inner.decides)

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        return self._inner.stop(self._kept.index(k), observation)

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        return self._inner.decide(self._kept.index(k), observation)

    def arguments(self) -> dict[str, Any]:
        """Of the rule inside, with its kind and the exits."""
        return {"kind": type(self._inner).__name__, "kept": list(self._kept), **self._inner.arguments()}

    def _spread(self, kept: Sequence[bool]) -> tuple[bool, ...]:
        """What holds at the exits kept, and not at the others."""
        there = dict(zip(self._kept, kept, strict=True))
        return tuple(there.get(k, False) for k in range(len(self.origin.costs)))

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        rest = {name: value for name, value in arguments.items() if name not in ("kind", "kept")}
        kept = _checked(arguments["kept"], len(origin.costs))
        inner = Rule.kinds[arguments["kind"]].restore(replace(origin, costs=origin.costs.keep(kept), recall=()), rest)
        return cls(origin, inner, kept)


def _checked(exits: Sequence[int], n_exits: int) -> tuple[int, ...]:
    """The exits kept, or an error that says what is wrong with them."""
    kept = tuple(exits)
    whole = all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in kept)
    if not whole or not kept or kept[0] < 0 or kept[-1] != n_exits - 1 or any(a >= b for a, b in pairwise(kept)):
        raise InputError(f"exits kept are {kept}; give some of 0..{n_exits - 1}, rising, the last one among them")
    return kept


@solver
def placed(
    trace: Trace, *, features: Sequence[str] | None = None, most: int | None = None, seed: int = 0
) -> Callable[[float], Rule]:
    """The solved rule on the exits that are worth their look, at the trace's costs.

    With costs measured at the batch size that is served, this is the rule that the clock follows: at batch 1 a look may
    cost as much as a small block, at batch 256 next to nothing, and the exits kept differ. `dataclasses.replace(trace,
    costs=latency(network, inputs).relative())` is the same recording at other costs. The exits kept are those that pay
    at the price asked.

    Args:
        trace: the fit split.
        price, budget: one of them for that rule, neither for the family; see `solver`.
        features: observations to decide on, none with a history. If none are named, the margin, or where the trace has
            none, all without a history.
        most: look at so many exits at most, the last included.
        seed: of the folds.

    Raises:
        InputError: a feature with a history, or what `place` and `snell` raise.

    Example:
        >>> rule = od.placed(fit, price=0.05)
        >>> rule.looks[-1]
        True
    """
    if features is None:
        features = ("margin",) if "margin" in trace.features else [f for f in trace.features if not with_history([f])]
    if history := with_history(features):
        raise InputError(f"{history[0]} refers to the exit before, which a placed rule may not look at; leave it out")
    if not features:
        raise InputError(f"no feature left to decide on: {', '.join(trace.features)} refer to the exit before")
    narrow = replace(trace, observations=trace.columns(features), features=tuple(features))

    def at(price: float) -> Rule:
        exits = place(narrow, price=price, most=most, seed=seed).kept
        if len(exits) == 1:
            return FixedDepth(Origin.of(trace, price), exits[0])
        inner = snell(keep(narrow, exits), price=price, features=features, seed=seed)
        return Placed(Origin.of(trace, price), inner, exits)

    return at
