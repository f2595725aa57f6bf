"""Which drafts are kept: those that the model itself would have written, or, where it draws, with its own chances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Warp = Callable[[Tensor, Tensor], Tensor]
"""Tokens so far (n, t) and logits (n, V) -> logits: such as a `LogitsProcessorList` of transformers."""


def warped(
    warp: Warp | None, before: Int[Tensor, "n t"], drafts: Int[Tensor, "n k"], logits: Float[Tensor, "n m V"]
) -> Float[Tensor, "n m V"]:
    """Logits as the sampler has them, each behind the tokens that it follows; k is m - 1."""
    if warp is None:
        return logits
    each = [warp(torch.cat([before, drafts[:, :j]], dim=1), logits[:, j].float()) for j in range(logits.shape[1])]
    return torch.stack(each, dim=1)


def agreeing(
    logits: Float[Tensor, "n m V"], drafts: Int[Tensor, "n k"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, "n m"]]:
    """How many drafts in front are the most likely tokens, and those tokens."""
    best = logits.argmax(-1)
    return (best[:, :-1] == drafts).long().cumprod(1).sum(1), best


def drawn(
    logits: Float[Tensor, "n m V"],
    drafts: Int[Tensor, "n k"],
    chances: Float[Tensor, "n k V"],
    generator: torch.Generator,
) -> tuple[Int[Tensor, " n"], Int[Tensor, "n m"]]:
    """How many drafts in front are kept, and tokens as the model draws them: the drafts that are kept, and one more.

    Speculative sampling (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318): a draft y drawn
    with chance q(y) is kept with chance min(1, p(y) / q(y)), and else a token is drawn from what p has above q.

    Args:
        chances: q, with which the drafts were drawn.
    """
    p = logits.double().softmax(-1)
    q = chances.double()
    ratio = (p[:, :-1].gather(2, drafts[..., None]) / q.gather(2, drafts[..., None]))[..., 0]
    coins = torch.rand(ratio.shape, generator=generator, dtype=torch.float64, device=generator.device).to(p.device)
    kept = (coins < ratio).long().cumprod(1).sum(1)
    rows = torch.arange(len(p), device=p.device)
    rest = p[rows, kept]
    if q.shape[1]:
        refused = kept < q.shape[1]
        above = (rest - q[rows, kept.clamp(max=q.shape[1] - 1)]).clamp(min=0)
        refused &= above.sum(1) > 0  # p and q are one but for rounding
        rest = torch.where(refused[:, None], above, rest)
    last = draw(rest, generator)
    tokens = torch.cat([drafts, drafts.new_zeros(len(p), 1)], dim=1)
    return kept, tokens.scatter(1, kept[:, None], last[:, None])


def draw(chances: Float[Tensor, "n V"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """One token a row, with these chances, which need not add up to one."""
    return torch.multinomial(chances.to(generator.device), 1, generator=generator)[:, 0].to(chances.device)
