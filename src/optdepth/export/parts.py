"""What becomes graphs: a network in parts, each from one exit looked at to the next, on flat lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import InputError
from ..inference.look import Look
from ..networks import StagedNetwork
from ..networks.staged import Inputs
from ..recall import Recall
from ..stopping.rule import FixedDepth, Rule


class Part(nn.Module):
    """The stages up to the next exit looked at, its head and the rule there.

    It takes the leaves of the inputs, or those that the part before it carries on: of the state, of what the observer
    remembers and of what later answers recall. It returns the leaves it carries on itself, what is answered here and
    who stops; the last part, where all stop, the answers alone.

    Args:
        ks: numbers of the stages; the exit is the last of them.
        last: whether all stop there.
    """

    def __init__(self, network: StagedNetwork, look: Look, recall: Recall, ks: Sequence[int], last: bool) -> None:
        super().__init__()
        self.network, self.look, self.recall, self.ks, self.last = network, look, recall, tuple(ks), last
        self.rule = look.rule  # an attribute of its own, so that its buffers are this module's
        self.exit = self.ks[-1]
        # A fixed depth looks earlier only to recall later: nobody stops, and an answer may lack what it would recall.
        self.stopping = last or not isinstance(look.rule, FixedDepth)
        self.spec: TreeSpec | None = None  # of what the leaves on the way in are; `through` sets both
        self.after: TreeSpec | None = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        assert self.spec is not None
        given = tree_unflatten(list(leaves), self.spec)
        state, seen, past = (self.network.start(given), {}, {}) if self.ks[0] == 0 else given
        before = state
        for k in self.ks:
            before, state = state, self.network.advance(state, k)
        logits = self.network.answer(state, self.exit)
        answers = self.recall.answer(self.exit, logits, past) if self.stopping else logits
        if self.last:
            return (answers,)
        stops, seen = self.look.batch(self.exit, logits, before, state, seen)
        past = self.recall.remember(self.exit, logits, past)
        carried, self.after = tree_flatten((state, seen, past))
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
    last = rule.exit if isinstance(rule, FixedDepth) else len(network.exits) - 1
    ends = [*(k for k in range(last) if rule.looks[k]), last]
    starts = [0, *(k + 1 for k in ends[:-1])]
    look, recall = Look(rule), Recall(rule.origin.recall, len(network.exits))
    return [Part(network, look, recall, range(a, b + 1), b == last).eval() for a, b in zip(starts, ends, strict=True)]


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
