"""Certificates (theory, section 9): a bound on a rule's risk that holds with a stated confidence.

Learn-then-Test (Angelopoulos et al. 2021; for early exits Jazbec et al. 2024, arXiv:2405.20915): every rule of a family
is a hypothesis "its risk is above alpha". Tested in a fixed order, from the rule that never stops early to the most
eager, each at the full level and only until the first that cannot be rejected, the chance of any wrong rejection is at
most the level; so any of the rejected may be taken, and the cheapest is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import binom

from ..errors import InputError
from ..trace import Trace
from .evaluate import Evaluation, applied, evaluate
from .price import Family
from .rule import FixedDepth, Origin, Rule, samples_digest

Array = np.ndarray
Measure = Literal["loss", "excess", "disagreement"]
"""What is bounded: the loss; the loss above the full network's; how often the answer is not the full network's."""

_MEANING: dict[Measure, str] = {
    "loss": "loss",
    "excess": "loss above the full network's",
    "disagreement": "rate of disagreement with the full network",
}
_RUNGS, _FINE = 24, 0.002
"""Rules that a sweep of prices makes; steps in mean cost, as shares of the full network's, that are fine enough."""
_CHEAPEST, _DEAREST = 1 / 256, 1e9
"""Prices that the sweep starts and ends at, times the losses' range over the full network's cost."""
_NEAR = 1.1
"""Prices less than this factor apart are not told apart: a jump in cost between them is one that the rules make."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is promised of a rule, on which data, with what confidence.

    Attributes:
        rule: the cheapest rule certified; the full depth where none is.
        measure: what is bounded.
        risk: the bound, alpha.
        confidence: chance, over the draw of the samples, that a certificate is right.
        certified: whether the promise holds; False when not even the full network's risk could be shown to be within
            the bound.
        observed: mean of the measure on the samples.
        cost, full_cost: mean cost of the rule on them, and of the full network, in the trace's unit.
        samples: how many.
        digest: names the samples.
        tested: how many rules were tested.
    """

    rule: Rule
    measure: Measure
    risk: float
    confidence: float
    certified: bool
    observed: float
    cost: float
    full_cost: float
    samples: int
    digest: str
    tested: int

    def __str__(self) -> str:
        meaning, on = _MEANING[self.measure], f"{self.samples:,} samples"
        if not self.certified:
            return (
                f"nothing is certified: the full network's {meaning}, {self.observed:.4f} on {on}, does not show with "
                f"{self.confidence:.0%} confidence that it is at most {self.risk:g}; the rule is the full depth"
            )
        promise = f"with {self.confidence:.0%} confidence the {meaning} is at most {self.risk:g}"
        if isinstance(self.rule, FixedDepth):
            return f"{promise} at the full depth; no rule that stops early could be shown on {on} to keep within it"
        return (
            f"{promise}: {self.observed:.4f} on {on}, at a mean cost of {self.cost:.4g}, where the full network takes "
            f"{self.full_cost:.4g} ({self.tested} rules tested in order)"
        )


def certify(
    rules: Iterable[Rule],
    trace: Trace,
    *,
    risk: float,
    confidence: float,
    measure: Measure = "loss",
    seed: int = 0,
) -> Certificate:
    """The cheapest rule whose risk is shown to be at most `risk`, by fixed-sequence testing.

    The full depth is tested first; by definition it has neither excess nor disagreement. Losses that are all 0 or 1 are
    taken for a 0-1 loss and tested as a coin's tosses, exactly; others by `betting_p`. A trace for "disagreement" is
    one whose losses say where an exit's answer is not the last exit's; it needs no label:
    `Trace.from_logits(logits, logits[:, -1].argmax(-1), costs)`.

    Args:
        rules: from the one that stops least to the most eager, in an order that the trace had no part in.
        trace: samples that fitted nothing, drawn independently from the law that the promise is for; losses in [0, 1].
        risk: the bound, alpha, in [0, 1).
        confidence: of the promise, over the draw of the samples, in (0, 1).
        measure: what is bounded, a mean over the law.
        seed: of the order in which `betting_p` meets the samples.

    Raises:
        InputError: the samples fitted one of the rules; losses outside [0, 1]; losses that are no disagreement.
    """
    _check(trace, risk, confidence, measure)
    full = FixedDepth(Origin(trace.costs, trace.network, recall=trace.recall), trace.n_exits - 1)
    alone: tuple[Rule, Evaluation] = full, evaluate(full, trace)
    passed = [] if measure == "loss" else [alone]
    level, order = 1 - confidence, np.random.default_rng(seed).permutation(len(trace))
    # What decides the test is a property of the measure, not of the rule at hand: else the choice would bias it.
    tosses = measure != "excess" and bool(np.isin(trace.losses, (0, 1)).all())
    tested = 0
    for rule in rules if passed else chain([full], rules):
        found = evaluate(rule, trace)
        tested += 1
        values = _measured(found, trace, measure)
        low = -1.0 if measure == "excess" else 0.0
        p = binom.cdf(values.sum(), len(values), risk) if tosses else betting_p(values[order], risk, level, low)
        if p > level:
            break
        passed.append((rule, found))
    rule, found = min(passed, key=lambda pair: pair[1].cost, default=alone)
    return Certificate(
        rule=rule,
        measure=measure,
        risk=risk,
        confidence=confidence,
        certified=bool(passed),
        observed=float(_measured(found, trace, measure).mean()),
        cost=found.cost,
        full_cost=trace.costs.full,
        samples=len(trace),
        digest=samples_digest(trace),
        tested=tested,
    )


def certified(
    family: Family,
    fit: Trace,
    certify_on: Trace,
    *,
    risk: float,
    confidence: float,
    measure: Measure = "loss",
    seed: int = 0,
) -> Certificate:
    """Certifies over the rules that a sweep of the price makes; arguments and errors as in `certify`.

    Args:
        family: the rules by price, fitted on the samples of `fit`.
        fit: those samples, under the same measure; they choose the prices, so that no sample certified on does.
        certify_on: other samples.

    Raises:
        InputError: a sample is in both traces; the exits cost nothing.
    """
    if shared := fit.overlap(certify_on):
        raise InputError(
            f"{shared} samples are in both the fit and the certify split; a certificate needs samples that fitted "
            "nothing: use Trace.split"
        )
    _check(certify_on, risk, confidence, measure)
    rules = ladder(family, fit, risk=risk, measure=measure)
    return certify(rules, certify_on, risk=risk, confidence=confidence, measure=measure, seed=seed)


def ladder(family: Family, fit: Trace, *, risk: float, measure: Measure = "loss") -> list[Rule]:
    """Rules of a family at rising prices, about even in mean cost, up to the first clearly above the risk on `fit`."""
    if fit.costs.full <= 0:
        raise InputError("the exits cost nothing, so there is nothing to save: certify rules of your own")
    rungs: dict[float, tuple[Rule, float]] = {}

    def climb(price: float) -> bool:
        rule = family(price)
        found = applied(rule, fit)
        rungs[price] = rule, found.cost
        measured = _measured(found, fit, measure)
        hopeless = measured.mean() - 2 * measured.std() / np.sqrt(len(fit)) > risk
        return not hopeless and found.cost > fit.costs.paid()[0] * (1 + 1e-6)

    unit = float(np.ptp(fit.losses) or 1.0) / fit.costs.full
    price = 0.0
    while climb(price) and price < _DEAREST * unit:
        price = 4 * price or _CHEAPEST * unit
    while len(rungs) < _RUNGS:
        steps = [
            (abs(rungs[low][1] - rungs[high][1]), low, high)
            for low, high in pairwise(sorted(rungs))
            if high > max(_NEAR * low, 1e-3 * _CHEAPEST * unit)
        ]
        step, low, high = max(steps, default=(0.0, 0.0, 0.0))
        if step < _FINE * fit.costs.full:
            break
        climb(float(np.sqrt(low) * np.sqrt(high)) or high / 4)
    return [rungs[price][0] for price in sorted(rungs)]


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


def _measured(found: Evaluation, trace: Trace, measure: Measure) -> Float[Array, " N"]:
    return found.losses - trace.losses[:, -1] if measure == "excess" else found.losses


def _check(trace: Trace, risk: float, confidence: float, measure: Measure) -> None:
    if measure not in get_args(Measure):
        raise InputError(f"unknown measure {measure!r}; choose from {', '.join(get_args(Measure))}")
    if not 0 <= risk < 1:
        raise InputError(f"risk is {risk:g}; it bounds a mean of losses in [0, 1]: at least 0 and below 1")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence:g}; it is a probability below 1: 0.95 for 95%")
    if trace.losses.min() < 0 or trace.losses.max() > 1:
        raise InputError(
            f"losses run from {trace.losses.min():g} to {trace.losses.max():g}; a certificate needs them in [0, 1]: "
            "scale them, and the risk with them"
        )
    if measure == "disagreement" and (trace.losses[:, -1].any() or not np.isin(trace.losses, (0, 1)).all()):
        raise InputError(
            "the losses do not say where answers differ from the last exit's: they are not 0 there and 0 or 1 before; "
            "make the trace with Trace.from_logits(logits, logits[:, -1].argmax(-1), costs)"
        )
