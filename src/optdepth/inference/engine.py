"""Engine: one network, one rule; samples that stop leave the batch and only the others go on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.staged import Inputs, State, hidden, residual_size, select
from ..observe import Memory, Observer
from ..recall import Recall
from ..record import check_finite
from ..stopping.rule import Rule


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine answers.

    Attributes:
        logits: (n, C) of the exit each sample stopped at; its answer (n, ...) where the task is not classification.
        exit: (n,) that exit, 0-based.
        cost: (n,) what the sample paid, in `unit`.
    """

    logits: Float[Tensor, "n ..."]
    exit: Int[Tensor, " n"]
    cost: Float[Tensor, " n"]
    unit: str

    def __str__(self) -> str:
        return (
            f"{len(self.exit)} answers after exits {int(self.exit.min())} to {int(self.exit.max())}, "
            f"mean cost {float(self.cost.mean()):.4g} {self.unit}"
        )


class Engine:
    """Runs a network by a rule: `engine(inputs) -> Answer`.

    At every exit the rule looks at, the samples that stop are answered and the survivors are gathered, so that
    the layers behind run on survivors alone, and on none when all have stopped. One number, how many stop, goes to
    Python at each of those exits; nothing is done sample by sample. The network is put into evaluation mode.

    Raises:
        InputError: the rule was solved for another network.
    """

    def __init__(self, network: StagedNetwork, rule: Rule) -> None:
        rule.check(network.fingerprint(), len(network.exits))
        device = next(network.parameters()).device
        self.network = network.eval()
        self.rule = rule.to(device)
        self._observer = Observer(rule.features) if rule.features else None
        self._recall = Recall(rule.origin.recall, len(network.exits))
        self._paid = torch.as_tensor(rule.origin.costs.paid(rule.looks), device=device)

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> Answer:
        """Answers a batch; the answers, exits and costs do not depend on who else is in it.

        Args:
            inputs: a tensor (n, ...), or a tuple or dict of such, n >= 1, finite, on the network's device.
        """
        samples = len(hidden(inputs))
        if samples == 0:
            raise InputError("an empty batch has no answers")
        check_finite(inputs)
        network, last = self.network, len(self.network.exits) - 1
        exit = torch.full((samples,), last, device=self._paid.device)
        place: Tensor | None = None  # of the survivors in the batch; None while all survive
        answers: Tensor | None = None
        memory: Memory = {}
        past: Memory = {}
        state = network.start(inputs)
        for k, looks in enumerate(self.rule.looks[:-1]):
            before, state = state, network.advance(state, k)
            if not looks:
                continue
            logits = network.answer(state, k)
            stops, memory = self._decide(k, before, state, logits, memory)
            leaving = torch.nonzero(stops).squeeze(1)
            if len(leaving) == 0:
                past = self._recall.remember(k, logits, past)
                continue
            if answers is None:
                if len(leaving) == samples:
                    return self._answered(self._recall.answer(k, logits, past), exit.fill_(k))
                answers = logits.new_empty(samples, *logits.shape[1:])
            left = leaving if place is None else place[leaving]
            answers[left], exit[left] = self._recall.answer(k, logits[leaving], select(past, leaving)), k
            if len(leaving) == len(stops):
                return self._answered(answers, exit)
            staying = torch.nonzero(~stops).squeeze(1)
            place = staying if place is None else place[staying]
            past = self._recall.remember(k, logits, past)
            state, memory, past = select((state, memory, past), staying)
        logits = self._recall.answer(last, network.answer(network.advance(state, last), last), past)
        if answers is None or place is None:
            return self._answered(logits, exit)
        answers[place] = logits
        return self._answered(answers, exit)

    def _decide(self, k: int, before: State, state: State, logits: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Which samples stop at exit k, and the observer's memory after it."""
        if self._observer is None:
            return self.rule.stop(k, logits.new_empty(len(logits), 0)), memory
        residual = residual_size(before, state) if self._observer.needs_residual else None
        observation, memory = self._observer(logits, memory, residual)
        return self.rule.stop(k, observation), memory

    def _answered(self, logits: Tensor, exit: Tensor) -> Answer:
        return Answer(logits, exit, self._paid[exit], self.rule.origin.costs.unit)
