"""Budgets are held while inputs drift; what was answered is counted, and a drift of the exits is noticed."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from optdepth.errors import InputError
from optdepth.inference.budget import _GAIN, BudgetedEngine
from optdepth.inference.engine import Answer, Engine
from optdepth.inference.monitor import Monitor
from settings import Setting


def family(setting: Setting) -> Engine:
    return Engine(setting.network, list(setting.ladder.values()))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_mean_cost_is_held_while_the_inputs_drift(setting: Setting, share: float) -> None:
    """Easy inputs first, hard ones at the end; a fixed rule's cost moves with them, the budgeted one's does not."""
    engine = family(setting)
    hardness = engine(setting.inputs, price=0.1).cost
    order = torch.argsort(hardness, stable=True)
    easy, hard = order[:200], order[200:]
    low, high = (
        float(engine(setting.inputs, price=price).cost.mean()) for price in (engine.prices[-1], engine.prices[0])
    )
    budget = low + share * (high - low)
    random = np.random.default_rng(0)
    budgeted, paid, fixed = BudgetedEngine(engine, budget, memory=100), [], []
    for step in range(400):
        mix = step / 400  # the share of hard inputs
        rows = torch.tensor([int((hard if random.random() < mix else easy)[random.integers(200)]) for _ in range(16)])
        paid.append(float(budgeted(setting.inputs[rows]).cost.mean()))
        fixed.append(float(engine(setting.inputs[rows], price=0.1).cost.mean()))
    thirds = [np.mean(part) for part in np.array_split(paid[100:], 3)]
    assert np.ptp([np.mean(part) for part in np.array_split(fixed[100:], 3)]) > 0.08 * budget
    assert max(abs(cost / budget - 1) for cost in thirds) < 0.08
    # What is overpaid moves the position, and that by the ladder at most: memory / gain samples' worth, 4% of these.
    assert abs(np.mean(paid[100:]) / budget - 1) < 100 / _GAIN / (300 * 16)


def test_a_budget_needs_rules_to_move_between(setting: Setting) -> None:
    with pytest.raises(InputError, match="rules at several prices"):
        BudgetedEngine(Engine(setting.network, setting.rules["confidence"]), 0.5)
    with pytest.raises(InputError, match="budget 0"):
        BudgetedEngine(family(setting), 0.0)


def answers(exits: np.ndarray, margin: float = 0.55) -> Answer:
    top = torch.tensor([(1 + margin) / 2, (1 - margin) / 2]).log()
    count = len(exits)
    return Answer(top.expand(count, 2), torch.from_numpy(exits), torch.ones(count, dtype=torch.float64), "passes")


def test_counts_and_text_are_those_of_the_answers(setting: Setting) -> None:
    monitor = Monitor(["a", 'b"c'], np.array([0.5, 0.5]))
    monitor.add(answers(np.array([0, 0, 1])))
    monitor.add(answers(np.array([1]), margin=0.99))
    assert monitor.counts.tolist() == [2, 2]
    assert monitor.margins.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 1]
    assert (monitor.samples, monitor.cost) == (4, 4.0)
    text = monitor.prometheus()
    assert 'optdepth_answers_total{exit="a"} 2\n' in text
    assert 'optdepth_answers_total{exit="b\\"c"} 2\n' in text
    assert 'optdepth_margin_bucket{le="0.6"} 3\n' in text
    assert 'optdepth_margin_bucket{le="+Inf"} 4\n' in text
    assert "optdepth_cost_total 4.0\n" in text


def test_drift_is_pearsons_statistic() -> None:
    shares, exits = np.array([0.2, 0.3, 0.5]), np.repeat([0, 1, 2], [30, 30, 40])
    monitor = Monitor(["a", "b", "c"], shares)
    monitor.add(answers(exits))
    known = chisquare([30, 30, 40], 100 * shares)
    assert monitor.drift().statistic == pytest.approx(known.statistic)
    assert monitor.drift().p_value == pytest.approx(known.pvalue)


def test_drift_is_rarely_seen_where_there_is_none_and_always_where_there_is() -> None:
    """At level 5%, 400 times: false alarms within 4 binomial standard errors, an alarm for every real drift."""
    random, shares, moved = np.random.default_rng(0), np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.25, 0.25, 0.25, 0.25])
    false = 0
    for _ in range(400):
        same, other = Monitor(list("abcd"), shares), Monitor(list("abcd"), shares)
        same.add(answers(random.choice(4, 500, p=shares)))
        other.add(answers(random.choice(4, 500, p=moved)))
        false += same.drift().p_value < 0.05
        assert other.drift().p_value < 0.001
    assert abs(false / 400 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)


def test_an_exit_that_was_never_taken_is_a_drift() -> None:
    monitor = Monitor(["a", "b", "c"], np.array([0.5, 0.5, 0.0]))
    monitor.add(answers(np.repeat([0, 1], 50)))
    assert monitor.drift().freedom == 1
    monitor.add(answers(np.array([2])))
    assert monitor.drift().p_value == 0.0


def test_wrong_shares_and_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match="summing to 1"):
        Monitor(["a", "b"], np.array([0.5, 0.6]))
    monitor = Monitor(["a", "b"], np.array([0.5, 0.5]))
    monitor.add(answers(np.array([0])))
    with pytest.raises(InputError, match="too few"):
        monitor.drift()
