"""Lenses trained on states that were recorded once: the model itself is not run, and nothing of it learns.

Its linear part is first solved for, by least squares to the final states; then the lens is taught by the model's own
last layer (distillation): the words that the final state scores high, at every token of text. Behind drafts it reads
its own estimate of the final state in place of the model's; so it is taught with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..networks.lens import Lens, ShortHead
from ..progress import shown_steps

_TOP = 8
"""Words a token is taught with at the least: the likeliest of every token of its batch are the batch's words."""
_RATE, _WARM = 3e-4, 10
_RIDGE = 0.1
"""Of the mean square of what a lens reads: how strongly its linear part is held to nothing."""
_LOST = 0.1
"""Share of what a lens reads that is left out while it learns, for texts are few."""


@dataclass(frozen=True, eq=False)
class TextStates:
    """States of one text, as the model's final norm leaves them.

    Attributes:
        tokens: (t,) of the text.
        own: (t,) whether the token behind each was written by the model itself.
        final: (t, d) the model's own.
        early: (t, d) by exit.
    """

    tokens: Int[Tensor, " t"]
    own: Bool[Tensor, " t"]
    final: Float[Tensor, "t d"]
    early: Mapping[int, Float[Tensor, "t d"]]


def before(final: Float[Tensor, "t d"], starts: Int[Tensor, " s"]) -> Float[Tensor, "t d"]:
    """The row in front of each; zeros where a text starts."""
    shifted = torch.cat([torch.zeros_like(final[:1]), final[:-1]])
    shifted[starts] = 0
    return shifted


def joined(texts: Sequence[TextStates], exit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Early states, final states, and where texts start."""
    lengths = torch.tensor([0, *(len(text.tokens) for text in texts)])
    x = torch.cat([text.early[exit] for text in texts]).float()
    return x, torch.cat([text.final for text in texts]).float(), lengths.cumsum(0)[:-1]


@torch.enable_grad()
def train_lenses(
    texts: Sequence[TextStates],
    short: ShortHead,
    *,
    exits: Sequence[int],
    hidden: int,
    epochs: int,
    seed: int,
    progress: bool = False,
) -> dict[int, Lens]:
    """One lens an exit, in float32.

    Args:
        texts: four of them make a batch.
        short: the unembedding, of the words that are drafted.
        hidden: width of the residual map.
    """
    generator = torch.Generator().manual_seed(seed)
    head = short.float()
    width = head.weight.shape[1]
    lenses = {}
    for exit in exits:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lenses[exit] = Lens(width, hidden).to(head.weight.device)
        _solve_line(lenses[exit].line, texts, exit)
    parameters = [weight for lens in lenses.values() for weight in lens.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(texts), generator=generator).split(4)]
    for step, rows in enumerate(shown_steps(batches, "training lenses", total=len(batches), shown=progress)):
        some = [texts[i] for i in rows.tolist()]
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / _WARM) * (1 - step / len(batches))
        optimizer.zero_grad()
        lesson = _Lesson.of(head, torch.cat([text.final for text in some]).float())
        for exit, lens in lenses.items():
            _loss(lens, lesson, *joined(some, exit), generator).backward()
        optimizer.step()
    return {exit: lens.eval() for exit, lens in lenses.items()}


@torch.no_grad()
def _solve_line(line: nn.Linear, texts: Sequence[TextStates], exit: int) -> None:
    """The linear part that comes nearest to the final states."""
    width = line.out_features
    square = torch.zeros(2 * width + 1, 2 * width + 1, dtype=torch.float64, device=line.weight.device)
    product = square.new_zeros(2 * width + 1, width)
    for text in texts:
        x, final, starts = joined([text], exit)
        read = torch.cat([x, before(final, starts), torch.ones_like(x[:, :1])], dim=1)
        square += read.T @ read
        product += read.T @ (final - x)
    square.diagonal().add_(_RIDGE * square.diagonal().mean())
    found = torch.linalg.solve(square, product).T
    line.weight.copy_(found[:, :-1])
    line.bias.copy_(found[:, -1])


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What all lenses are taught of one batch.

    Attributes:
        weight, bias: the unembedding, of the words that are likeliest somewhere in the batch.
        taught: (t, words) the model's own choice among those, as chances.
    """

    weight: Float[Tensor, "w d"]
    bias: Float[Tensor, " w"] | None
    taught: Float[Tensor, "t w"]

    @classmethod
    @torch.no_grad()
    def of(cls, head: ShortHead, final: Float[Tensor, "t d"]) -> _Lesson:
        scores = head(final)
        words = scores.topk(min(_TOP, scores.shape[1])).indices.unique()
        return cls(head.weight[words], None if head.bias is None else head.bias[words], scores[:, words].softmax(-1))


def _loss(
    lens: nn.Module, lesson: _Lesson, x: Tensor, final: Tensor, starts: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy to the model's own choice, behind its final states and behind the lens's."""
    loss, estimate = torch.zeros((), device=x.device), final
    for _ in range(2):
        estimate = lens(_lossy(x, generator), _lossy(before(estimate.detach(), starts), generator))
        scores = nn.functional.linear(estimate, lesson.weight, lesson.bias)
        loss = loss + nn.functional.cross_entropy(scores, lesson.taught)
    return loss


def _lossy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dropout by a generator of one's own."""
    kept = torch.rand(x.shape, generator=generator).to(x.device) >= _LOST
    return x * kept / (1 - _LOST)
