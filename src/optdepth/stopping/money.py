"""A rule that knows a reward when it sees one: where stopping earns nothing and going on is free, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from .rule import Origin, Rule


class InTheMoney(Rule):
    """Stops where the rule inside does, unless the reward is 0 and the exits behind cost nothing more.

    No reward is negative, so going on cannot earn less there; nothing needs to be fitted to know it. Longstaff and
    Schwartz (2001) look at paths in the money alone for the same reason.

    Args:
        inner: reads the reward, among others or not.
        reward: the feature that is the reward, up to a positive factor.
        free: (K - 1,) at which exits going on costs nothing, however far.
    """

    def __init__(self, origin: Origin, inner: Rule, reward: str, free: Sequence[bool]) -> None:
        inside = inner.features
        super().__init__(origin, inside if reward in inside else (*inside, reward))
        if len(free) != len(origin.costs) - 1:
            raise InputError(f"{len(free)} marks of free exits for {len(origin.costs)} exits; one each but the last")
        self.inner, self.reward, self.free = inner, reward, tuple(bool(f) for f in free)
        self._seen, self._read = self.features.index(reward), len(inside)

    @property
    def looks(self) -> tuple[bool, ...]:
        return self.inner.looks

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        stops = self.inner.stop(k, observation[:, : self._read])
        return stops & (observation[:, self._seen] > 0) if self.free[k] else stops

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        if self.free[k] and observation[self._seen] <= 0:
            return False
        return self.inner.decide(k, observation[: self._read])

    def arguments(self) -> dict[str, Any]:
        """Of the rule inside, with its kind, the reward and the free exits."""
        return {
            "inside": type(self.inner).__name__,
            "reward": self.reward,
            "free": list(self.free),
            **self.inner.arguments(),
        }

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        own = ("inside", "reward", "free")
        rest = {name: value for name, value in arguments.items() if name not in own}
        inner = Rule.kinds[arguments["inside"]].restore(origin, rest)
        return cls(origin, inner, arguments["reward"], arguments["free"])
