"""Engine: one network, one rule; samples that stop leave the batch and only the others go on."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from ..batch import Inputs, State, check_answers, check_batch, check_finite, hidden, now, plain, select
from ..errors import InputError
from ..networks import StagedNetwork, served
from ..stopping.rule import Rule
from ..threads import ThreadChoice, about, chosen
from .compiled import CompiledLeg, compiled
from .legs import Leg, Remembered, legs_of
from .running_batch import RunningBatch
from .timings import Timings
from .unfit import explained


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine answers.

    Attributes:
        logits: (n, C) of the exit each sample stopped at.
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
    Python at each of those exits (on a GPU that is its one synchronisation a look, and the check of the inputs is one
    more a call); nothing is done sample by sample. It answers as the network does in evaluation mode, whatever mode
    that is put into before or afterwards; the network itself is left as it is, and any number of threads may call.

    On a CPU a batch runs on as many threads as pay for batches of about its size, or on the user's own number
    (`threads.py`). With `timings` that is known; else the first batch of a size is tried on several, which takes half a
    second or so: `warm` does that ahead.

    Args:
        network: with K exits.
        rule: solved for it; or several, solved at different prices, of which each call names one.
        timings: measured on this machine, see `Timings.measure`. Survivors are then gathered only where that saves more
            than it costs, without them at every exit where a sample stops; and a batch larger than is best on this
            machine is cut.
        sizes: batch sizes to run on, rising. Batches are filled up to the next of them, with samples already answered,
            so that code compiled or captured for a few shapes serves all batches; a larger one is cut. None: any size.
        compile: what runs from one exit looked at to the next goes through `torch.compile` as one graph, once for every
            one of `sizes`. Weights become constants of the code: make a new engine when they change.

    Raises:
        InputError: the rule was solved for another network, or sizes that do not rise from 1 on.

    Example:
        >>> answer = od.Engine(network, od.placed(fit, price=0.05))(images)
        >>> answer.logits.shape, answer.exit.shape, answer.cost.shape
        (torch.Size([64, 10]), torch.Size([64]), torch.Size([64]))
    """

    def __init__(
        self,
        network: StagedNetwork,
        rule: Rule | Sequence[Rule],
        *,
        timings: Timings | None = None,
        sizes: Sequence[int] | None = None,
        compile: bool = False,
    ) -> None:
        rules = list(rule) if isinstance(rule, Sequence) else [rule]
        if not rules:
            raise InputError("an engine needs a rule; got an empty list")
        fingerprint, self.last = network.fingerprint(), len(network.exits) - 1
        for each in rules:
            each.check(fingerprint, len(network.exits))
        if timings is not None:
            timings.check(fingerprint)
        if sizes is not None and (not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes))):
            raise InputError(f"sizes {list(sizes)} must rise from 1 on, such as 1, 8, 64")
        if compile and sizes is None:
            raise InputError("compile=True needs sizes=, the batch sizes to compile for, such as sizes=(1, 8, 64)")
        self.network, self.rule = served(network), rules[0]
        self.sizes = None if sizes is None else tuple(sizes)
        self.timings, self.compiled = timings, compile
        self._threads = ThreadChoice()
        plans = [Plan(self.network, each, None if not compile else len(sizes or ())) for each in rules]
        self._plans = {each.origin.price: plan for each, plan in zip(rules, plans, strict=True)}
        if len(self._plans) < len(rules):
            raise InputError(f"{len(rules)} rules at {len(self._plans)} prices: give one rule a price")

    @torch.inference_mode()
    def __call__(self, inputs: Inputs, *, price: float | None = None, deadline: float | None = None) -> Answer:
        """Answers a batch; the answers, exits and costs do not depend on who else is in it.

        Args:
            inputs: a tensor (n, ...), or a tuple or dict of such, n >= 1, finite, on the network's device.
            price: of the rule to use, where the engine has several; the first when not given.
            deadline: milliseconds from now. Samples that have not stopped when going on would pass it are answered by
                the exit they have reached alone: one stage may run beyond it without `timings`, none with them as they
                were measured. Exits then depend on the clock. The first exit is always reached. Compiled code can halt
                only where the rule looks. There is no time to try threads: it is one until another call has.

        Raises:
            InputError: no samples, NaN or infinity in them or in their answers, inputs that are no batch of tensors or
                that the network cannot run, a deadline that is NaN, or a price that no rule was solved at.
        """
        if deadline is not None and math.isnan(deadline):
            raise InputError("deadline is NaN; give milliseconds from now, or none")
        end = None if deadline is None else time.perf_counter() + deadline / 1e3
        inputs = plain(inputs)
        if check_batch(inputs) == 0:
            raise InputError("an empty batch has no answers")
        plan = self.plan(price)
        check_finite(inputs)
        with explained(self.network, self.network.full, inputs):
            answer = self._answer(inputs, plan, end)
        check_answers(answer.logits, inputs=inputs)
        return answer

    def _answer(self, inputs: Inputs, plan: Plan, end: float | None) -> Answer:
        """In as many pieces as is best."""
        samples = len(hidden(inputs))
        most = self._most(samples, plan, end)
        if samples <= most:
            return self._serve(inputs, plan, end)
        pieces = [tree_map(lambda tensor, i=i: tensor[i : i + most], inputs) for i in range(0, samples, most)]
        return _joined([self._serve(piece, plan, end) for piece in pieces])

    def warm(self, example: Inputs) -> None:
        """Tries threads, and runs every leg once, for each of the engine's sizes, which is what compiling them takes.

        Args:
            example: inputs like those to come; repeated to fill the sizes. Where their lengths differ and legs are
                compiled, call it with two: what is compiled for the second is for any.

        Raises:
            InputError: no batch of tensors, or one that the network cannot run.
        """
        example = plain(example)
        check_batch(example)
        rows = hidden(example)
        for size in self.sizes or (len(rows),):
            inputs = select(example, torch.arange(size, device=rows.device) % len(rows))
            failing = explained(self.network, self.network.full, inputs)
            with torch.inference_mode(), failing, self.threads(size, inputs, self.plan()):
                # Compiled code tells a caller's tensor from one made in here, as a batch filled up to a size is.
                for given in (inputs, tree_map(torch.clone, inputs)):
                    for plan in self._plans.values():
                        state: State = given
                        memory = Remembered.nothing()
                        for leg in plan.legs:
                            state, _, _, memory = leg(state, memory)

    def threads(self, rows: int, inputs: State, plan: Plan | None) -> AbstractContextManager[int]:
        """Runs a block on as many threads as pay for a batch of so many samples, and says on how many.

        Args:
            plan: to try threads with, where it is not known how many pay; None: not now.
        """
        if self.timings is not None:
            return chosen(self.timings.threads_at(rows))
        trial: Callable[[Any], object] | None = None
        if plan is not None:  # compiled legs would be compiled for each number of threads
            trial = self.network.full if self.compiled else lambda some: self._run(some, plan, None)
        return self._threads.running(about(rows), inputs, trial)

    def _serve(self, inputs: Inputs, plan: Plan, end: float | None) -> Answer:
        with self.threads(self.size(len(hidden(inputs))), inputs, plan if end is None else None):
            return self._run(inputs, plan, end)

    def _run(self, inputs: Inputs, plan: Plan, end: float | None) -> Answer:
        if len(hidden(inputs)) == 1 and (self.sizes is None or self.sizes[0] == 1):
            logits, exit = self._one(inputs, plan, end)
            return plan.alike(logits, exit)
        running = self._many(inputs, plan, end)
        assert running.answers is not None
        return plan.answered(running.answers, running.exit)

    def _one(self, inputs: Inputs, plan: Plan, end: float | None) -> tuple[Tensor, int]:
        """A single sample: nothing to gather, and what the rule decides on are plain numbers."""
        state: State = inputs
        memory = Remembered.nothing()
        for leg in plan.halting if end is not None else plan.legs:
            state, answer, _, memory = leg.one(state, memory)
            if answer is not None:
                return answer, leg.exit
            if end is not None and self._late(leg.exit, plan, state, end):
                return self.network.answer(state, leg.exit), leg.exit
        raise AssertionError("every sample stops at the last leg")

    def _many(self, inputs: Inputs, plan: Plan, end: float | None) -> RunningBatch:
        """A batch, compacted on its way."""
        samples, device = len(hidden(inputs)), hidden(inputs).device
        running = RunningBatch(samples, self.size(samples), self.last, device)
        if running.rows > samples:
            inputs = select(inputs, torch.arange(running.rows, device=device).clamp(max=samples - 1))
        state: State = inputs
        memory = Remembered.nothing()
        for leg in plan.halting if end is not None else plan.legs:
            state, answers, stops, memory = leg(state, memory)
            if answers is not None and stops is None:
                running.settle_rest(leg.exit, answers)
                return running
            if answers is not None and stops is not None:
                leaving = running.stopping(stops)
                if len(leaving):
                    running.settle(leg.exit, answers, stops, leaving)
                    if not running.left:
                        return running
                    room = self.size(running.left)
                    if room < running.rows and self._pays(leg.exit, plan, running.rows, room):
                        index = running.compact(room)
                        state = select(state, index)
                        if any(memory):
                            memory = select(memory, index)
            if end is not None and self._late(leg.exit, plan, state, end):
                running.settle_rest(leg.exit, self.network.answer(state, leg.exit))
                return running
        raise AssertionError("every sample stops at the last leg")

    @property
    def prices(self) -> tuple[float, ...]:
        """At which a call may ask for a rule."""
        return tuple(price for price in self._plans if price is not None)

    def plan(self, price: float | None = None) -> Plan:
        """What a call at this price goes by; the first rule's where none is named."""
        if price is None:
            return next(iter(self._plans.values()))
        if price not in self._plans:
            raise InputError(f"no rule at price {price:g}; the engine has {', '.join(map(str, self._plans))}")
        return self._plans[price]

    def size(self, rows: int) -> int:
        """The batch to run so many samples in."""
        return rows if self.sizes is None else self.sizes[bisect_left(self.sizes, rows)]

    def _most(self, samples: int, plan: Plan, end: float | None) -> int:
        """How many samples to run at a time. With a deadline all that fit, so that none waits for its first exit."""
        if self.sizes is not None:
            return self.sizes[-1]
        return samples if self.timings is None or end is not None else self.timings.piece(samples, plan.looks)

    def _pays(self, k: int, plan: Plan, rows: int, room: int) -> bool:
        return self.timings is None or self.timings.pays(k, plan.next_look[k], rows, room)

    def _late(self, k: int, plan: Plan, state: State, end: float) -> bool:
        """Whether what runs up to the next halt would end after the deadline, as far as that is known."""
        rows, ahead = hidden(state), range(k + 1, plan.next_halt[k] + 1)
        needed = 0.0 if self.timings is None else sum(self.timings.stage(j, len(rows)) for j in ahead)
        return now(rows.device) + needed / 1e3 >= end


class Plan:
    """A rule made ready: the legs between the exits it looks at, and what stopping costs.

    Args:
        sizes: how many batch sizes to compile the legs for; None: they are not compiled.
    """

    def __init__(self, network: StagedNetwork, rule: Rule, sizes: int | None) -> None:
        costs, device = rule.origin.costs, next(network.parameters()).device
        rule, self.looks, self.unit = rule.to(device), tuple(rule.looks), costs.unit
        legs = legs_of(network, rule)
        self.legs: Sequence[Leg | CompiledLeg] = legs if sizes is None else compiled(legs, sizes)
        self.halting = legs_of(network, rule, single=True) if sizes is None else self.legs
        self.paid = costs.paid(self.looks).tolist()
        self._table = torch.tensor(self.paid, dtype=torch.float64, device=device)
        last = len(costs) - 1
        self.next_look = [next((j for j in range(k + 1, last) if self.looks[j]), last) for k in range(last)]
        self.next_halt = list(range(1, last + 1)) if sizes is None else self.next_look

    def alike(self, logits: Tensor, exit: int) -> Answer:
        """Answers that all come from one exit."""
        exits = torch.full((len(logits),), exit, device=logits.device)
        paid = torch.full((len(logits),), self.paid[exit], dtype=torch.float64, device=logits.device)
        return Answer(logits, exits, paid, self.unit)

    def answered(self, logits: Tensor, exit: Tensor) -> Answer:
        """Answers from the exits given."""
        return Answer(logits, exit, self._table.index_select(0, exit), self.unit)


def _joined(answers: Sequence[Answer]) -> Answer:
    logits, exit, cost = (
        torch.cat([getattr(answer, name) for answer in answers]) for name in ("logits", "exit", "cost")
    )
    return Answer(logits, exit, cost, answers[0].unit)
