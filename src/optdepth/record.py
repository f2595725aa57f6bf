"""Recording: a network and data with targets give a Trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .errors import InputError
from .networks import StagedNetwork
from .networks.staged import Inputs, residual_size
from .observe import Answers
from .recall import Windows
from .tasks import TaskLoss, losses_of
from .trace import Costs, Trace


@torch.inference_mode()
def record(
    network: StagedNetwork,
    batches: Iterable[tuple[Inputs, Tensor]],
    costs: Costs,
    *,
    loss: TaskLoss | None = None,
    answers: Answers = "classes",
    recall: Windows = (),
    source: str = "",
    rows: Int[np.ndarray, " N"] | None = None,
) -> Trace:
    """What every sample meets at every exit: losses and observations, with all exits run.

    Args:
        batches: pairs of inputs, a tensor (n, ...) or a tuple or dict of such, and targets (n, ...), in the order
            wanted in the trace.
        costs: of the network's exits; `flops(network, example).relative()` makes prices easy to read.
        loss: (answer, target) -> (n,), any loss per sample. Without one, answers are logits (n, C), targets labels
            (n,), and the loss is 0-1.
        answers: "classes" where an answer is logits, (n, C) or (n, tokens, C); "numbers" for anything else. It decides
            what is observed of them: `observe.FEATURES_OF`.
        recall: which exits answer at each exit, as `best_recall` chooses it on the fit split; each its own if empty. It
            needs class logits, and no `loss`.
        source, rows: where the samples come from, so that a split used twice can be told; see `Trace`. Without them
            the content names itself.

    Raises:
        InputError: no samples, NaN or infinity in a batch or in the answers, a label out of range, a loss that is not
            one number a sample.
    """
    if loss is None and answers != "classes":
        raise InputError(f"answers={answers!r} have no loss of their own: give loss=, (answer, target) -> (n,)")
    if loss is not None and recall:
        raise InputError("recall pools class distributions, under the 0-1 loss: leave loss= or recall= out")
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    fingerprint = network.fingerprint()
    parts: list[Trace] = []
    seen = 0
    for inputs, targets in batches:
        check_finite(inputs, seen)
        numbers = np.arange(seen, seen + len(targets)) if rows is None else rows[seen : seen + len(targets)]
        found, residuals = _every_exit(network, tree_map(lambda tensor: tensor.to(device), inputs))
        where = {"source": source or "recorded", "rows": numbers, "network": fingerprint}
        if loss is None:
            parts.append(Trace.from_logits(found, targets, costs, residuals=residuals, recall=recall, **where))
        else:
            each = [losses_of(loss, found[:, k], targets).double() for k in range(found.shape[1])]
            losses = torch.stack(each, dim=1)
            parts.append(Trace.from_answers(found, losses, costs, kind=answers, residuals=residuals, **where))
        seen += len(targets)
    network.train(training)
    if not parts:
        raise InputError("no batches to record: the data are empty")
    trace = Trace.concat(parts)
    return trace if source else replace(trace, source="")


def check_finite(inputs: Inputs, first: int = 0) -> None:
    """Refuses a batch with NaN or infinity, naming the sample; `first` is the number of the batch's first one."""
    for tensor in [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs):
        # One cheap pass in the usual case; `torch.isfinite` is four more operations.
        if not tensor.is_floating_point() or math.isfinite(tensor.sum().item()):
            continue
        bad = torch.nonzero(~torch.isfinite(tensor.flatten(1)).all(dim=1))
        if len(bad):
            raise InputError(f"sample {first + int(bad[0])} of the batch holds NaN or infinity; clean or drop it")


def _every_exit(network: StagedNetwork, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Answers (n, K, ...) and relative residual sizes (n, K), on the CPU."""
    answers, residuals = [], []
    state = network.start(inputs)
    for k in range(len(network.exits)):
        before, state = state, network.advance(state, k)
        answers.append(network.answer(state, k).float().cpu())
        residuals.append(residual_size(before, state).cpu())
    return torch.stack(answers, dim=1), torch.stack(residuals, dim=1)
