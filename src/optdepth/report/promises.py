"""What can be promised of the solved rule: a certificate, the gap to the best possible, and how deep is deep enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ..errors import InputError
from ..stopping.bounds import Gap, gap
from ..stopping.certify import Certificate
from ..stopping.finite import FiniteDepth, finite_depth
from ..stopping.methods import METHODS, SOLVED
from ..stopping.placement import keep
from ..trace import Trace
from .study import Study

RISK, CONFIDENCE = 0.01, 0.95
"""What is certified: at most so much more loss than the full network's, with this confidence."""


@dataclass(frozen=True, eq=False)
class Promises:
    """The three statements, each of which reads as a sentence.

    Attributes:
        certificate: of the cheapest rule of the solved kind.
        gap: of the solved rule.
        depth: of the solved rule, between the exits that it looks at; between all where no look pays.
        names: of those exits.
    """

    certificate: Certificate
    gap: Gap
    depth: FiniteDepth
    names: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, certify: Trace) -> Self:
        """Certifies on samples that neither fitted nor judge; measures the rest where everything is measured.

        Args:
            certify: trace of 0-1 losses that shares no sample with the study's.

        Raises:
            InputError: it does share samples.
        """
        if shared := certify.overlap(study.test):
            raise InputError(f"{shared} samples are in both certify and test; the test split only judges")
        rule, fit, test = study.rules[SOLVED], study.fit, study.test
        family = METHODS[SOLVED].solve(fit)
        found = family.certified(certify, risk=RISK, confidence=CONFIDENCE, measure="excess")
        kept = test if len(rule.kept) == test.n_exits else keep(test, rule.kept)
        depth = finite_depth(kept, rule.inner, price=study.price)
        names = tuple(study.names[k] for k in rule.kept)
        return cls(found, gap(rule, fit, test, price=study.price), depth, names)
