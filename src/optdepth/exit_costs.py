"""Costs: what each exit costs, the same for all samples or each sample's own, and where each sample ends by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from .errors import InputError

Array = np.ndarray
_PARTS = ("reach", "look", "answer")


@dataclass(frozen=True, eq=False)
class Costs:
    """What reaching, looking at and answering from each exit costs, in one unit.

    (K,) where all samples cost the same; (N, K) where each costs its own, as sentences of different lengths do. Samples
    that end by themselves, as chains of thought do, have a horizon: at its last exit a sample stops whatever is seen,
    so what its look costs there is counted with the answer, and what stands behind it is never read.

    Attributes:
        reach: (K,) or (N, K) cost of running the trunk up to exit k; cumulative, so it never falls with depth.
        look: as reach, cost of looking at exit k: its head, the observation, the rule.
        answer: as reach, further cost of the answer once stopped at k; 0 where looking already produced it.
        unit: the unit, for people.
        horizon: (N,) how many of the exits each sample has, 1 to K; None where all have all.

    Example:
        >>> od.Costs.of([1.0, 2.0], look=0.5).paid()
        array([1.5, 3. ])
        >>> od.Costs.of([[1.0, 2.0], [3.0, 6.0]], horizon=[2, 1]).paid()
        array([[1., 2.],
               [3., 3.]])
    """

    reach: Float[Array, "*N K"]
    look: Float[Array, "*N K"]
    answer: Float[Array, "*N K"]
    unit: str = "cost"
    horizon: Int[Array, " N"] | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - frozen dataclass
        parts = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in _PARTS}
        shape = parts["reach"].shape
        if len(shape) not in (1, 2) or 0 in shape:
            raise InputError(f"reach must be one cost an exit, shape (K,), or of each sample (N, K); got shape {shape}")
        for name, value in parts.items():
            if value.shape != shape:
                raise InputError(f"{name} has shape {value.shape}, reach has {shape}: one cost an exit")
        if self.horizon is not None:
            put("horizon", _checked(self.horizon, shape))
            parts = {name: self.until_end(value) for name, value in parts.items()}
            ended = np.arange(shape[-1]) >= self.horizon[:, None] - 1
            parts["answer"] = np.where(ended, parts["answer"] + parts["look"], parts["answer"])
            parts["look"] = np.where(ended, 0.0, parts["look"])
        for name, value in parts.items():
            put(name, value)
            _check_numbers(name, value)
        _check_rising(parts["reach"])

    @classmethod
    def of(
        cls,
        reach: ArrayLike,
        look: ArrayLike = 0.0,
        answer: ArrayLike = 0.0,
        unit: str = "cost",
        horizon: ArrayLike | None = None,
    ) -> Self:
        """Costs from anything array-like: one number counts for every exit, one row for every sample."""
        given = [np.asarray(part, dtype=np.float64) for part in (reach, look, answer)]
        shape = max((part.shape for part in given), key=len)
        parts = [np.broadcast_to(part, shape).copy() if _spreads(part.shape, shape) else part for part in given]
        return cls(parts[0], parts[1], parts[2], unit, None if horizon is None else np.asarray(horizon))

    def __len__(self) -> int:
        return int(self.reach.shape[-1])

    @property
    def samples(self) -> int | None:
        """N where each sample costs its own; None where all cost the same."""
        return len(self.reach) if self.reach.ndim == 2 else None

    @property
    def full(self) -> float:
        """Cost of the network without exits: the whole trunk and its last head; the mean where samples differ."""
        return float((self.reach[..., -1] + self.look[..., -1] + self.answer[..., -1]).mean())

    def paid(self, looks: Sequence[bool] | None = None) -> Float[Array, "*N K"]:
        """C_k: what a sample that stops at exit k has paid, (K,) or (N, K). The exit stopped at is always looked at.

        Behind a sample's last exit stands what it has paid there.

        Args:
            looks: which exits are looked at on the way; all of them when not given.
        """
        seen = np.ones(len(self)) if looks is None else np.asarray(looks, dtype=np.float64)
        before = np.zeros_like(self.look)
        np.cumsum((self.look * seen)[..., :-1], axis=-1, out=before[..., 1:])
        return self.reach + before + self.look + self.answer

    def at(self, exits: Int[Array, " N"], looks: Sequence[bool] | None = None) -> Float[Array, " N"]:
        """What each sample has paid that stops at the exit given; looks as in `paid`."""
        paid = self.paid(looks)
        return paid[exits] if paid.ndim == 1 else paid[np.arange(len(exits)), exits]

    def mean(self) -> Costs:
        """The costs (K,) of a sample on average: `mean().paid(looks)` is the mean of `paid(looks)`, whatever the looks.

        Behind its last exit a sample costs what it has cost there.
        """
        if self.samples is None:
            return self
        reach, look, answer = (getattr(self, name).mean(axis=0) for name in _PARTS)
        return Costs(reach, look, answer, self.unit)

    def select(self, index: Int[Array, " n"] | Bool[Array, " N"]) -> Costs:
        """Those of the samples at the positions, or under the mask, given."""
        if self.samples is None:
            return self
        horizon = None if self.horizon is None else self.horizon[index]
        return replace(self, **{name: getattr(self, name)[index] for name in _PARTS}, horizon=horizon)

    def keep(self, exits: Sequence[int]) -> Costs:
        """The costs of some of the exits, with the trunk as it is and no look at the others.

        A sample that ends between two of them ends at the deeper one, at what it has paid where it ended.
        """
        kept = list(exits)
        horizon = None
        if self.horizon is not None:
            horizon = np.minimum(np.searchsorted(kept, self.horizon - 1) + 1, len(kept))
        return replace(self, **{name: getattr(self, name)[..., kept] for name in _PARTS}, horizon=horizon)

    def relative(self) -> Costs:
        """The same costs as multiples of the full network's, the unit in which a price is easiest to read."""
        full = self.full
        if full <= 0:
            raise InputError("the full network costs nothing; a share of it is undefined")
        unit = f"full passes of {full:.4g} {self.unit}"
        return replace(self, **{name: getattr(self, name) / full for name in _PARTS}, unit=unit)

    def alike(self, other: Costs) -> bool:
        """Whether prices mean the same at both: one unit, the same exits, and equal or of each sample in both."""
        if (self.unit, len(self)) != (other.unit, len(other)) or (self.samples is None) != (other.samples is None):
            return False
        equal = (np.array_equal(getattr(self, name), getattr(other, name)) for name in _PARTS)
        return self.samples is not None or all(equal)

    def until_end(self, values: Array) -> Array:
        """Values of each exit with those behind a sample's last exit replaced by the ones there; (K,), or (N, K, ...).

        Without a horizon they are returned as they are.
        """
        if self.horizon is None:
            return values
        index = np.minimum(
            np.arange(values.shape[0] if values.ndim == 1 else values.shape[1]), self.horizon[:, None] - 1
        )
        return values[index] if values.ndim == 1 else values[np.arange(len(values))[:, None], index]

    @staticmethod
    def concat(costs: Sequence[Costs]) -> Costs:
        """Of the samples of several, one after the other; of costs that are the same for all samples, those.

        Raises:
            InputError: they are in different units, of different exits, or some of them for all samples alike.
        """
        first = costs[0]
        if unlike := [each for each in costs if not first.alike(each)]:
            raise InputError(
                f"costs in {first.unit} at {len(first)} exits and in {unlike[0].unit} at {len(unlike[0])} do not go "
                "together: give all in one unit, of the same exits, and equal or (N, K) of each sample"
            )
        if first.samples is None:
            return first
        reach, look, answer = (np.concatenate([getattr(each, name) for each in costs]) for name in _PARTS)
        ends = [np.full(len(each.reach), len(first)) if each.horizon is None else each.horizon for each in costs]
        bounded = any(each.horizon is not None for each in costs)
        return Costs(reach, look, answer, first.unit, np.concatenate(ends) if bounded else None)


def _spreads(part: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether numbers of one shape count for the rows of another: one number, or one row."""
    return part in ((), shape[-1:])


def _checked(horizon: Any, shape: tuple[int, ...]) -> Int[Array, " N"]:
    ends = np.asarray(horizon)
    if ends.ndim != 1 or len(ends) == 0 or (len(shape) == 2 and len(ends) != shape[0]):
        raise InputError(f"horizon has shape {ends.shape} for costs {shape}: give (N,), how many exits each sample has")
    wrong = np.flatnonzero(~(np.isin(ends, np.arange(1, shape[-1] + 1))))
    if len(wrong):
        i = wrong[0]
        raise InputError(
            f"horizon of sample {i} is {ends[i]}: it is how many exits the sample has, a whole number from 1 to "
            f"{shape[-1]}; leave a sample out that has none"
        )
    return ends.astype(np.int64)


def _place(index: Array) -> str:
    return f"exit {index[-1]}" + (f" of sample {index[0]}" if len(index) == 2 else "")


def _check_numbers(name: str, value: Array) -> None:
    bad = np.argwhere(~np.isfinite(value) | (value < 0))
    if len(bad):
        found = value[tuple(bad[0])]
        raise InputError(f"{name} cost of {_place(bad[0])} is {found}; costs are finite and >= 0")


def _check_rising(reach: Array) -> None:
    falls = np.argwhere(np.diff(reach, axis=-1) < 0)
    if len(falls):
        here = tuple(falls[0])
        k, beyond = here[-1], (*here[:-1], here[-1] + 1)
        raise InputError(
            f"reach falls from {reach[here]:g} at {_place(falls[0])} to {reach[beyond]:g} at exit {k + 1}; "
            "it is cumulative: give the cost of the whole trunk up to each exit"
        )
