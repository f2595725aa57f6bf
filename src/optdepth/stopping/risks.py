"""What a certificate bounds, and the tests that show it (theory, section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor, log10, sqrt
from typing import Literal, Self, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binom

from ..errors import InputError
from ..trace import Trace

Array = np.ndarray
Measure = Literal["loss", "excess", "disagreement"]
"""What is bounded: the loss; the loss above the full network's; how often the answer is not the full network's."""

MEANING: dict[Measure, str] = {
    "loss": "loss",
    "excess": "loss above the full network's",
    "disagreement": "rate of disagreement with the full network",
}
_MOST = 1 << 20
"""More samples than this are not asked for."""


def risks_of(risk: float | Mapping[Measure, float], measure: Measure | None) -> dict[Measure, float]:
    """The bound on each measure, from one number and its measure ("loss" if none is named) or from several at once.

    Raises:
        InputError: no risk, one that is not in [0, 1), a measure that there is not, or one named twice.
    """
    if isinstance(risk, Mapping):
        if measure is not None:
            raise InputError(f"risk names its measures, {', '.join(risk)}: leave measure= out")
        risks = dict(risk)
    else:
        risks = {measure or "loss": risk}
    if not risks:
        raise InputError('no risk: give one, such as 0.01, or several, such as {"excess": 0.01, "disagreement": 0.05}')
    for name, bound in risks.items():
        if name not in get_args(Measure):
            raise InputError(f"unknown measure {name!r}; choose from {', '.join(get_args(Measure))}")
        if not 0 <= bound < 1:
            raise InputError(f"risk is {bound:g}; it bounds a mean of losses in [0, 1]: at least 0 and below 1")
    return risks


def check_measurable(trace: Trace, risks: Mapping[Measure, float]) -> None:
    """Refuses a trace that the measures cannot be read off, or whose losses no test here is for."""
    if "disagreement" in risks and trace.disagreement is None:
        raise InputError(
            "the trace does not say where answers differ from the last exit's: make it with Trace.from_logits, or give "
            "Trace(..., disagreement=) yourself"
        )
    if set(risks) != {"disagreement"} and (trace.losses.min() < 0 or trace.losses.max() > 1):
        raise InputError(
            f"losses run from {trace.losses.min():g} to {trace.losses.max():g}; a certificate needs them in [0, 1]: "
            "scale them, and the risk with them"
        )


def measured(measure: Measure, stopped_at: Int[Array, " N"], trace: Trace) -> Float[Array, " N"]:
    """The measure of every sample of a trace that stops at the exit given."""
    stops = np.arange(len(trace)), stopped_at
    if measure == "disagreement":
        assert trace.disagreement is not None
        return trace.disagreement[stops].astype(float)
    return trace.losses[stops] - trace.losses[:, -1] if measure == "excess" else trace.losses[stops]


@dataclass(frozen=True)
class RiskTest:
    """A test of "the mean of this measure is above the risk", on independent samples.

    Attributes:
        measure, risk: what is to be shown, a mean of at most `risk`.
        level: chance at most of showing it wrongly.
        tosses: whether the measure is 0 or 1 of every sample; then the test is a coin's, exactly, and else `betting_p`.
    """

    measure: Measure
    risk: float
    level: float
    tosses: bool

    @classmethod
    def of(
        cls, trace: Trace, risk: float | Mapping[Measure, float], confidence: float, measure: Measure | None
    ) -> list[Self]:
        """One test for each risk, chosen before any rule is seen: else the choice would bias it.

        Args:
            trace, risk, confidence, measure: as in `certify`.

        Raises:
            InputError: as `certify`.
        """
        risks = risks_of(risk, measure)
        if not 0 < confidence < 1:
            raise InputError(f"confidence is {confidence:g}; it is a probability below 1: 0.95 for 95%")
        check_measurable(trace, risks)
        zero_one = bool(np.isin(trace.losses, (0, 1)).all())
        tosses = {"loss": zero_one, "excess": False, "disagreement": True}
        return [cls(name, bound, 1 - confidence, tosses[name]) for name, bound in risks.items()]

    def p_value(self, values: Float[Array, " n"]) -> float:
        """Of the samples' values, in an order that has nothing to do with them."""
        if self.tosses:
            return float(binom.cdf(values.sum(), len(values), self.risk))
        return betting_p(values, self.risk, self.level, -1.0 if self.measure == "excess" else 0.0)

    def shows(self, values: Float[Array, " n"]) -> bool:
        """Whether these values show that the mean is at most the risk."""
        return self.p_value(values) <= self.level

    def least(self, samples: int) -> float:
        """The least risk that so many samples can show, if nothing is lost on any of them."""
        nothing, low, high = np.zeros(samples), 1e-9, 1 - 1e-9
        if not replace(self, risk=high).shows(nothing):
            return 1.0
        for _ in range(20):
            middle = sqrt(low * high)
            low, high = (low, middle) if replace(self, risk=middle).shows(nothing) else (middle, high)
        return high

    def takes(self, values: Float[Array, " n"]) -> int | None:
        """About how many samples would show it, two digits, rounded up, if all were like these.

        None where no number would, because the values' mean is not below the risk, or more than a million.
        """
        if values.mean() >= self.risk:
            return None
        low, high = 0, 1
        while not self.shows(np.resize(values, high)):
            low, high = high, 2 * high
            if high > _MOST:
                return None
        while high - low > max(1, high // 200):
            middle = (low + high) // 2
            low, high = (low, middle) if self.shows(np.resize(values, middle)) else (middle, high)
        unit = 10 ** max(0, floor(log10(high)) - 1)
        return ceil(high / unit) * unit


def betting_p(values: Float[Array, " n"], mean: float, level: float, low: float) -> float:
    """p-value of "the expectation is at least `mean`" for independent values in [low, 1], by betting against it.

    The capital of a gambler who bets on each value being below `mean`, a share that only the values before it set, is
    a supermartingale under the hypothesis, so it ever reaches 1/p with chance at most p (Waudby-Smith and Ramdas 2023).
    The shares are theirs for a fixed number of samples, equation (26): they aim at the level, and learn the variance,
    which is what makes rare differences cheap to certify. Rescaling to [0, 1] would change nothing.
    """
    count = np.arange(1, len(values) + 1)
    centre = (mean + np.cumsum(values)) / (count + 1)
    prior = (1 - low) ** 2 / 4
    variance = (prior + np.cumsum((values - centre) ** 2)) / (count + 1)
    before = np.concatenate([[prior], variance[:-1]])
    share = np.minimum(np.sqrt(2 * np.log(1 / level) / (len(values) * before)), 0.5 / (1 - mean))
    capital = np.cumsum(np.log1p(share * (mean - values)))
    return float(np.exp(-max(0.0, capital.max())))
