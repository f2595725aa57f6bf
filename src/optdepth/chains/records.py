"""Recorded chains of thought: what a forced answer would have been along the way, and whether it was right."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..fields import Fields
from ..files import parsed, reading

_AGAIN = "write one JSON object a line, as docs/chains.md shows"


@dataclass(frozen=True)
class Probe:
    """What is seen where a chain is interrupted and made to answer.

    Attributes:
        tokens: of the chain so far.
        answer: what it would answer now; None where it gives none.
        confidence: probability of that answer, the geometric mean over its tokens; 0 without an answer.
        least: probability of its least likely token.
        entropy: of the distribution of its first token, in nats, or of whatever is always measured alike.
        cost: what the probe itself took, in tokens.
    """

    tokens: int
    answer: str | None
    confidence: float
    least: float
    entropy: float
    cost: float

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"tokens is {self.tokens}; a probe comes behind at least one")
        for name in ("confidence", "least"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is a probability")
        for name in ("entropy", "cost"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it is finite and >= 0")


@dataclass(frozen=True)
class Chain:
    """One chain of thought, run to its end and probed on the way.

    Attributes:
        question: its text, by which splits are told apart.
        probes: in the order of their tokens, at least one.
        losses: one for the answer of each probe and one for the answer at the end, such as 0 right and 1 wrong.
        tokens: of the whole chain.
    """

    question: str
    probes: tuple[Probe, ...]
    losses: tuple[float, ...]
    tokens: int

    def __post_init__(self) -> None:
        asked = f"{self.question:.40}"
        if not self.probes:
            raise InputError(f"the chain of {asked!r} has no probe, so there is nothing to decide by: leave it out")
        for before, after in pairwise(self.probes):
            if after.tokens <= before.tokens:
                raise InputError(
                    f"probes of {asked!r} are out of order: one at {after.tokens} tokens follows one at "
                    f"{before.tokens}; sort them by their tokens"
                )
        if self.probes[-1].tokens > self.tokens:
            raise InputError(f"{asked!r} has a probe at {self.probes[-1].tokens} tokens of {self.tokens} in all")
        if len(self.losses) != len(self.probes) + 1:
            raise InputError(
                f"{len(self.losses)} losses for {len(self.probes)} probes: give one each and one at the end"
            )

    @property
    def identity(self) -> int:
        """Of the question: chains of one question are one sample to every split."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def read(path: str | Path) -> list[Chain]:
    """Chains from a file of one JSON object a line.

    Each has `question`, `gold` (the right answer), `full_tokens`, `full_correct` and `probes`, each of these `t`
    (tokens so far), `ans` (or null), `gm` (confidence), `minp` (probability of its least likely token), `ent` (entropy)
    and `ptok` (tokens of the probe). More is left unread. An answer is right where it is the gold one, as `same` says.

    Raises:
        InputError: no such file, or a line that is no such object, with its number.
    """
    path, found = Path(path), []
    with reading(path, _AGAIN):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        try:
            held = parsed(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no JSON ({error}); {_AGAIN}") from None
        if not isinstance(held, dict):
            raise InputError(f"{where} is no JSON object; {_AGAIN}")
        try:
            found.append(_chain(Fields(held, where, _AGAIN), where))
        except InputError as error:
            raise error if where in str(error) else InputError(f"{where}: {error}") from None
    if not found:
        raise InputError(f"{path} holds no chain; {_AGAIN}")
    return found


def _chain(held: Fields, where: str) -> Chain:
    gold, probes, losses = held.take("gold", str), [], []
    for i, each in enumerate(held.take("probes", list[dict[str, Any]])):
        told = Fields(each, f"{where}, probe {i},", _AGAIN)
        answer = told.take("ans", str | None)
        least, entropy, cost = (told.take(name, float) for name in ("minp", "ent", "ptok"))
        probes.append(Probe(told.take("t", int), answer, told.take("gm", float), least, entropy, cost))
        losses.append(float(answer is None or not same(answer, gold)))
    end = float(not held.take("full_correct", bool))
    return Chain(held.take("question", str), tuple(probes), (*losses, end), held.take("full_tokens", int))


def same(answer: str, other: str) -> bool:
    """Whether two answers are one: the same number however it is written, or the same text."""
    return plain(answer) == plain(other)


def plain(answer: str) -> str:
    """An answer without what writers put around it: "$1,200." and "1200" are one."""
    bare = answer.strip().strip("$ ").replace(",", "").rstrip(".% ").casefold()
    try:
        return f"{float(bare):.12g}"
    except ValueError:
        return bare


def split(chains: Sequence[Chain], *shares: float, seed: int) -> list[list[Chain]]:
    """Random parts of the chains, one a share, all chains of one question in the same part.

    Args:
        shares: positive, at most 1 in sum; of the questions.
        seed: of the order in which questions are dealt.
    """
    if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise InputError(f"shares {shares} must be positive and sum to at most 1")
    questions = np.unique([chain.identity for chain in chains])
    order = np.random.default_rng(seed).permutation(questions)
    ends = np.round(np.cumsum([0.0, *shares]) * len(order)).astype(int)
    parts = [set(order[a:b].tolist()) for a, b in pairwise(ends)]
    return [[chain for chain in chains if chain.identity in part] for part in parts]
