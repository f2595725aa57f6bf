"""What becomes graphs: a network in parts, each from one exit looked at to the next, on flat lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..batch import Inputs
from ..errors import InputError
from ..inference.legs import Leg, Remembered, legs_of
from ..networks import StagedNetwork
from ..stopping.rule import Rule


class Part(nn.Module):
    """A leg on flat lists of tensors.

    It takes the leaves of the inputs, or those that the part before it carries on: of the state, of what the observer
    remembers and of what later answers recall. It returns the leaves it carries on itself, what is answered here and
    who stops; the last part, where all stop, the answers alone.
    """

    def __init__(self, leg: Leg) -> None:
        super().__init__()
        self.leg, self.exit, self.last = leg, leg.exit, leg.last
        self.spec: TreeSpec | None = None  # of what the leaves on the way in are; `through` sets both
        self.after: TreeSpec | None = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        assert self.spec is not None
        given = tree_unflatten(list(leaves), self.spec)
        state, answers, stops, memory = self.leg(*((given, Remembered.nothing()) if self.leg.ks[0] == 0 else given))
        if stops is None:
            return (answers,)
        carried, self.after = tree_flatten((state, memory))
        if not all(isinstance(leaf, Tensor) for leaf in carried):
            raise InputError("a state to export must hold tensors alone; keep plain numbers in the modules")
        # Outputs need names of their own: what a stage hands on untouched, or what is handed on twice, is copied.
        taken = [*leaves, answers]
        for j, leaf in enumerate(carried):
            carried[j] = leaf.clone() if any(leaf is other for other in taken) else leaf
            taken.append(leaf)
        return (*carried, answers, stops)


def parts_of(network: StagedNetwork, rule: Rule) -> list[Part]:
    """One part for each exit that the rule looks at, up to the one where all stop."""
    return [Part(leg).eval() for leg in legs_of(network, rule)]


@dataclass(frozen=True)
class Passed:
    """What went into a part and came out of it."""

    given: tuple[Tensor, ...]
    carried: tuple[Tensor, ...]
    answers: Tensor


@torch.inference_mode()
def through(parts: Sequence[Part], inputs: Inputs) -> list[Passed]:
    """What each part meets when no sample stops."""
    passed: list[Passed] = []
    spec: TreeSpec | None
    leaves, spec = tree_flatten(inputs)
    for part in parts:
        part.spec = spec
        found = part(*leaves)
        carried, answers = ((), found[0]) if part.last else (found[:-2], found[-2])
        passed.append(Passed(tuple(leaves), carried, answers))
        leaves, spec = list(carried), part.after
    return passed
