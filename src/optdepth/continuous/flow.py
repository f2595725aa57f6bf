"""A neural ODE run by a solved rule: every sample until its own path meets the boundary, and not further.

The boundary is solved, not guessed. The flow is recorded on its grid of exits like any network with exits; backward
induction (`snell`) fits there what stopping costs against what going on does; `Boundary` is that rule at all times
between.

    network = neural_ode(16, classes=10, channels=1, seed=0)
    ... train, then
    trace = od.record(network, data.batches("fit"), costs)
    rule = od.snell(trace, price=0.05, features=("margin", "entropy"))
    stopped = FlowEngine(network, rule)(images)      # logits, and the time of each sample's stop
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..batch import hidden
from ..errors import InputError
from ..networks.modes import served
from ..networks.ode import flow_pieces
from ..networks.staged import StagedNetwork
from ..stopping.rule import Rule
from ..threads import ThreadChoice, about
from .boundary import Boundary
from .crossing import crossed


@dataclass(frozen=True, eq=False)
class Stopped:
    """What a flow answers.

    Attributes:
        logits: (n, C) of each sample's state at its own time.
        time: (n,) when its path met the boundary; the horizon where it did not.
        exit: (n,) the first exit not before that time, 0-based: where the rule on the grid of exits stops.
        evaluations: (n,) of the field, two of them to place the crossing.
    """

    logits: Float[Tensor, "n C"]
    time: Float[Tensor, " n"]
    exit: Int[Tensor, " n"]
    evaluations: Int[Tensor, " n"]

    def __str__(self) -> str:
        return (
            f"{len(self.time)} answers at times {float(self.time.min()):.3g} to {float(self.time.max()):.3g}, "
            f"{float(self.evaluations.double().mean()):.3g} evaluations of the field on average"
        )


class FlowEngine:
    """Runs a neural ODE by a rule: `engine(inputs) -> Stopped`.

    Samples that have met the boundary leave the batch; the field is evaluated on the others alone. The network is put
    into evaluation mode. Gradients flow to its parameters and to the inputs, through the answer and through the time;
    under `torch.no_grad()` nothing is kept for them.

    Args:
        network: from `neural_ode`, with all its exits.
        rule: solved on its trace, on features that change continuously along a path.

    Raises:
        InputError: another network, one that is no neural ODE, or a rule that is no boundary.

    Example:
        >>> from optdepth.networks import neural_ode
        >>> flow = neural_ode(4, classes=10, channels=1, width=4, seed=0).eval()
        >>> recorded = od.record(flow, data.batches("fit"), od.flops(flow, images).relative())
        >>> rule = od.snell(recorded, price=0.1, features=("margin",))
        >>> FlowEngine(flow, rule)(images).time.shape
        torch.Size([64])
    """

    def __init__(self, network: StagedNetwork, rule: Rule) -> None:
        self.network, device = served(network), next(network.parameters()).device
        pieces = flow_pieces(self.network)
        rule.check(network.fingerprint(), len(network.exits))
        self.pieces = pieces[: rule.last]  # up to the time at which all stop
        self.boundary = Boundary(rule.to(device))
        self._threads = ThreadChoice()

    def __call__(self, inputs: Tensor) -> Stopped:
        """Answers a batch; nothing of the answer depends on who else is in it.

        Args:
            inputs: (n, ...), n >= 1, finite, on the network's device.
        """
        if len(inputs) == 0:
            raise InputError("an empty batch has no answers")
        bad = torch.nonzero(~torch.isfinite(inputs.flatten(1)).all(dim=1))
        if len(bad):
            raise InputError(f"sample {int(bad[0])} of the batch holds NaN or infinity; clean or drop it")
        with self._threads.running(about(len(inputs)), inputs, self._stopped):
            return self._stopped(inputs)

    def _stopped(self, inputs: Tensor) -> Stopped:
        found = crossed(self.pieces, hidden(self.network.start(inputs)), self._score)
        exit = torch.clamp(found.interval + 1, max=len(self.pieces))
        return Stopped(self._answer(found.state), found.time, exit, found.evaluations)

    def _answer(self, state: Tensor) -> Tensor:
        return self.network.answer(state, len(self.pieces))

    def _score(self, k: Int[Tensor, " n"], share: Float[Tensor, " n"], state: Tensor) -> Float[Tensor, " n"]:
        return self.boundary(k, share, self._answer(state))
