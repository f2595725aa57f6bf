"""Certificates on cost and risk together: right as often as they say, given where they can be, and refused in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold, confidence
from optdepth.stopping.certify import Certificate, certify
from optdepth.stopping.evaluate import applied
from optdepth.stopping.rule import Origin
from optdepth.trace import Trace

COSTS = Costs.of([0.5, 1.0])
RULES = [Threshold(Origin(COSTS), "score", torch.tensor([cut])) for cut in np.linspace(1, 0, 26)]


def draw(samples: int, seed: int) -> Trace:
    """A uniform score u; the first answer is wrong with chance (1 - u) / 2, the last with 0.05."""
    random = np.random.default_rng(seed)
    score = random.random(samples)
    losses = np.column_stack([random.random(samples) < (1 - score) / 2, random.random(samples) < 0.05])
    seen = np.repeat(score[:, None, None], 2, axis=1)
    return Trace(losses.astype(float), seen, COSTS, ("score",), identity=(seed << 32) + np.arange(samples))


def risk_at(cut: float) -> float:
    return (1 - cut) ** 2 / 4 + 0.05 * cut


def cost_at(cut: float) -> float:
    return 0.5 + 0.5 * cut


def cut_of(found: Certificate) -> float:
    return float(found.rule.thresholds[0]) if isinstance(found.rule, Threshold) else 1.0


@pytest.mark.usefixtures("repeated")
def test_of_150_certificates_on_risk_and_cost_few_enough_break_either() -> None:
    """A loss of 0.1 is kept down to a mean cost of 0.721, so the ceiling is near to where no certificate is right."""
    ceiling = 0.735
    found = [certify(RULES, draw(1_000, seed), risk=0.1, confidence=0.9, cost=ceiling) for seed in range(150)]
    given = [cut_of(each) for each in found if each.certified]
    broken = sum(risk_at(cut) > 0.1 or cost_at(cut) > ceiling for cut in given)
    assert broken <= binom.ppf(0.999, 150, 0.1)


@pytest.mark.usefixtures("repeated")
def test_a_ceiling_that_can_be_shown_is_and_costs_little_of_the_rest() -> None:
    both = [certify(RULES, draw(2_000, seed), risk=0.1, confidence=0.9, cost=0.8) for seed in range(30)]
    alone = [certify(RULES, draw(2_000, seed), risk=0.1, confidence=0.9) for seed in range(30)]
    assert sum(each.certified for each in both) >= 29
    costs = [np.mean([cost_at(cut_of(each)) for each in group]) for group in (both, alone)]
    assert costs[0] <= costs[1] + 0.01
    assert "the loss is at most 0.1 and the mean cost at most 0.8" in str(both[0])


def test_what_cannot_be_shown_is_said_and_nothing_is_promised() -> None:
    found = certify(RULES, draw(500, 0), risk=0.1, confidence=0.9, cost=0.6)
    assert not found.certified
    assert not found.gained
    assert "costs at most 0.6 on average; there it costs" in str(found)


def test_where_samples_differ_in_cost_the_most_is_asked_for() -> None:
    trace, other = draw(600, 1), draw(2_000, 2)
    scale = np.random.default_rng(0).uniform(0.5, 1.5, 2_600)[:, None]
    fit = replace(trace, costs=Costs.of(scale[:600] * COSTS.reach, unit="tokens"))
    held = replace(other, costs=Costs.of(scale[600:] * COSTS.reach, unit="tokens"))
    renamed = [replace(each, features=("confidence",)) for each in (fit, held)]
    family = confidence(renamed[0])
    with pytest.raises(InputError, match="say most=, the most that a sample can cost in tokens"):
        family.certified(renamed[1], risk=0.15, confidence=0.9, cost=0.8)
    with pytest.raises(InputError, match=r"most is 1, and a sample costs 1\.\d+"):
        family.certified(renamed[1], risk=0.15, confidence=0.9, cost=0.8, most=1.0)
    for ceiling in (0.0, 2.0, float("nan")):
        with pytest.raises(InputError, match=r"a ceiling is above 0 and below the most, 1\.5"):
            family.certified(renamed[1], risk=0.15, confidence=0.9, cost=ceiling, most=1.5)
    found = family.certified(renamed[1], risk=0.15, confidence=0.9, cost=0.8, most=1.5)
    assert found.certified
    assert applied(found.rule, renamed[1]).cost < 0.8
