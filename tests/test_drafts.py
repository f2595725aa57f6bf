"""When to stop drafting: closed forms, laws that are known, and bounds."""

import numpy as np
import pytest

from optdepth.errors import InputError
from optdepth.stopping.drafts import DraftCosts, DraftRule, DraftTrace, drafts_pay, foreseen_rate, solve_drafts

VERIFY = np.array([1.0, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6])


def trace_of(confidence: np.ndarray, chance: np.ndarray, seed: int) -> DraftTrace:
    """Drafts that agree by these chances, in texts of 50 tokens."""
    agrees = np.random.default_rng(seed).random(len(chance)) < chance
    return DraftTrace(confidence, agrees.astype(float), np.arange(len(chance)) % 50 == 0)


def passes_alone(rule: DraftRule, confidence: float) -> int:
    """Passes of a round in which the lens says the same at every draft."""
    survive, cell = 1.0, len(rule.chance)
    for j in range(rule.most):
        if j == rule.most - 1 or survive < rule.look[j, cell]:
            return j + 1
        cell = int(rule.cells(np.array([confidence]))[0])
        survive *= rule.chance[cell]
        if survive < rule.go[j, cell]:
            return j + 1
    return rule.most


def written(rule: DraftRule, trace: DraftTrace, costs: DraftCosts) -> float:
    """Tokens per millisecond of a rule along a text; drafts behind one that is lost are as those along it."""
    tokens = spent = at = 0.0
    while at < len(trace.agrees) - rule.most:
        survive, cell, kept, lost, looks = 1.0, len(rule.chance), 0, False, 0
        for j in range(rule.most):
            passes = j + 1
            if j == rule.most - 1 or survive < rule.look[j, cell]:
                break
            i = int(at) + j
            looks, cell = looks + 1, int(rule.cells(trace.confidence[i : i + 1])[0])
            survive *= rule.chance[cell]
            if survive < rule.go[j, cell]:
                break
            lost |= not trace.agrees[i]
            kept += not lost
        spent += passes * costs.draft + looks * costs.look + costs.verify[passes - 1]
        tokens, at = tokens + kept + 1, at + kept + 1
    return tokens / spent


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.95])
def test_drafts_that_agree_by_one_chance_have_one_best_length(chance: float) -> None:
    costs = DraftCosts(1.1, 0.15, 0.0, VERIFY)
    count = 20_000
    agrees = (np.arange(count) % 20 < 20 * chance).astype(float)
    rule = solve_drafts(DraftTrace(np.full(count, 0.5), agrees, np.zeros(count, dtype=bool)), costs)
    length = np.arange(1, 9)
    rates = (1 - chance**length) / (1 - chance) / (length * 0.15 + VERIFY)
    assert passes_alone(rule, 0.5) == length[rates.argmax()]
    assert rule.rate == pytest.approx(rates.max(), rel=2e-3)
    assert drafts_pay(rule, costs) == (rates.max() * 1.1 > 1.03)


def test_a_lens_that_knows_is_worth_more_than_any_length(repeated: None) -> None:
    """Half of the drafts agree 95 times in 100, half of them 10 times, and the lens says which."""
    random = np.random.default_rng(0)
    sure = random.random(10_000) < 0.5
    trace = trace_of(np.where(sure, 0.9, 0.2), np.where(sure, 0.95, 0.1), 1)
    judge = trace_of(np.where(sure, 0.9, 0.2)[::-1].copy(), np.where(sure, 0.95, 0.1)[::-1].copy(), 2)
    costs = DraftCosts(1.1, 0.15, 0.02, VERIFY)
    rule = solve_drafts(trace, costs)
    assert passes_alone(rule, 0.2) == 1
    assert passes_alone(rule, 0.9) > 4
    assert written(rule, judge, costs) == pytest.approx(rule.rate, rel=0.05)
    fixed = max(written(DraftRule.fixed(passes), judge, DraftCosts(1.1, 0.15, 0.0, VERIFY)) for passes in range(1, 9))
    assert written(rule, judge, costs) > 1.1 * fixed
    assert written(rule, judge, costs) < foreseen_rate(judge, costs)


def test_a_dear_look_is_not_taken() -> None:
    trace = trace_of(np.full(2_000, 0.5), np.full(2_000, 0.9), 0)
    rule = solve_drafts(trace, DraftCosts(1.15, 0.15, 5.0, VERIFY))
    assert passes_alone(rule, 0.5) == 1
    assert rule.rate == pytest.approx(1 / 1.15, rel=1e-6)
    assert not drafts_pay(rule, DraftCosts(1.15, 0.15, 5.0, VERIFY))


def test_who_knows_ahead_cuts_the_text_as_is_best() -> None:
    agrees = np.array([1.0, 1, 0, 1] * 8)
    trace = DraftTrace(np.full(32, 0.5), agrees, np.arange(32) % 4 == 0)
    flat = DraftCosts(1.0, 0.0, 0.0, np.ones(8))
    assert foreseen_rate(trace, flat) == pytest.approx(32 / 16)  # three tokens in a round, one in the next
    rising = DraftCosts(1.0, 0.0, 0.0, np.arange(1.0, 9.0))
    assert foreseen_rate(trace, rising) == pytest.approx(1.0)


def test_a_fixed_rule_goes_on_whatever_the_lens_says() -> None:
    for passes in (1, 2, 5):
        assert passes_alone(DraftRule.fixed(passes), 0.0) == passes
    with pytest.raises(InputError, match="0 passes"):
        DraftRule.fixed(0)


def test_too_few_drafts_are_refused() -> None:
    with pytest.raises(InputError, match="3 recorded drafts: give texts with 16 or more"):
        DraftTrace(np.ones(3), np.ones(3), np.zeros(3, dtype=bool))
