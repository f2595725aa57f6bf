"""Recording: a network and data with targets give a Trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map

from .batch import Inputs, check_finite, hidden, identities, plain, token_identities
from .errors import InputError
from .exit_costs import Costs
from .features import Answers, Memory, Observer, features_of
from .networks import StagedNetwork, served
from .recall import Windows
from .splits import Batches
from .tasks import PADDING, TaskLoss, losses_of
from .threads import ThreadChoice
from .trace import Trace

_LONGEST = 1 << 24
"""More tokens than a sequence has: where each is a sample, its number is its sequence's times this, plus its place."""


@torch.inference_mode()
def record(
    network: StagedNetwork,
    batches: Iterable[tuple[Inputs, Tensor]],
    costs: Costs,
    *,
    loss: TaskLoss | None = None,
    answers: Answers = "classes",
    each: Literal["sample", "token"] = "sample",
    recall: Windows = (),
    source: str = "",
    rows: Int[np.ndarray, " N"] | None = None,
) -> Trace:
    """What every sample meets at every exit: losses and observations, with all exits run.

    The network runs on as many threads as pay for the first batch, or on the user's own number (`threads.py`).

    Args:
        batches: pairs of inputs, a tensor (n, ...) or a tuple or dict of such, and targets (n, ...), in the order
            wanted in the trace.
        costs: of the network's exits; `flops(network, example).relative()` makes prices easy to read. (N, K) where
            samples differ, in the order of the batches.
        loss: (answer, target) -> (n,), any loss per sample. Without one, answers are logits (n, C), targets labels
            (n,), and the loss is 0-1.
        answers: "classes" where an answer is logits, (n, C) or (n, tokens, C); "numbers" for anything else. It decides
            what is observed of them: every feature of that kind, see `optdepth.features`.
        each: what stops by itself. "token", for answers (n, t, ...) and targets (n, t): every token whose target is not
            -100 is a sample of the trace, sequence after sequence, and its loss and observations are its own.
        recall: which exits answer at each exit, as `best_recall` chooses it on the fit split; each its own if empty. It
            needs class logits, and no `loss`.
        source, rows: the data set that the samples come from, and their numbers in it, in the order of the batches.
            Batches of a split know both. Without them samples are known by their content alone, as they are to every
            other trace: the identity of a sample is that of the inputs that the network takes, `batch.identities`, and
            of a token that of its sequence and its place.

    Raises:
        InputError: no samples, NaN or infinity in a batch or in the answers, a label out of range, a loss that is not
            one number a sample.

    Example:
        >>> trace = od.record(network, data.batches("fit"), od.flops(network, images).relative())
        >>> trace.losses.shape
        (359, 3)
    """
    if loss is None and answers != "classes":
        raise InputError(f"answers={answers!r} have no loss of their own: give loss=, (answer, target) -> (n,)")
    if loss is not None and recall:
        raise InputError("recall pools class distributions, under the 0-1 loss: leave loss= or recall= out")
    if isinstance(batches, Batches) and not source and rows is None:
        source, rows = batches.source, batches.rows
    network = served(network)
    device = next(network.parameters()).device
    fingerprint = network.fingerprint()
    threads = ThreadChoice()
    parts: list[Trace] = []
    seen = met = 0
    for given, targets in batches:
        inputs = plain(given)
        check_finite(inputs, seen)
        end, inputs = seen + len(targets), tree_map(lambda tensor: tensor.to(device), inputs)
        numbers = np.arange(seen, end) if rows is None else rows[seen:end]
        with threads.running("recording", inputs, lambda some: _every_exit(network, some, each)):
            found, states = _every_exit(network, inputs, each)
        if each == "token":
            found, states, targets, numbers, known = _tokens(inputs, found, states, targets, numbers)
        else:
            known = identities(inputs)
        own, met = _own(costs, met, len(targets)), met + len(targets)
        of_state = dict(zip(features_of("state"), states.unbind(-1), strict=True))
        where = {"source": source or "recorded", "rows": numbers, "identity": known, "network": fingerprint}
        if loss is None:
            parts.append(Trace.from_logits(found, targets, own, of_state=of_state, recall=recall, **where))
        else:
            losses = torch.stack([losses_of(loss, answer, targets).double() for answer in found.unbind(1)], dim=1)
            parts.append(Trace.from_answers(found, losses, own, kind=answers, of_state=of_state, **where))
        seen = end
    if not parts:
        raise InputError("no batches to record: the data are empty")
    if costs.samples not in (None, met):
        raise InputError(f"costs of {costs.samples} samples for {met} recorded: give each its own, or (K,) for all")
    trace = Trace.concat(parts)
    return trace if source else replace(trace, source="")


def _own(costs: Costs, start: int, count: int) -> Costs:
    """Of the samples from one on."""
    if costs.samples is not None and costs.samples < start + count:
        raise InputError(
            f"costs of {costs.samples} samples for more in the batches: give each its own, or (K,) for all"
        )
    return costs.select(np.arange(start, start + count))


def _every_exit(network: StagedNetwork, inputs: Inputs, each: str) -> tuple[Tensor, Tensor]:
    """Answers (n, K, ...) and the features of the state, (n, K, F) or of every token (n, K, t, F), on the CPU."""
    answers, states = [], []
    observer = Observer(features_of("state"))
    memory: Memory = {}
    state = network.start(inputs)
    for k in range(len(network.exits)):
        before, state = state, network.advance(state, k)
        answer = network.answer(state, k)
        answers.append(answer.float().cpu())
        if each == "token":
            tokens = hidden(state).shape[:2]
            seen, memory = observer(answer, memory, *(hidden(one).flatten(0, 1) for one in (before, state)))
            seen = seen.unflatten(0, tokens)
        else:
            seen, memory = observer(answer, memory, before, state)
        states.append(seen.cpu())
    return torch.stack(answers, dim=1), torch.stack(states, dim=1)


def _tokens(
    inputs: Inputs, answers: Tensor, states: Tensor, targets: Tensor, rows: Int[np.ndarray, " n"]
) -> tuple[Tensor, Tensor, Tensor, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Every token that counts as a sample: answers (m, K, ...), features of the state (m, K, F), targets, row numbers
    that tell tokens of one sequence apart, and identities.
    """
    if targets.shape != (len(answers), *answers.shape[2:3]):
        raise InputError(
            f"each='token' needs answers (n, t, ...) and targets (n, t); answers are "
            f"{(len(answers), *answers.shape[2:])}, targets {tuple(targets.shape)}"
        )
    counts = targets != PADDING
    numbers = torch.as_tensor(rows)[:, None] * _LONGEST + torch.arange(targets.shape[1])
    found = (tensor.transpose(1, 2)[counts] for tensor in (answers, states))
    known = token_identities(inputs, counts)
    return *found, targets[counts], numbers[counts].numpy(), known  # type: ignore[return-value]
