"""Legs: a network cut where a rule looks. Engine, stream, compiled code and exported graphs run the same legs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..batch import Inputs, State
from ..errors import InputError
from ..features import Memory
from ..networks import StagedNetwork
from ..recall import Past, Recall
from ..stopping.rule import Rule
from .look import Look


class Remembered(NamedTuple):
    """What is handed on from exit to exit besides the state; of the samples that go on, rows are taken as of a state.

    Attributes:
        seen: what the observer wants back.
        past: what later answers recall.
    """

    seen: Memory
    past: Past

    @classmethod
    def nothing(cls) -> Remembered:
        """Ahead of the first exit."""
        return cls({}, {})


class Outcome(NamedTuple):
    """What comes out of a leg.

    Attributes:
        state: behind its last stage.
        answers: at its exit; None where nobody stops.
        stops: who stops there; None where none or all do, as `answers` tells.
        memory: to hand to the next leg.
    """

    state: State
    answers: Float[Tensor, "n ..."] | None
    stops: Bool[Tensor, " n"] | None
    memory: Remembered


class Leg(nn.Module):
    """The stages up to an exit, and there the head, the look and the recall.

    Args:
        ks: numbers of the stages; the exit is the last of them.
    """

    def __init__(self, network: StagedNetwork, look: Look, recall: Recall, ks: Sequence[int]) -> None:
        super().__init__()
        self.network, self.look, self.recall, self.ks = network, look, recall, tuple(ks)
        self.exit, rule = self.ks[-1], look.rule
        self.looks, self.last = rule.looks[self.exit], self.exit == rule.last
        self.answering = self.last or rule.decides[self.exit]  # elsewhere an answer may lack what it would recall
        # Tuples: to fetch a module from a ModuleList takes longer than all else that happens between two stages.
        self._stages, self._heads = tuple(network.stages[k] for k in ks), (network.heads[self.exit],)

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

    def forward(self, given: State, memory: Remembered) -> Outcome:
        """The whole leg, for a batch."""
        before, state = self.advance(given)
        if not (self.looks or self.last):
            return Outcome(state, None, None, memory)
        logits = self.head(state)
        answers = self.recall.answer(self.exit, logits, memory.past) if self.answering else logits
        if self.last:
            return Outcome(state, answers, None, memory)
        stops, seen = self.look.batch(self.exit, logits, before, state, memory.seen)
        return Outcome(state, answers, stops, Remembered(seen, self.recall.remember(self.exit, logits, memory.past)))

    def one(self, given: State, memory: Remembered) -> Outcome:
        """The leg for a single sample, decided on in Python numbers: it has an answer where it stops."""
        before, state = self.advance(given)
        if not (self.looks or self.last):
            return Outcome(state, None, None, memory)
        logits = self.head(state)
        if self.last:
            return Outcome(state, self.recall.answer(self.exit, logits, memory.past), None, memory)
        stops, seen = self.look.one(self.exit, logits, before, state, memory.seen)
        if stops:
            return Outcome(state, self.recall.answer(self.exit, logits, memory.past), None, memory)
        return Outcome(state, None, None, Remembered(seen, self.recall.remember(self.exit, logits, memory.past)))


def legs_of(network: StagedNetwork, rule: Rule, *, single: bool = False) -> list[Leg]:
    """The legs of a rule, up to the exit where all stop.

    Args:
        single: one stage a leg, for who must come to a halt after every stage; else one leg for each exit looked at.

    Raises:
        InputError: the rule answers by recall of an exit that it does not look at.
    """
    last = rule.last
    answering = [k == last or (k < last and decides) for k, decides in enumerate(rule.decides)]
    look, recall = Look(rule), Recall(rule.origin.recall, answering)
    for k in (k for k, answers in enumerate(answering) if answers):
        if unseen := [j for j in recall.exits(k) if j < k and not rule.looks[j]]:
            raise InputError(
                f"the rule answers at exit {k} by recall of exit {unseen[0]}, which it does not look at: solve it on a "
                "trace without recall"
            )
    ends = [k for k in range(last + 1) if single or rule.looks[k] or k == last]
    starts = [0, *(k + 1 for k in ends[:-1])]
    return [Leg(network, look, recall, range(a, b + 1)).eval() for a, b in zip(starts, ends, strict=True)]
