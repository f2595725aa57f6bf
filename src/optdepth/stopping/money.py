"""A rule that knows a reward when it sees one: where stopping earns nothing and going on is free, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from .rule import Origin, Rule

_POSITIVE = torch.finfo(torch.float32).tiny


class InTheMoney(Rule):
    """Stops where the rule inside does, unless the reward is 0 and the exits behind cost nothing more.

    No reward is negative, so going on cannot earn less there; nothing needs to be fitted to know it. Longstaff and
    Schwartz (2001) regress on paths in the money alone for the same reason.

    Args:
        inside: a rule for the same exits, whether it reads the reward or not.
        reward: the feature that is the reward, up to a positive factor.
        free: (K - 1,) at which exits going on costs nothing, however far.
    """

    def __init__(self, origin: Origin, inside: Rule, reward: str, free: Sequence[bool]) -> None:
        read = inside.features
        super().__init__(origin, read if reward in read else (*read, reward))
        if len(free) != len(origin.costs) - 1:
            raise InputError(f"{len(free)} marks of free exits for {len(origin.costs)} exits; one each but the last")
        if not all(mark is True or mark is False for mark in free):
            raise InputError(f"free is {list(free)}; give True or False for each exit but the last")
        self.inside, self.reward, self.free = inside, reward, tuple(free)
        self._reward, self._read = self.features.index(reward), len(read)

    def stop(self, k: int, observation: Float[Tensor, "n F"]) -> Bool[Tensor, " n"]:
        stops = self.inside.stop(k, observation[:, : self._read])
        return stops & (observation[:, self._reward] > 0) if self.free[k] else stops

    def decide(self, k: int, observation: Sequence[float]) -> bool:
        if self.free[k] and observation[self._reward] <= 0:
            return False
        return self.inside.decide(k, observation[: self._read])

    def score(self, k: int, observation: Float[Tensor, "n F"]) -> Float[Tensor, " n"]:
        """That of the rule inside, raised above 0 where the reward is 0; so it jumps where that rule would stop."""
        score = self.inside.score(k, observation[:, : self._read])
        barred = (observation[:, self._reward] <= 0) & self.free[k]
        return torch.where(barred, score.clamp(min=_POSITIVE), score)

    def arguments(self) -> dict[str, Any]:
        """Of the rule inside, with its kind, the reward and the free exits."""
        own = {"inside": type(self.inside).__name__, "reward": self.reward, "free": list(self.free)}
        return {**own, **self.inside.arguments()}

    @classmethod
    def restore(cls, origin: Origin, arguments: dict[str, Any]) -> Self:
        rest = {name: value for name, value in arguments.items() if name not in ("inside", "reward", "free")}
        inside = Rule.kinds[arguments["inside"]].restore(origin, rest)
        return cls(origin, inside, arguments["reward"], arguments["free"])
