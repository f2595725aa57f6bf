"""What becomes graphs: a network in parts, each from one exit looked at to the next, on flat lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..batch import Inputs
from ..errors import InputError
from ..inference.legs import Leg, Remembered, legs_of
from ..networks import StagedNetwork, served
from ..stopping.rule import Rule


class Part(nn.Module):
    """A leg on flat lists of tensors.

    It takes the leaves of the inputs, or those that the part before it carries on: of the state, of what the observer
    remembers and of what later answers recall. It returns the leaves it carries on itself, what is answered here and
    who stops; the last part, where all stop, the answers alone.

    Args:
        spec: of what the leaves on the way in are.
    """

    def __init__(self, leg: Leg, spec: TreeSpec) -> None:
        super().__init__()
        self.leg, self.exit, self.last = leg, leg.exit, leg.last
        self.spec = spec

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        carried, answers, stops, _ = self.run(leaves)
        return (answers,) if stops is None else (*carried, answers, stops)

    def run(self, leaves: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor | None, TreeSpec]:
        """The leaves carried on, the answers, who stops (None where all do), and what the leaves carried on are."""
        given = tree_unflatten(list(leaves), self.spec)
        state, answers, stops, memory = self.leg(*((given, Remembered.nothing()) if self.leg.ks[0] == 0 else given))
        if stops is None:
            return [], answers, None, tree_flatten(())[1]
        carried, spec = tree_flatten((state, memory))
        if not all(isinstance(leaf, Tensor) for leaf in carried):
            raise InputError("a state to export must hold tensors alone; keep plain numbers in the modules")
        # Outputs need names of their own: what a stage hands on untouched, or what is handed on twice, is copied.
        taken = [*leaves, answers]
        for j, leaf in enumerate(carried):
            carried[j] = leaf.clone() if any(leaf is other for other in taken) else leaf
            taken.append(leaf)
        return carried, answers, stops, spec


@torch.inference_mode()
def parts_of(network: StagedNetwork, rule: Rule, inputs: Inputs) -> list[Part]:
    """One part for each exit that the rule looks at, up to the one where all stop.

    Args:
        inputs: an example, for the form of what the parts hand on.
    """
    parts: list[Part] = []
    leaves, spec = tree_flatten(inputs)
    for leg in legs_of(served(network), rule):
        parts.append(Part(leg, spec).eval())
        leaves, _, _, spec = parts[-1].run(leaves)
    return parts


@dataclass(frozen=True)
class Passed:
    """What went into a part and came out of it; `stops` is None where all do."""

    given: tuple[Tensor, ...]
    carried: tuple[Tensor, ...]
    answers: Tensor
    stops: Bool[Tensor, " n"] | None


@torch.inference_mode()
def through(parts: Sequence[Part], inputs: Inputs) -> list[Passed]:
    """What each part meets when no sample stops."""
    passed: list[Passed] = []
    leaves = tree_flatten(inputs)[0]
    for part in parts:
        carried, answers, stops, _ = part.run(leaves)
        passed.append(Passed(tuple(leaves), tuple(carried), answers, stops))
        leaves = carried
    return passed
