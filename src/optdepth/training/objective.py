"""One batch through a staged network: the loss to minimise, and each exit's share of the trunk's gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..batch import Inputs, State, hidden
from ..errors import InputError
from ..exit_costs import Costs
from ..features import Observer, residual_size
from ..networks.staged import StagedNetwork
from ..stopping.snell import snell
from ..tasks import TaskLoss, cross_entropy, losses_of
from ..trace import Trace
from .depth_loss import DepthLoss, Seen


class Objective(nn.Module):
    """inputs, targets -> the loss of `depth_loss.py`. One module, so that data parallelism sees one forward.

    Args:
        network: trained in place.
        loss: what the trunk is asked.
        costs: (K,) cumulative cost of each exit in any unit; scaled to C_K = 1.
        frozen: the trunk and the last head are left as they are; only the other heads learn.
        task: (answer, target) -> (n,), the loss per sample, where it is not cross-entropy. A part that needs a halting
            head needs class logits too, for those are what it sees.

    Raises:
        InputError: costs that are not K, positive, and in order; nothing to train; distillation, or a rule to solve, in
            another task than classification.
    """

    costs: Tensor

    def __init__(
        self,
        network: StagedNetwork,
        loss: DepthLoss,
        costs: Sequence[float],
        *,
        frozen: bool = False,
        task: TaskLoss = cross_entropy,
    ) -> None:
        super().__init__()
        exits = len(network.exits)
        scaled = torch.tensor([float(cost) for cost in costs])
        valid = scaled.isfinite().all() and (scaled > 0).all() and (scaled.diff() >= 0).all()
        if len(scaled) != exits or not valid:
            raise InputError(f"costs {list(costs)}: give {exits} positive numbers, one an exit, that never fall")
        if frozen and exits == 1:
            raise InputError("a frozen network with its last exit alone has nothing to train: add exits")
        if loss.distillation > 0 and task is not cross_entropy:
            raise InputError(
                "distillation teaches class probabilities; the task is not cross_entropy: give distillation=0"
            )
        if "rule" in loss.needs and task is not cross_entropy:
            raise InputError("a rule is solved on class logits, so the task must be cross_entropy: give by='head'")
        self.network, self.loss, self.frozen, self.task = network, loss, frozen, task
        self._still = _held_still(network)
        if frozen:
            for part in (network.stem, network.stages, network.heads[-1]):
                part.requires_grad_(False)
            if not any(parameter.requires_grad for parameter in network.heads.parameters()):
                raise InputError("a frozen network whose exits share the last head has nothing to train")
        self.register_buffer("costs", scaled / scaled[-1], persistent=False)
        depths = [exit.depth / network.exits[-1].depth for exit in network.exits]
        self.halting = HaltingHead(depths) if "halting" in loss.needs else None
        # Of the rule solved last. The rule itself is a module, and would go into checkpoints.
        self.stops: Callable[[Trace], Bool[np.ndarray, "n D"]] | None = None

    def solve(self, logits: list[Float[Tensor, "n ..."]], targets: Tensor, price: float) -> None:
        """Solve the rule anew, for these answers of the network as it is, at a price in the loss's unit."""
        losses = torch.stack([losses_of(self.task, answer, targets) for answer in logits], 1)
        self.stops = snell(self._trace(logits, losses), price=price).stops

    def _trace(self, logits: list[Float[Tensor, "n ..."]], losses: Float[Tensor, "n K"]) -> Trace:
        answers = torch.stack(logits, 1).float().cpu()
        costs = Costs.of(self.costs.double().cpu().numpy())
        return Trace.from_answers(answers, losses.detach().double().cpu(), costs, kind="classes")

    def _halting(
        self, logits: list[Float[Tensor, "n ..."]], losses: Float[Tensor, "n K"]
    ) -> Float[Tensor, "n K"] | None:
        """h, if a part needs it; that of a rule stops at the last exit alone until the first is solved."""
        if self.halting is not None:
            found: Tensor = self.halting(logits)
            return found
        if "rule" not in self.loss.needs:
            return None
        halting = torch.zeros_like(losses)
        halting[:, -1] = 1
        if self.stops is not None:
            halting[:, :-1] = torch.from_numpy(self.stops(self._trace(logits, losses))).to(halting)
        return halting

    def forward(self, inputs: Inputs, targets: Tensor, price: float) -> tuple[Float[Tensor, ""], Float[Tensor, "n K"]]:
        """The loss, and the detached losses of the task at the exits."""
        exits = len(self.network.exits)
        onward = torch.ones(exits, device=targets.device)
        logits, states, shown, residuals = self._run(inputs, onward)
        plain = torch.stack([losses_of(self.task, answer, targets) for answer in logits], 1)
        # Exits are compared by the task's own losses, whatever they learn from: a divergence from an unsure teacher is
        # small at every early exit, and a stopping cost of it would stop all samples at the first.
        fixed = plain.detach().requires_grad_()
        halting = self._halting([answer.detach() for answer in logits], fixed)
        asked = self.loss(Seen(fixed, self.costs, price, halting, residuals))
        (weights,) = torch.autograd.grad(asked.sum(), fixed, retain_graph=True, materialize_grads=True)
        if self.loss.balanced:
            raised, handed = balance(weights)
            weights = weights * raised
            onward.copy_(handed)
        learned = self._distilled(plain, logits) if self.loss.distillation > 0 else plain
        heads = learned[:, :-1] if self.frozen else learned
        # Backward through `heads` ends at `shown`, and through `asked` at `fixed`, the halting head and the residuals.
        value = heads.mean(0).sum() + asked.mean()
        if not self.frozen:
            value = value + _asked_of(states, shown, plain, weights)
        return value, plain.detach()

    def _distilled(self, plain: Float[Tensor, "n K"], logits: list[Float[Tensor, "n ..."]]) -> Float[Tensor, "n K"]:
        """The losses with the last exit as the teacher of the others."""
        share, teacher = self.loss.distillation, logits[-1].detach().float().log_softmax(1)
        taught = [
            (1 - share) * plain[:, k]
            + share * F.kl_div(answer.float().log_softmax(1), teacher, reduction="none", log_target=True).sum(1)
            for k, answer in enumerate(logits[:-1])
        ]
        return torch.stack([*taught, plain[:, -1]], dim=1)

    def train(self, mode: bool = True) -> "Objective":
        """As of any module; but what is frozen, and each norm that the user has put into evaluation mode by itself,
        stays in that mode: its statistics must not move.
        """
        super().train(mode)
        if self.frozen:
            self.network.eval()
            for head in self.network.heads[:-1]:
                if any(parameter.requires_grad for parameter in head.parameters()):  # not one shared with the last
                    head.train(mode)
        for norm in self._still:
            norm.eval()
        return self

    def _run(
        self, inputs: Inputs, onward: Float[Tensor, " K"]
    ) -> tuple[list[Float[Tensor, "n ..."]], list[State], list[State], tuple[Float[Tensor, " n"] | None, ...]]:
        """Logits, states, what the heads were shown of them, and the residual sizes if a part needs them."""
        logits: list[Tensor] = []
        states: list[State] = []
        shown: list[State] = []
        residuals: list[Tensor | None] = []
        with torch.set_grad_enabled(not self.frozen):
            state = self.network.start(inputs)
        for k in range(len(onward)):
            with torch.set_grad_enabled(not self.frozen):
                before = _gated(state, onward[k : k + 1]) if self.loss.balanced and not self.frozen else state
                state = self.network.advance(before, k)
                if "residuals" in self.loss.needs and state is not before:  # else no block lies between two exits
                    same = hidden(before).shape == hidden(state).shape
                    residuals.append(residual_size(before, state) if same else None)
            states.append(state)
            shown.append(state if self.frozen else tree_map(_leaf, state))
            logits.append(self.network.answer(shown[-1], k))
        return logits, states, shown, tuple(residuals)


def _held_still(network: nn.Module) -> tuple[nn.Module, ...]:
    """Norms in evaluation mode within modules that are not: somebody has put them there one by one.

    A network that is in evaluation mode as a whole, as `load_network` and `train` leave it, tells of no such wish.
    """
    return tuple(
        norm
        for module in network.modules()
        if module.training
        for norm in module.children()
        if isinstance(norm, nn.modules.batchnorm._NormBase) and not norm.training
    )


def balance(weights: Float[Tensor, "n K"]) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """What makes every stage receive as much as the first, in all, from the exits behind it.

    With A_k the mean over the batch of Σ_{j>=k} w_j, stage k gets Σ_{j>=k} w_j / A_k, times A_1: the gradient of what
    is to be paid *given that stage k is reached*, as the backward recursion of the Snell envelope has it. Without this
    the last stage of nine that share evenly gets a ninth of it, under the same weight decay.

    Args:
        weights: w = ∂J/∂L, none below 0.

    Returns:
        By exit, the factor A_1 / A_k of its own weights; by stage, what the gradient that leaves it towards the inputs
        is multiplied by, A_k / A_{k-1}. Both are 0 behind the last exit that has any weight.
    """
    left = weights.flip(1).cumsum(1).flip(1).mean(0)
    raised = torch.where(left > 0, left[0] / left, 0.0)
    handed = torch.cat([torch.ones_like(left[:1]), torch.where(left[:-1] > 0, left[1:] / left[:-1], 0.0)])
    return raised, handed


class HaltingHead(nn.Module):
    """h_k, the probability of stopping at exit k once there, from what exit k shows; h_K = 1.

    One small network serves all exits; it sees confidence, margin, entropy and the share of the depth. It
    starts where every exit stops an equal share, h_k = 1 / (K - k + 1), and moves the log odds of h_k by at
    most 4, with a gradient that fades slowly: a head without this bound saturated at "never stop" while the
    price was zero and hardly came back (theory section 10).
    """

    odds: Tensor
    depths: Tensor

    def __init__(self, depths: Sequence[float], width: int = 16, reach: float = 4.0) -> None:
        super().__init__()
        self.reach, self.observer = reach, Observer(("confidence", "margin", "entropy"))
        self.hidden, self.out = nn.Linear(4, width), nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        later = torch.arange(len(depths) - 1, 0, -1, dtype=torch.float32)
        self.register_buffer("odds", -later.log(), persistent=False)
        self.register_buffer("depths", torch.tensor(depths), persistent=False)

    def forward(self, logits: Sequence[Float[Tensor, "n ..."]]) -> Float[Tensor, "n K"]:
        seen = torch.stack([self.observer(answer, {})[0] for answer in logits[:-1]], dim=1)
        depth = self.depths[:-1, None].expand(len(seen), -1, 1)
        moved = self.out(F.relu(self.hidden(torch.cat([seen, depth], dim=2)))).squeeze(2).float()
        early = torch.sigmoid(self.odds + self.reach * F.softsign(moved))
        return torch.cat([early, torch.ones_like(early[:, :1])], dim=1)


def _asked_of(
    states: list[State], shown: list[State], plain: Float[Tensor, "n K"], weights: Float[Tensor, "n K"]
) -> Float[Tensor, ""]:
    """0, with the gradient Σ_k w_k ∂L_k/∂state_k / n at the states: what the trunk is asked.

    Of the task's losses L_k, whatever the heads learn from: a trunk that is asked to make early exits agree with a
    last one that learns from labels makes the last one agree with them.
    """
    total = plain.new_zeros(())
    for k, (state, seen) in enumerate(zip(states, shown, strict=True)):
        if not weights[:, k].any():
            continue
        sources, leaves = ([leaf for leaf in tree_leaves(tree) if leaf.is_floating_point()] for tree in (state, seen))
        found = torch.autograd.grad(plain[:, k].mean(), leaves, retain_graph=True, materialize_grads=True)
        for source, gradient in zip(sources, found, strict=True):
            weight = weights[:, k].to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))
            product = (source * (gradient * weight)).sum()
            total = total + product - product.detach()
    return total


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


class _Gate(torch.autograd.Function):
    """The identity; its gradient is multiplied by a weight that is filled in after forward."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Float[Tensor, " 1"]) -> Tensor:
        ctx.weight = weight  # not saved for backward: it is meant to change before backward reads it
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * ctx.weight.to(gradient.dtype), None


def _gated(state: State, weight: Float[Tensor, " 1"]) -> State:
    def gate(tensor: Tensor) -> Any:
        return _Gate.apply(tensor, weight) if tensor.is_floating_point() else tensor  # type: ignore[no-untyped-call]

    return tree_map(gate, state)
