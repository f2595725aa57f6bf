"""Rounds of drafting and verifying: a language model's own text, several tokens at a time (`speculation.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..networks.lens import Lens, ShortHead
from ..networks.spans import Span
from ..stopping.drafts import DraftRule
from .acceptance import Warp, agreeing, draw, drawn, warped
from .rewinding import RewindingCache, moved, positions


@dataclass(frozen=True, eq=False)
class Parts:
    """What drafts and what verifies.

    Attributes:
        lower, lens: the first layers, and what reads their states.
        upper: the layers above.
    """

    lower: Span
    upper: Span
    lens: Lens


class Batch:
    """Sequences that are written together, in one cache whose columns end where they end.

    Attributes:
        tokens: (n, c + 1) padding, prompt and what was written; the newest token is not in the cache yet.
        mask: (n, c + 1) 0 where there is padding; None where there never is.
        deep: (n, 1, d) final state of the token before the newest.

    Args:
        more: tokens that may be written behind a prompt.
        most: tokens that are run on at once, behind those.
    """

    def __init__(self, prompt: Int[Tensor, "n p"], mask: Int[Tensor, "n p"] | None, more: int, most: int) -> None:
        self.cache, self._most = RewindingCache(prompt.shape[1] + more + most), most
        # Sequences that are written at different speeds are padded soon.
        self.mask = torch.ones_like(prompt) if mask is None and len(prompt) > 1 else mask
        self.tokens = prompt
        self.deep: Tensor

    def call(self, first: int, count: int) -> dict[str, Any]:
        """How the model is called on `count` tokens behind `first` columns."""
        self.cache.length, mask = first, self.mask
        if mask is not None:
            more = first + count - mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), max(more, 0))], dim=1)[:, : first + count]
        places = positions(mask, first, count, self.tokens.device)
        return {"past_key_values": self.cache, "attention_mask": mask, "position_ids": places}

    def begin(self, whole: Span) -> Float[Tensor, "n 1 V"]:
        """Runs the prompt, and gives the logits of the first token to be written."""
        logits, self.deep = whole.answers(self.tokens, keep=1, **self.call(0, self.tokens.shape[1]))
        return logits

    def first(self, token: Int[Tensor, " n"]) -> None:
        """Takes the first token that is written."""
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        self.mask = None if self.mask is None else torch.cat([self.mask, self.mask[:, -1:]], dim=1)

    def add(self, tokens: Int[Tensor, "n m"], count: Int[Tensor, " n"], states: Float[Tensor, "n m d"]) -> None:
        """Takes the first tokens of each row, so many of each; the last of them is the newest then.

        Args:
            states: final states of the newest token so far and of those behind it.
        """
        self.deep = states[torch.arange(len(tokens), device=tokens.device), count - 1][:, None]
        most = int(count.max())
        known = torch.cat([self.tokens, tokens[:, :most]], dim=1)
        if self.mask is None:
            self.tokens = known
            return
        mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), most)], dim=1)
        held = self.tokens.shape[1] - 1
        length = held + most
        if length + self._most > self.cache.room:  # padding in front is no longer to be had
            length = int((self.mask.sum(1) - 1 + count).max())
        by = length - held - count
        self.cache.shift(by, length)
        self.tokens, self.mask = moved(known, by, length + 1), moved(mask, by, length + 1)

    def select(self, rows: Int[Tensor, " m"]) -> None:
        """Keeps some of the sequences."""
        self.cache.select(rows)
        self.tokens, self.deep = self.tokens[rows], self.deep[rows]
        self.mask = None if self.mask is None else self.mask[rows]


@dataclass(eq=False)
class Round:
    """One round of a batch.

    Attributes:
        tokens: (n, m) what it gives each sequence, of which the first `kept` + 1 count.
        kept: (n,) drafts that were kept.
        drafts: that were verified of each sequence.
        states: (n, m, d) final states of the newest token and of the drafts behind it.
    """

    tokens: Int[Tensor, "n m"]
    kept: Int[Tensor, " n"]
    drafts: int
    states: Float[Tensor, "n m d"]


@dataclass(frozen=True, eq=False)
class Sampler:
    """How a token is chosen: the most likely one, or drawn where there is a generator; of warped logits if so."""

    warp: Warp | None = None
    generator: torch.Generator | None = None

    def token(self, batch: Batch, logits: Float[Tensor, "n 1 V"]) -> Int[Tensor, " n"]:
        """A token of each sequence behind what it has."""
        logits = warped(self.warp, batch.tokens, batch.tokens[:, :0], logits)[:, 0]
        return logits.argmax(-1) if self.generator is None else draw(logits.double().softmax(-1), self.generator)


def plain_round(batch: Batch, whole: Span, sampler: Sampler) -> Round:
    """All layers on the newest token, as the model does by itself."""
    logits, states = whole.answers(batch.tokens[:, -1:], **batch.call(batch.tokens.shape[1] - 1, 1))
    token = sampler.token(batch, logits)
    return Round(token[:, None], torch.zeros_like(token), 0, states)


def draft_round(batch: Batch, parts: Parts, short: ShortHead, rule: DraftRule, left: int, sampler: Sampler) -> Round:
    """Drafts with the first layers as long as that pays, and verifies all drafts with the others, in one pass.

    Args:
        left: tokens still to be written, at most.
    """
    held, draft = batch.tokens.shape[1] - 1, _Draft(batch, parts.lens, short, sampler)
    most, token = min(rule.most, left), batch.tokens[:, -1:]
    states: list[Tensor] = []
    survive, cell = np.ones(len(token)), np.full(len(token), len(rule.chance))
    for j in range(most):
        state, normed = parts.lower.states(token, **batch.call(held + j, 1))
        assert state is not None
        states.append(state)
        if j == most - 1 or not _on(survive, rule.look[j][cell]):
            break
        cell = rule.cells(draft.look(normed))
        survive = survive * rule.chance[cell]
        # What is drawn must not be known yet: else what is written would hang on why a draft was left.
        if not _on(survive, rule.go[j][cell]) or not draft.draw():
            break
        token = draft.tokens[-1]
    drafts = torch.cat([batch.tokens[:, :0], *draft.tokens], dim=1)
    seen = torch.cat([batch.tokens[:, -1:], drafts], dim=1)
    logits, final = parts.upper.answers(seen, states=torch.cat(states, dim=1), **batch.call(held, seen.shape[1]))
    logits = warped(sampler.warp, batch.tokens, drafts, logits)
    if sampler.generator is None:
        kept, tokens = agreeing(logits, drafts)
    else:
        kept, tokens = drawn(logits, drafts, draft.chances(logits), sampler.generator)
    return Round(tokens, kept, drafts.shape[1], final)


def _on(survive: np.ndarray, least: np.ndarray) -> bool:
    """Whether the batch goes on: sequences outvote each other by how far they are from where each would stop alone."""
    return bool((survive - least).sum() >= 0)


@dataclass(eq=False)
class _Draft:
    """Drafts of one round.

    Attributes:
        tokens: (n, 1) each.
    """

    batch: Batch
    lens: Lens
    short: ShortHead
    sampler: Sampler
    tokens: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._feature = self.batch.deep
        self._logits: Tensor
        self._chances: list[Tensor] = []

    def look(self, normed: Float[Tensor, "n 1 d"]) -> Float[np.ndarray, " n"]:
        """What the lens makes of the newest states: the probability of its first choice."""
        self._feature = self.lens(normed, self._feature)
        self._logits = self.short(self._feature)[:, 0].float()
        found: np.ndarray = self._logits.softmax(-1).amax(-1).cpu().numpy()
        return found

    def draw(self) -> bool:
        """Adds a draft to each sequence, unless the sampler leaves no word of the shortlist to one."""
        if self.sampler.warp is None and self.sampler.generator is None:
            self.tokens.append(self.short.words[self._logits.argmax(-1)][:, None])
            return True
        logits = self._logits.new_full((len(self._logits), self.short.vocabulary), -torch.inf)
        logits[:, self.short.words] = self._logits
        drafts = torch.cat([self.batch.tokens[:, :0], *self.tokens], dim=1)
        if self.sampler.warp is not None:
            logits = self.sampler.warp(torch.cat([self.batch.tokens, drafts], dim=1), logits)
            if not torch.isfinite(logits.amax(-1)).all():
                return False
        if self.sampler.generator is None:
            self.tokens.append(logits.argmax(-1)[:, None])
            return True
        chances = logits.double().softmax(-1)
        self._chances.append(chances)
        self.tokens.append(draw(chances, self.sampler.generator)[:, None])
        return True

    def chances(self, logits: Float[Tensor, "n m V"]) -> Float[Tensor, "n k V"]:
        """With which the drafts were drawn."""
        return torch.stack(self._chances, dim=1) if self._chances else logits[:, :0].double()
