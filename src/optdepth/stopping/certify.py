"""Certificates (theory, section 9): a bound on a rule's risk that holds with a stated confidence.

Learn-then-Test (Angelopoulos et al. 2021; for early exits Jazbec et al. 2024, arXiv:2405.20915): every rule of a family
is a hypothesis "its risk is above alpha". Tested in a fixed order, from the rule that never stops early to the most
eager, each at the full level and only until the first that cannot be rejected, the chance of any wrong rejection is at
most the level; so any of the rejected may be taken, and the cheapest is.

Several risks of one rule are one hypothesis, "any of them is above its bound". It is rejected where each alone is, at
the full level and without correction: a rule that breaks one bound passes only if that test errs, whatever the others
say (the intersection-union test; Berger 1982, Technometrics 24, 295-300).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from math import ceil, floor, log10

import numpy as np

from ..errors import InputError
from ..trace import Trace
from .ceiling import Ceiling
from .evaluate import Evaluation, evaluate
from .risks import MEANING, Measure, RiskTest, measured
from .rule import FixedDepth, Origin, Rule


@dataclass(frozen=True)
class Promise:
    """One bound.

    Attributes:
        measure: what is bounded.
        risk: the bound, alpha.
        observed: mean of the measure on the samples certified on.
    """

    measure: Measure
    risk: float
    observed: float


@dataclass(frozen=True)
class Shortfall:
    """Why a rule could not be shown to keep a bound.

    Attributes:
        measure, risk: the bound.
        observed: mean of the measure, of that rule on the samples.
        least: where the samples are too few for any rule, the least risk that so many can show, of a rule that loses
            nothing on them; else None.
        takes: about how many samples would do for such a rule; or, where there are enough for it, for the rule at hand.
            None where no number would, or more than a million.
    """

    measure: Measure
    risk: float
    observed: float
    least: float | None
    takes: int | None

    @classmethod
    def of(cls, test: RiskTest, values: np.ndarray) -> Shortfall:
        """Of values that did not pass a test."""
        nothing = np.zeros(len(values))
        few = not test.shows(nothing)
        return cls(
            measure=test.measure,
            risk=test.risk,
            observed=float(values.mean()),
            least=test.least(len(values)) if few else None,
            takes=test.takes(nothing if few else values),
        )

    def said(self, samples: int) -> str:
        """As part of a sentence about so many samples."""
        bound = percent(self.risk)
        if self.least is not None:
            enough = f"{bound} takes {f'about {self.takes:,}' if self.takes else 'more than a million'}"
            least = f"{samples:,} samples can show a risk of {percent(_up(self.least))} at the least"
            return f"{least}; {enough if self.risk else f'no number shows {bound}'}"
        observed = f"a {MEANING[self.measure]} of {self.observed:.4f}, as on them,"
        if self.takes:
            return f"with {observed} {bound} takes about {self.takes:,}"
        return f"{observed} is {'not below' if self.observed >= self.risk else 'too near to'} {self.risk:g}"


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is promised of a rule, on which data, with what confidence.

    Attributes:
        rule: the cheapest rule certified; the full depth where none is. Where a ceiling alone is not shown, the
            cheapest that keeps the rest.
        promises: what is bounded, by how much, and what was observed of the rule. All hold at once.
        confidence: chance, over the draw of the samples, that a certificate is right.
        certified: whether the promises hold; False when not even the full network's risk could be shown to be within
            its bound.
        cost, full_cost: mean cost of the rule on the samples, and of the full network, in the trace's unit.
        samples: how many were tested on, no two of the same content.
        duplicates: how many more there were, whose content fitted a rule or was among those tested on already: no
            evidence of their own, and left out.
        digest: names the samples.
        tested: how many rules were tested.
        short: where nothing was gained, why the first rule that failed did, by the bounds that it failed; else empty.
        ceiling: the bound on the mean cost, certified with the promises; None where none was asked for.
        within: whether it was shown of the rule; True where none was asked for.
    """

    rule: Rule
    promises: tuple[Promise, ...]
    confidence: float
    certified: bool
    cost: float
    full_cost: float
    samples: int
    duplicates: int
    digest: str
    tested: int
    short: tuple[Shortfall, ...]
    ceiling: float | None = None
    within: bool = True

    @property
    def gained(self) -> bool:
        """Whether the rule costs less than the full network: False where nothing but the full depth could be shown."""
        return self.certified and _cheaper(self.cost, self.full_cost)

    def __str__(self) -> str:
        on = f"{self.samples:,} samples" + (f" ({self.duplicates:,} duplicates left out)" if self.duplicates else "")
        sure = f"with {percent(self.confidence)} confidence"
        if not self.within:
            kept = " and ".join(f"a {MEANING[each.measure]} of at most {each.risk:g}" for each in self.promises)
            return (
                f"nothing is certified: {on} do not show {sure} that the cheapest rule shown to keep {kept} costs at "
                f"most {self.ceiling:g} on average; there it costs {self.cost:.4g}"
            )
        if not self.certified:
            (loss,) = self.short
            return (
                f"nothing is certified: {on} do not show {sure} that even the full network's loss is at most "
                f"{loss.risk:g}; {loss.said(self.samples)}; the rule is the full depth"
            )
        bounds = " and ".join(f"the {MEANING[each.measure]} is at most {each.risk:g}" for each in self.promises)
        bounds += f" and the mean cost at most {self.ceiling:g}" if self.ceiling is not None else ""
        if not self.gained:
            kept = "it" if len(self.promises) == 1 else "them"
            nothing = (
                f"{sure} {bounds} at the full depth, and nothing is gained: no cheaper rule could be shown on {on} to"
            )
            return "; ".join([f"{nothing} keep within {kept}", *(each.said(self.samples) for each in self.short)])
        observed = " and ".join(f"{each.observed:.4f}" for each in self.promises)
        return (
            f"{sure} {bounds}: {observed} on {on}, at a mean cost of {self.cost:.4g}, where the full network takes "
            f"{self.full_cost:.4g} ({self.tested} rules tested in order)"
        )


def certify(
    rules: Iterable[Rule],
    trace: Trace,
    *,
    risk: float | Mapping[Measure, float],
    confidence: float,
    measure: Measure | None = None,
    cost: float | None = None,
    most: float | None = None,
    seed: int = 0,
) -> Certificate:
    """The cheapest rule whose risk is shown to be at most `risk`, by fixed-sequence testing.

    The full depth is tested first; by definition it has neither excess nor disagreement. A rule passes when it keeps
    every bound asked for. Losses that are all 0 or 1 are taken for a 0-1 loss and tested as a coin's tosses, exactly,
    as disagreement is; others by `betting_p`.

    A sample counts once: one with the content of an earlier sample, or of one that fitted a rule, is left out. Those
    are duplicates in the data. Samples that themselves fitted a rule are refused; `samples.Samples` tells them apart.

    Args:
        rules: from the one that stops least to the most eager, in an order that the trace had no part in.
        trace: samples that fitted nothing, drawn independently from the law that the promise is for; losses in [0, 1].
        risk: the bound, alpha, in [0, 1); or several that are to hold at once, each by its measure:
            {"excess": 0.01, "disagreement": 0.05}.
        confidence: of the promise, over the draw of the samples, in (0, 1).
        measure: what a single risk bounds, a mean over the law: "loss" (if none is named); "excess", the loss above
            the full network's; or "disagreement", how often the answer is not the full network's.
        cost: a bound on the mean cost, in the trace's unit, that is to hold together with the risk.
        most: with it, the most that a sample can cost where samples differ, such as a limit of tokens.
        seed: of the order in which `betting_p` meets the samples.

    Raises:
        InputError: a risk, confidence, measure or cost that is none; losses outside [0, 1]; disagreement asked of a
            trace that does not tell it; samples that fitted a rule, or none that is left.
    """
    rules, given = list(rules), len(trace)
    trace = _independent(trace, rules)
    level = (1 - confidence) / (1 if cost is None else 2)
    tests = RiskTest.of(trace, risk, 1 - level, measure)
    ceiling = None if cost is None else Ceiling.of(trace, cost, most, level)
    full = FixedDepth(Origin(trace.costs, trace.network, recall=trace.recall), trace.n_exits - 1)
    order = np.random.default_rng(seed).permutation(len(trace))
    passed: list[tuple[Rule, Evaluation]] = []
    tested = 0
    failed: list[tuple[RiskTest, np.ndarray]] = []
    for rule in chain([full], rules):
        found = evaluate(rule, trace)
        # The full depth has neither excess nor disagreement, so there only its loss is in doubt.
        doubted = [test for test in tests if rule is not full or test.measure == "loss"]
        tested += bool(doubted)
        values = [measured(test.measure, found.stopped_at, trace)[order] for test in doubted]
        failed = [(test, each) for test, each in zip(doubted, values, strict=True) if not test.shows(each)]
        if failed:
            break
        passed.append((rule, found))
    rule, found = min(passed, key=lambda pair: pair[1].cost, default=(full, evaluate(full, trace)))
    within = True
    if ceiling is not None and passed:
        # From the most eager on, whose cost is least in doubt: all up to the rule are to be shown, as in any sequence.
        behind = rules[rules.index(rule) + 1 :] if rule in rules else rules
        within = all(ceiling.shows(evaluate(each, trace).costs[order]) for each in (*reversed(behind), rule))
    cheaper = _cheaper(found.cost, trace.costs.full)
    means = {test: float(measured(test.measure, found.stopped_at, trace).mean()) for test in tests}
    return Certificate(
        rule=rule,
        promises=tuple(Promise(test.measure, test.risk, mean) for test, mean in means.items()),
        confidence=confidence,
        certified=bool(passed) and within,
        cost=found.cost,
        full_cost=trace.costs.full,
        samples=len(trace),
        duplicates=given - len(trace),
        digest=trace.samples.digest,
        tested=tested,
        short=tuple(Shortfall.of(test, each) for test, each in failed if not cheaper),
        ceiling=cost,
        within=within,
    )


def _independent(trace: Trace, rules: Sequence[Rule]) -> Trace:
    """The samples that are evidence about all of the rules, each content once."""
    origins = {id(rule.origin.fitted_on.identity): rule.origin for rule in rules}.values()  # most have one in common
    for origin in origins:
        origin.check_unused(trace)
    fresh = trace.samples.fresh(*(origin.fitted_on for origin in origins))
    if not fresh.any():
        raise InputError(f"all {len(trace):,} samples have the content of samples that fitted the rules: record others")
    return trace if fresh.all() else trace.select(fresh)


def percent(share: float) -> str:
    """A share in percent, to its last digit: 0.995 is 99.5%."""
    return f"{(Decimal(repr(float(share))) * 100).normalize():f}%"


def _cheaper(cost: float, full: float) -> bool:
    """Beyond the rounding of a mean."""
    return cost < full * (1 - 1e-9)


def _up(share: float) -> float:
    """Two digits, rounded up."""
    digits = 1 - floor(log10(share))
    return round(ceil(share * 10**digits) / 10**digits, digits)
