"""Bounds: on problems of known value the rule and the dual bound have it between them; used samples judge nothing."""

import numpy as np
import pytest

from conftest import noisy_trace
from optdepth.errors import InputError
from optdepth.stopping.baselines import confidence
from optdepth.stopping.bounds import Gap, dual, gap, prophet
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.gain import GainRule
from optdepth.stopping.regression import CrossFit, Ramps
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from problems import MAX_CALL_VALUE, PUT_VALUES, american_put, max_call
from problems_discrete import PROBLEMS


def induced(trace: Trace, price: float) -> GainRule:
    """Backward induction alone, for speed where a good rule will do: Longstaff and Schwartz on the gain of going on."""
    values = trace.losses + price * trace.costs.paid()
    follows, gains = values[:, -1], []
    for k in reversed(range(trace.n_exits - 1)):
        seen = trace.observations[:, k]
        fit = CrossFit(Ramps.of(seen, 8), seen).fit(values[:, k] - follows)
        gains.insert(0, fit.function())
        follows = np.where(fit.predicted <= 0, values[:, k], follows)
    return GainRule(Origin.of(trace, price), trace.features, gains)


@pytest.mark.parametrize(
    ("simulate", "known"), [(american_put, PUT_VALUES[36, 0.2, 1]), (max_call, MAX_CALL_VALUE)], ids=["put", "max-call"]
)
def test_rule_and_dual_bound_bracket_the_published_value_of_an_option(simulate, known: float) -> None:
    fit, test = simulate(20_000, seed=1), simulate(20_000, seed=2)
    rule = induced(fit, 0.0)
    found, bound = gap(rule, fit, test, price=0.0), dual(rule, fit, test, price=0.0)
    earned = evaluate(rule, test)
    assert -earned.loss <= known + 2 * earned.loss_error
    assert -found.value <= known + 3 * bound.error
    assert known - 3 * bound.error <= -bound.value <= known * 1.02 + 3 * bound.error
    assert found.value == pytest.approx(earned.loss, abs=4 * earned.loss_error)
    assert found.bound == bound.value


@pytest.mark.parametrize("name", PROBLEMS)
def test_on_a_problem_solved_exactly_the_bound_is_near_the_value_and_far_above_hindsight(name: str) -> None:
    fit, test = PROBLEMS[name](10_000, 1), PROBLEMS[name](10_000, 2)
    rule = induced(fit.trace, fit.price)
    bound, best = dual(rule, fit.trace, test.trace, price=fit.price), prophet(test.trace, price=fit.price)
    # The error counts the test samples; the regressions' own noise is within 1% of what hindsight would gain.
    slack = 3 * bound.error + 0.01 * (fit.value - best.value)
    assert fit.value - 0.2 * (fit.value - best.value) <= bound.value <= fit.value + slack


def test_the_bound_does_not_see_the_label_and_so_is_far_tighter_than_hindsight(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    for price in (0.05, 0.2):
        found = gap(snell(fit, price=price), fit, test, price=price)
        best = prophet(test, price=price)
        assert best.value < found.bound <= found.value < found.fixed
        assert 0 <= found.share < 0.6
        assert (found.value - found.bound) < 0.5 * (found.value - best.value)


def test_a_gap_reads_as_a_sentence(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    text = str(Gap(value=0.11, bound=0.1, fixed=0.2, depth=5, error=0.01))
    assert text.startswith(
        "the rule is within 10.0% ± 1.0% of the best any rule could do with these observations (estimated): 0.1100"
    )
    alone = gap(FixedDepth(Origin.of(fit), 7), fit, test, price=0.0)
    assert alone.value == alone.bound == alone.fixed  # there is no other exit to look at
    assert np.isnan(alone.share)
    nothing = gap(confidence(fit, price=100.0), fit, test, price=100.0)
    assert np.isnan(nothing.share)
    assert "no rule that looks at these exits betters the fixed depth of exit 0" in str(nothing)


def test_a_worse_rule_leaves_a_larger_gap(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    good, bad = confidence(fit, price=0.05), confidence(fit, price=0.8)
    shares = [gap(rule, fit, test, price=0.05).share for rule in (good, bad)]
    assert shares[0] < 0.5 < shares[1]


def test_samples_that_fitted_may_not_judge(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    rule = confidence(fit, price=0.1)
    with pytest.raises(InputError, match="4000 samples are in both fit and test"):
        dual(rule, fit, fit, price=0.1)
    with pytest.raises(InputError, match="4,000 of these samples fitted the rule"):
        dual(confidence(test, price=0.1), fit, test, price=0.1)
    with pytest.raises(InputError, match="decides between 8 exits, but here are 3"):
        gap(rule, fit, noisy_trace(50, exits=3), price=0.1)
