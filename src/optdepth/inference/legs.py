"""Legs: a network cut where a rule looks. Engine, stream, compiled code and exported graphs run the same legs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..batch import Inputs, State
from ..networks import StagedNetwork
from ..observe import Memory
from ..recall import Recall
from ..stopping.rule import FixedDepth, Rule
from .look import Look

Outcome = tuple[State, Float[Tensor, "n ..."] | None, Bool[Tensor, " n"] | None, Memory, Memory]
"""What comes out of a leg: the state; the answers at its exit, None where it does not look; who stops there, None where
none or all do; what the observer and what later answers remember."""


class Leg(nn.Module):
    """The stages up to an exit, and there the head, the look and the recall.

    Args:
        ks: numbers of the stages; the exit is the last of them.
        looks: whether the rule looks at the exit.
        last: whether all stop there.
    """

    def __init__(
        self, network: StagedNetwork, look: Look, recall: Recall, ks: Sequence[int], *, looks: bool, last: bool
    ) -> None:
        super().__init__()
        self.network, self.look, self.recall, self.ks = network, look, recall, tuple(ks)
        self.exit, self.looks, self.last = self.ks[-1], looks, last
        # Tuples: to fetch a module from a ModuleList takes longer than all else that happens between two stages.
        self._stages, self._heads = tuple(network.stages[k] for k in ks), (network.heads[self.exit],)
        self.rule = look.rule  # an attribute of its own, so that its buffers are this module's
        # A fixed depth looks earlier only to recall later: nobody stops, and an answer may lack what it would recall.
        self.stopping = last or (looks and not isinstance(look.rule, FixedDepth))

    def advance(self, given: State) -> tuple[State, State]:
        """The states before and after the last of the stages, from the inputs or the state that the leg starts at."""
        state = self.network.start(cast(Inputs, given)) if self.ks[0] == 0 else given
        before = state
        for stage in self._stages:
            before, state = state, stage(state)
        return before, state

    def head(self, state: State) -> Float[Tensor, "n ..."]:
        """The exit's logits."""
        logits: Tensor = self._heads[0](state)
        return logits

    def forward(self, given: State, seen: Memory, past: Memory) -> Outcome:
        """The whole leg, for a batch."""
        before, state = self.advance(given)
        if not (self.looks or self.last):
            return state, None, None, seen, past
        logits = self.head(state)
        answers = self.recall.answer(self.exit, logits, past) if self.stopping else logits
        if self.last:
            return state, answers, None, seen, past
        stops, seen = self.look.batch(self.exit, logits, before, state, seen)
        return state, answers, stops, seen, self.recall.remember(self.exit, logits, past)

    def one(self, given: State, seen: Memory, past: Memory) -> tuple[State, Tensor | None, Memory, Memory]:
        """The leg for a single sample, decided on in Python numbers: the state, the answer where the sample stops, and
        what is remembered.
        """
        before, state = self.advance(given)
        if not (self.looks or self.last):
            return state, None, seen, past
        logits = self.head(state)
        if self.last:
            return state, self.recall.answer(self.exit, logits, past), seen, past
        stops, seen = self.look.one(self.exit, logits, before, state, seen)
        if stops:
            return state, self.recall.answer(self.exit, logits, past), seen, past
        return state, None, seen, self.recall.remember(self.exit, logits, past)


def legs_of(network: StagedNetwork, rule: Rule, *, single: bool = False) -> list[Leg]:
    """The legs of a rule, up to the exit where all stop.

    Args:
        single: one stage a leg, for who must come to a halt after every stage; else one leg for each exit looked at.
    """
    last = rule.exit if isinstance(rule, FixedDepth) else len(network.exits) - 1
    ends = [k for k in range(last + 1) if single or rule.looks[k] or k == last]
    starts = [0, *(k + 1 for k in ends[:-1])]
    look, recall = Look(rule), Recall(rule.origin.recall, len(network.exits))
    return [
        Leg(network, look, recall, range(a, b + 1), looks=rule.looks[b], last=b == last).eval()
        for a, b in zip(starts, ends, strict=True)
    ]
