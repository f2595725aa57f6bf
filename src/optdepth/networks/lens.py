"""Lenses: exits of a language model that share its own unembedding (theory, section 11).

A lens reads what the model's final norm makes of a state half way up, and the final state of the token before, which
the whole model has made by then; what it adds is a small residual map, nothing at the start ("logit lens"). Words are
scored by the model's own unembedding, cut to a shortlist once for all lenses, and never trained. The final state of the
token before is what EAGLE (Li et al. 2024, arXiv:2401.15077) drafts from; behind a draft the lens's own stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError


class Lens(nn.Module):
    """States half way up -> an estimate of the final states, both as the model's final norm leaves them.

    Args:
        width: of the states.
        hidden: of the residual map.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.line = nn.Linear(2 * width, width)
        self.read, self.write = nn.Linear(2 * width, hidden), nn.Linear(hidden, width, bias=False)
        for weight in (*self.line.parameters(), self.write.weight):
            nn.init.zeros_(weight)

    def forward(self, x: Float[Tensor, "*n d"], before: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The estimate.

        Args:
            x: state of the token.
            before: final state of the token before it, or the estimate of that.
        """
        both = torch.cat([x, before], dim=-1)
        added: Tensor = self.line(both) + self.write(nn.functional.gelu(self.read(both)))
        return x + added


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The words that a lens may draft.

    Attributes:
        words: (s,) token numbers, rising.
        coverage: share of the model's own tokens, on text that did not choose the words, that are among them.
    """

    words: Int[Tensor, " s"]
    coverage: float

    @classmethod
    def of(cls, expected: Float[Tensor, " V"], size: int, own: Int[Tensor, " N"]) -> Shortlist:
        """The words that the model itself expects most.

        Args:
            expected: how often each word comes, by the model's own probabilities along text.
            size: words at most.
            own: tokens of other text that the model wrote, for the coverage.
        """
        if not 1 <= size <= len(expected):
            raise InputError(f"a shortlist of {size} words: the model has 1 to {len(expected)}")
        words = expected.topk(size).indices.sort().values
        return cls(words, float(torch.isin(own, words).double().mean()))

    def scores(self, head: nn.Module) -> ShortHead:
        """The rows of the model's unembedding for these words."""
        return ShortHead.of(head, self.words)


@dataclass(frozen=True, eq=False)
class ShortHead:
    """Final states -> logits of a shortlist.

    Attributes:
        words: (s,) token numbers.
        vocabulary: how many tokens the model knows.
        weight, bias: their rows of the unembedding, gathered once for all lenses.
    """

    words: Int[Tensor, " s"]
    vocabulary: int
    weight: Float[Tensor, "s d"]
    bias: Float[Tensor, " s"] | None

    @classmethod
    def of(cls, head: nn.Module, words: Int[Tensor, " s"]) -> ShortHead:
        """Of a model's unembedding."""
        weight: Tensor = head.weight.detach()  # type: ignore[assignment, operator, union-attr]
        bias = getattr(head, "bias", None)
        words = words.to(weight.device)
        return cls(words, len(weight), weight[words], None if bias is None else bias.detach()[words])

    def float(self) -> ShortHead:
        """The same in float32, to train with."""
        return replace(self, weight=self.weight.float(), bias=None if self.bias is None else self.bias.float())

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n s"]:
        return nn.functional.linear(x, self.weight, self.bias)
