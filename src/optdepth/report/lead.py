"""The first screen: the network as a line of blocks, who leaves where, three inputs, and how much faster it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from ..inference.clock import Clocked
from ..stopping.methods import SOLVED
from .gallery import address
from .study import Study

Shown = Image.Image | str
"""An input to look at: its picture, or its text."""

_PIXELS = 240
"""Longest side of a picture."""
_LETTERS = 220
"""Of a text that is shown; the rest is left out."""
_NOISY = 0.15
"""Interquartile range of a time over its median, beyond which it is said to be noisy."""


@dataclass(frozen=True)
class Stop:
    """An exit that the rule looks at.

    Attributes:
        before: blocks that are run from the last such exit on, as words.
        name: of the exit.
        share: of the test inputs that leave here.
        cost: what they paid, as a share of a full pass.
        width: share of the inputs that come this far.
    """

    before: str
    name: str
    share: float
    cost: float
    width: float


@dataclass(frozen=True)
class Example:
    """One test input: what it is, when it left, and whether its answer is right.

    Attributes:
        when: "leaves early", "midway" or "goes deep".
        picture: data address, or nothing.
        text: or nothing.
        label: what it really is, or nothing.
    """

    when: str
    picture: str
    text: str
    label: str
    exit: str
    cost: float
    right: bool


@dataclass(frozen=True)
class Speed:
    """Time at one batch size: milliseconds an input, and how many times faster; bars are shares of the slowest."""

    batch: int
    given: float
    full: float
    early: float

    @property
    def times(self) -> float:
        return self.full / self.early

    @property
    def slowest(self) -> float:
        return max(self.given, self.full, self.early)


@dataclass(frozen=True)
class Lead:
    """What the first screen shows.

    Attributes:
        stops: exits that the rule looks at, the last exit among them.
        examples: one that leaves early, one midway, one late; none where inputs cannot be shown.
        speeds: by batch size.
        noisy: batch sizes whose times are not to be trusted.
    """

    stops: tuple[Stop, ...]
    examples: tuple[Example, ...]
    speeds: tuple[Speed, ...]
    noisy: tuple[int, ...]

    @classmethod
    def of(
        cls,
        study: Study,
        clock: Sequence[Clocked],
        show: Callable[[int], Shown] | None,
        labels: Sequence[str] | None,
    ) -> Self:
        rows = [row for row in clock if row.method == SOLVED]
        speeds = tuple(
            Speed(row.batch, row.full if row.given is None else row.given, row.full, row.engine) for row in rows
        )
        noisy = tuple(row.batch for row in rows if row.noise > _NOISY)
        return cls(_stops(study), () if show is None else _examples(study, show, labels), speeds, noisy)


def _stops(study: Study) -> tuple[Stop, ...]:
    shares = study.solved.shares
    looked = [k for k in range(len(study.names)) if study.rules[SOLVED].looks[k] or shares[k] > 0]
    if not looked or looked[-1] < len(study.names) - 1:
        looked.append(len(study.names) - 1)
    stops, last, left = [], -1, 1.0
    for k in looked:
        count = k - last
        paid = study.solved.costs[study.solved.stopped_at == k]
        cost = float(paid.mean() if len(paid) else study.full.cost) / study.full.cost
        before = f"{count} {'stage' if count == 1 else 'stages'}"
        stops.append(Stop(before, study.names[k], float(shares[k]), cost, left))
        last, left = k, left - float(shares[k])
    return tuple(stops)


def _examples(study: Study, show: Callable[[int], Shown], labels: Sequence[str] | None) -> tuple[Example, ...]:
    at = study.solved.stopped_at
    used = np.flatnonzero(np.bincount(at, minlength=len(study.names)))
    chosen = dict(zip(("leaves early", "midway", "goes deep"), (used[0], used[len(used) // 2], used[-1]), strict=True))
    if len(used) < 3:
        del chosen["midway"]
    if len(used) < 2:
        del chosen["goes deep"]
    examples = []
    for when, k in chosen.items():
        there = np.flatnonzero(at == k)
        right = there[study.solved.losses[there] == 0]  # one that is typical: most are answered right
        i = int((right if len(right) else there)[0])
        seen = show(i)
        text = seen if isinstance(seen, str) else ""
        examples.append(
            Example(
                when=when,
                picture="" if isinstance(seen, str) else address(seen, _PIXELS),
                text=text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()} …",
                label="" if labels is None else labels[i],
                exit=study.names[k],
                cost=float(study.solved.costs[i]) / study.full.cost,
                right=bool(study.solved.losses[i] == 0),
            )
        )
    return tuple(examples)
