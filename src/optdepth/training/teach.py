"""Heads taught on a trunk that is not touched: what they read is computed once, so an epoch takes seconds.

`train(..., backbone="frozen")` runs the trunk anew for every epoch, as heads of convolutions and augmented data need.
Heads that read a mean over places (`networks.heads.Pooled`) read the same numbers in every epoch: those are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from ..batch import Inputs, check_finite
from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.heads import Pooled
from ..progress import shown_steps
from ..threads import ThreadChoice

_MOST = 4 << 30
"""Bytes that are kept of what heads read."""
_HELD_OUT = 0.1
_LEARNING_RATE = 2e-3
_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class Lessons:
    """What the heads of a network read of some samples, and what they are to answer.

    Attributes:
        means: by the depth of an exit, (n, channels): the mean over places of the state there.
        labels: (n,) classes.
        full: (n, C) logits of the last exit.
    """

    means: dict[int, Float[Tensor, "n _"]]
    labels: Int[Tensor, " n"]
    full: Float[Tensor, "n C"]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    @torch.no_grad()  # what comes of inference mode cannot be learned from
    def of(
        cls, network: StagedNetwork, batches: Iterable[tuple[Inputs, Tensor]], *, total: int | None, progress: bool
    ) -> Lessons:
        """One pass of the network over the batches, in evaluation mode.

        Raises:
            InputError: no samples, NaN or infinity among them, labels that are no classes of the network, or more
                than fits the memory that is allowed.
        """
        training, device, threads = network.training, next(network.parameters()).device, ThreadChoice()
        network.eval()
        means: dict[int, list[Tensor]] = {exit.depth: [] for exit in network.exits[:-1]}
        labels: list[Tensor] = []
        full: list[Tensor] = []
        seen = held = 0
        for inputs, targets in shown_steps(batches, "computing what the heads read", total=total, shown=progress):
            check_finite(inputs, seen)
            inputs = tree_map(lambda tensor: tensor.to(device), inputs)
            with threads.running("states", inputs, network.full):
                found, answer = _pass(network, inputs)
            check_labels(targets, answer, seen)
            for depth, mean in found.items():
                means[depth].append(mean.float().cpu())
                held += means[depth][-1].nbytes
            labels.append(targets)
            full.append(answer.float().cpu())
            seen += len(targets)
            if held > _MOST:
                raise InputError(
                    f"what the heads read of {seen:,} samples takes {held / 2**30:.1f} GiB: give fewer samples to "
                    "train on, fewer exits, or train heads with od.train(..., backbone='frozen')"
                )
        network.train(training)
        if not seen:
            raise InputError("no batches to train on: the data are empty")
        return cls({depth: torch.cat(parts) for depth, parts in means.items()}, torch.cat(labels), torch.cat(full))


def _pass(network: StagedNetwork, inputs: Inputs) -> tuple[dict[int, Tensor], Tensor]:
    """What each head reads, by depth, and the last exit's logits."""
    state, found = network.start(inputs), {}
    for k, exit in enumerate(network.exits):
        state = network.advance(state, k)
        head = network.heads[k]
        if k < len(network.exits) - 1 and isinstance(head, Pooled) and exit.depth not in found:
            found[exit.depth] = head.pool(state)
    return found, network.answer(state, len(network.exits) - 1)


def check_labels(labels: Tensor, answers: Float[Tensor, "n C"], first: int = 0) -> None:
    """Refuses what are no labels of a classifier with these answers.

    Args:
        first: number of the first sample, for the message.

    Raises:
        InputError: answers or labels of another shape or type, or a label beyond the classes.
    """
    if answers.dim() != 2:
        raise InputError(f"the model answers {tuple(answers.shape)}; here it must be a classifier, (n, classes)")
    if labels.shape != answers.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"labels are {tuple(labels.shape)} of {labels.dtype} for answers {tuple(answers.shape)}: "
            f"give ({len(answers)},) whole numbers, the class of each sample"
        )
    outside = torch.nonzero((labels < 0) | (labels >= answers.shape[1]))
    if len(outside):
        i = int(outside[0])
        raise InputError(
            f"sample {first + i} has label {int(labels[i])}, and the model has {answers.shape[1]} classes, 0 to "
            f"{answers.shape[1] - 1}: give the model's own classes"
        )


def teach(
    network: StagedNetwork,
    batches: Iterable[tuple[Inputs, Tensor]],
    *,
    seed: int,
    epochs: int = 12,
    batch_size: int = 256,
    total: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Teaches the heads of all exits but the last, in place, and nothing else; in seconds once the trunk has run once.

    A head learns the labels and the last exit's distribution in equal parts: what a rule promises is measured against
    that exit. Each keeps the weights of its best epoch on a tenth of the samples, which are held out. What heads read
    is standardised while they learn, and the scales are put into their weights afterwards.

    Args:
        network: its early heads are all `Pooled`, as `stage(head="linear")` and "mlp" make them.
        batches: inputs and labels (n,).
        seed: of what is held out, and of the order.
        epochs: over what was kept.
        total: number of batches, for the bar.

    Returns:
        By exit, the share of the held-out samples that it answers right; the last exit's too.

    Raises:
        InputError: a head that reads more than a mean, too few samples, or what `Lessons.of` refuses.

    Example:
        >>> copy = od.resnet(8, classes=10, channels=1, heads="linear", exits="all", seed=0)
        >>> right = teach(copy, [(images, labels)], seed=0, progress=False)
        >>> list(right)
        ['stage1.block1', 'stage2.block1', 'stage3.block1']
    """
    for exit, head in zip(network.exits[:-1], network.heads[:-1], strict=True):
        if not isinstance(head, Pooled):
            raise InputError(
                f"the head at {exit.name} reads more than a mean over places: take head='linear' or 'mlp', or train "
                "it with od.train(..., backbone='frozen')"
            )
    lessons = Lessons.of(network, batches, total=total, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lessons), generator=generator)
    held = max(1, round(_HELD_OUT * len(lessons)))
    if len(lessons) - held < 2:
        raise InputError(f"{len(lessons)} samples are too few to teach heads on; give hundreds at the least")
    rest, judged = order[held:], order[:held]
    right = {}
    exits = list(zip(network.exits[:-1], network.heads[:-1], strict=True))
    for exit, head in shown_steps(exits, "teaching heads", total=len(exits), shown=progress):
        assert isinstance(head, Pooled)
        means = lessons.means[exit.depth]
        _teach_one(head, means, lessons, rest, judged, epochs, batch_size, generator)
        with torch.inference_mode():
            answers = head.read(means[judged].to(next(head.parameters()))).argmax(1).cpu()
        right[exit.name] = float((answers == lessons.labels[judged]).float().mean())
    full = lessons.full[judged].argmax(1) == lessons.labels[judged]
    return {**right, network.exits[-1].name: float(full.float().mean())}


def _teach_one(
    head: Pooled,
    means: Float[Tensor, "n channels"],
    lessons: Lessons,
    rest: Int[Tensor, " m"],
    judged: Int[Tensor, " h"],
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Teaches one head, in float32, and leaves it in its own precision with its best epoch's weights."""
    like, training = next(head.parameters()), head.training
    head.float().train()
    centre, scale = means[rest].mean(0), means[rest].std(0).clamp_min(_SMALLEST)
    centre, scale = centre.to(like.device), scale.to(like.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    steps = epochs * math.ceil(len(rest) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)

    def loss(rows: Int[Tensor, " b"]) -> Tensor:
        read = (means[rows].to(like.device) - centre) / scale
        answer = head.read(read).log_softmax(1)
        teacher = lessons.full[rows].to(like.device).log_softmax(1)
        told = F.nll_loss(answer, lessons.labels[rows].to(like.device))
        return 0.5 * told + 0.5 * F.kl_div(answer, teacher, reduction="batchmean", log_target=True)

    best, kept = math.inf, {}
    for _ in range(epochs):
        head.train()
        for rows in rest[torch.randperm(len(rest), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
            schedule.step()
        head.eval()
        with torch.inference_mode():
            found = float(loss(judged))
        if found < best:
            best, kept = found, {name: value.clone() for name, value in head.state_dict().items()}
    if not kept:
        raise InputError("the heads' loss is not finite: the states that they read are too large for float32")
    head.load_state_dict(kept)
    _unscale(head.first, centre, scale)
    head.to(like.dtype).train(training)


@torch.no_grad()
def _unscale(first: torch.nn.Linear, centre: Float[Tensor, " c"], scale: Float[Tensor, " c"]) -> None:
    """Makes a layer that takes (x - centre) / scale one that takes x."""
    first.weight /= scale
    first.bias.sub_(first.weight @ centre)
