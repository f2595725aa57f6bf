"""What one exit of a language model drafts with, as it is kept and as it is on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..files import digest_of
from ..networks.lens import Lens
from ..networks.spans import head_of
from ..stopping.drafts import DraftTrace
from ..tensor_files import Tensors

_ROWS = 64
"""Of the unembedding, that tell models apart."""


@dataclass(frozen=True, eq=False)
class Drafter:
    """A lens, and what is known of it.

    Attributes:
        exit: layers that draft.
        greedy, drawn: what the lens said along text of the model, where the most likely token is written and where one
            is drawn.
    """

    exit: int
    lens: Lens
    greedy: DraftTrace
    drawn: DraftTrace

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by names that begin with the exit."""
        held = dict(self.lens.state_dict())
        held["confidence"], held["first"] = (
            torch.from_numpy(one) for one in (self.greedy.confidence, self.greedy.first)
        )
        held["greedy"], held["drawn"] = (torch.from_numpy(one.agrees) for one in (self.greedy, self.drawn))
        return {f"{self.exit}.{name}": tensor for name, tensor in held.items()}

    @classmethod
    def restore(cls, held: Tensors, exit: int) -> Drafter:
        """What `tensors` gave, read back.

        Raises:
            InputError: something is missing, or of another type.
        """
        hidden, both = held.take(f"{exit}.read.weight", torch.float32, 2).shape
        lens = Lens(both // 2, hidden)
        shapes = {name: weight.dim() for name, weight in lens.state_dict().items()}
        lens.load_state_dict(
            {name: torch.from_numpy(held.take(f"{exit}.{name}", torch.float32, dims)) for name, dims in shapes.items()}
        )
        confidence, first = held.take(f"{exit}.confidence", torch.float64, 1), held.take(f"{exit}.first", torch.bool, 1)
        greedy, drawn = (
            DraftTrace(confidence, held.take(f"{exit}.{kind}", torch.float64, 1), first) for kind in ("greedy", "drawn")
        )
        return cls(exit, lens.eval(), greedy, drawn)


def named(model: nn.Module) -> str:
    """What tells a model from others: rows of its unembedding, as bfloat16 has them, to which any precision rounds."""
    weight: Tensor = head_of(model).weight.detach()  # type: ignore[union-attr, assignment, operator]
    some = weight[:: max(1, len(weight) // _ROWS)].to(torch.bfloat16).cpu().contiguous()
    digest = digest_of({"shape": list(weight.shape)})
    digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()
