"""Recording: a network and labelled data give a Trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .errors import InputError
from .networks import StagedNetwork
from .networks.staged import residual_size
from .trace import Costs, Trace


@torch.inference_mode()
def record(
    network: StagedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    costs: Costs,
    *,
    source: str = "",
    rows: Int[np.ndarray, " N"] | None = None,
) -> Trace:
    """What every sample meets at every exit: 0-1 losses and observations, with all exits run.

    Args:
        batches: pairs of inputs (n, ...) and labels (n,), in the order wanted in the trace.
        costs: of the network's exits; `flops(network, example).relative()` makes prices easy to read.
        source, rows: where the samples come from, so that a split used twice can be told; see `Trace`. Without them
            the content names itself.

    Raises:
        InputError: no samples, NaN or infinity in a batch or in the logits, a label out of range.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    fingerprint = network.fingerprint()
    parts: list[Trace] = []
    seen = 0
    for inputs, labels in batches:
        check_finite(inputs, seen)
        numbers = np.arange(seen, seen + len(inputs)) if rows is None else rows[seen : seen + len(inputs)]
        logits, residuals = _every_exit(network, inputs.to(device))
        where = {"source": source or "recorded", "rows": numbers, "network": fingerprint}
        parts.append(Trace.from_logits(logits, labels, costs, residuals=residuals, **where))
        seen += len(inputs)
    network.train(training)
    if not parts:
        raise InputError("no batches to record: the data are empty")
    trace = Trace.concat(parts)
    return trace if source else replace(trace, source="")


def check_finite(inputs: Tensor, first: int = 0) -> None:
    """Refuses a batch with NaN or infinity, naming the sample; `first` is the number of the batch's first one."""
    if torch.isfinite(inputs.sum()):  # one cheap pass in the usual case
        return
    bad = torch.nonzero(~torch.isfinite(inputs.flatten(1)).all(dim=1))
    if len(bad):
        raise InputError(f"sample {first + int(bad[0])} of the batch holds NaN or infinity; clean or drop it")


def _every_exit(network: StagedNetwork, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, K, C) and relative residual sizes (n, K), on the CPU."""
    logits, residuals = [], []
    state = network.start(inputs)
    for k in range(len(network.exits)):
        before, state = state, network.advance(state, k)
        logits.append(network.answer(state, k).float().cpu())
        residuals.append(residual_size(before, state).cpu())
    return torch.stack(logits, dim=1), torch.stack(residuals, dim=1)
