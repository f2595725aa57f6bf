"""What may be seen of a chain of thought as it grows: features of the probes so far, one probe at a time.

The recorder and the server see by the same steps, so a feature can refer to nothing that has not happened yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import InputError
from .records import Probe, plain

FEATURES = ("confidence", "least", "entropy", "streak", "best", "held", "answers", "answered", "tokens")
"""Confidence, least likely token and entropy of the answer now; how many probes in a row have given it; the best
confidence of any answer so far, and of this one while it has held; how many different answers there were; the share of
probes that had one; and the logarithm of the tokens so far."""


@dataclass(frozen=True)
class Sight:
    """What the probes of one chain have shown so far. It is small, and JSON as a dict of its fields.

    Attributes:
        probes: how many there were.
        tokens: of the chain at the last of them.
        answer: the last answer; None where there was none.
        streak: how many probes in a row have given it.
        best, held: highest confidence of any answer, and of this one while it has held.
        answers: all different ones, in the order in which they came.
        answered: how many of the probes had an answer.
    """

    probes: int = 0
    tokens: int = 0
    answer: str | None = None
    streak: int = 0
    best: float = 0.0
    held: float = 0.0
    answers: tuple[str, ...] = ()
    answered: int = 0

    def after(self, probe: Probe) -> Sight:
        """With one probe more.

        Raises:
            InputError: the probe does not come behind the last one.
        """
        if probe.tokens <= self.tokens:
            raise InputError(f"a probe at {probe.tokens} tokens follows one at {self.tokens}: give them in their order")
        seen = replace(self, probes=self.probes + 1, tokens=probe.tokens)
        if probe.answer is None:
            return replace(seen, answer=None, streak=0, held=0.0)
        answer = plain(probe.answer)
        again = answer == self.answer
        return replace(
            seen,
            answer=answer,
            streak=self.streak + 1 if again else 1,
            best=max(self.best, probe.confidence),
            held=max(self.held if again else 0.0, probe.confidence),
            answers=self.answers if answer in self.answers else (*self.answers, answer),
            answered=self.answered + 1,
        )

    def observation(self, probe: Probe) -> tuple[float, ...]:
        """The features, in the order of `FEATURES`, at the probe that was seen last."""
        share = self.answered / self.probes
        now = probe.confidence, probe.least, probe.entropy, float(self.streak)
        return *now, self.best, self.held, float(len(self.answers)), share, math.log(self.tokens)
