"""Numbers of any size: no decision depends on the unit of losses or costs, and no observation is beyond the fits."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from conftest import noisy_logits, noisy_trace
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import confidence, entropy
from optdepth.stopping.family import Family
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.placed import placed
from optdepth.stopping.placement import place
from optdepth.stopping.regression import Hinges, Ramps, Regression, bases
from optdepth.stopping.rule import Rule
from optdepth.stopping.scale import exponent, priced, weighed
from optdepth.stopping.snell import snell
from optdepth.trace import Trace

SOLVERS = {
    "snell": snell,
    "lookahead": lookahead,
    "placed": placed,
    "confidence": confidence,
    "entropy per exit": partial(entropy, per_exit=True),
}
TINY, HUGE = 2.0**-564, 2.0**996
"""Powers of two, so that what is scaled by them is scaled without rounding; about 1e-170 and 1e300."""


def in_unit(trace: Trace, unit: float) -> Trace:
    """The same trace with losses counted in another unit, and nothing expected of them but what they are."""
    return Trace(trace.losses * unit, trace.observations, trace.costs, trace.features)


def of_numbers(samples: int) -> Trace:
    """Losses that are no 0-1 losses, as a made-up network's are."""
    trace = noisy_trace(samples, exits=4)
    return Trace(
        0.8 * trace.losses + 0.1 * trace.observations[:, :, 0], trace.observations, trace.costs, trace.features
    )


@pytest.mark.parametrize("unit", [TINY, 2.0**-140, 2.0**140, HUGE], ids="{:.0e}".format)
@pytest.mark.parametrize("name", SOLVERS)
def test_no_decision_depends_on_the_unit_of_the_losses(name: str, unit: float) -> None:
    trace = of_numbers(300)
    for price in (0.0, 0.1):
        expected = SOLVERS[name](trace, price=price).stopped_at(trace)
        found = SOLVERS[name](in_unit(trace, unit), price=price * unit).stopped_at(trace)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("price", [1e20, 1e38, 1e39, 1e160, 1.7e308])
@pytest.mark.parametrize("name", SOLVERS)
def test_at_a_price_beyond_all_losses_everything_stops_at_once(name: str, price: float) -> None:
    trace = of_numbers(300)
    for costs in (trace.costs, Costs.of(1e9 * trace.costs.reach, unit="FLOPs")):
        dear = Trace(trace.losses, trace.observations, costs, trace.features)
        assert (SOLVERS[name](dear, price=price).stopped_at(dear) == 0).all()


def test_the_sweep_of_a_certificate_ends_whatever_the_unit() -> None:
    """Rungs are halfway between prices whose product is below the least number there is."""
    rungs = []
    for unit in (1.0, TINY):
        trace, prices = in_unit(of_numbers(300), unit), list[float]()
        family = confidence(trace)

        def asked(price: float, family: Family = family, prices: list[float] = prices) -> Rule:
            prices.append(price)
            return family.at(price)

        rules = Family(trace, asked).ladder(risk=0.9 * unit, measure="loss")
        assert len(rules) == len(prices) == len(set(prices)) <= 60
        rungs.append([rule.stopped_at(trace).tolist() for rule in rules])
    assert rungs[0] == rungs[1]


def test_a_budget_is_met_in_any_unit() -> None:
    trace = of_numbers(300)
    for budget in (0.3, 0.6):
        expected, found = (confidence(t, budget=budget) for t in (trace, in_unit(trace, TINY)))
        np.testing.assert_array_equal(found.stopped_at(trace), expected.stopped_at(trace))


def test_placements_are_reported_in_the_unit_of_the_losses() -> None:
    trace = of_numbers(300)
    one, other = place(trace, price=0.1), place(in_unit(trace, TINY), price=0.1 * TINY)
    assert other.kept == one.kept
    assert [other.value, other.error, other.every, other.last] == [
        TINY * value for value in (one.value, one.error, one.every, one.last)
    ]


def overconfident(samples: int, gap: float) -> Trace:
    """Logits so far apart that the entropies of most samples are no normal numbers of float32."""
    logits, labels = noisy_logits(samples, exits=4)
    spread = torch.full_like(logits, -gap).scatter_(2, logits.argmax(-1, keepdim=True), 0.0)
    return Trace.from_logits((spread + 0.5 * logits).float(), labels, Costs.of(np.arange(1, 5) / 4))


@pytest.mark.parametrize("gap", [88.0, 92.0, 100.0, 106.0, 1e4])
@pytest.mark.parametrize("name", SOLVERS)
def test_overconfident_logits_are_solved_on(name: str, gap: float) -> None:
    trace = overconfident(300, gap)
    rule = SOLVERS[name](trace, price=0.05)
    stops, seen = rule.stops(trace), trace.columns(rule.features)
    for k in np.flatnonzero(rule.looks[:-1]):
        alone = [rule.decide(int(k), row.tolist()) for row in seen[:40, k]]
        assert (alone != stops[:40, k]).mean() < 0.03  # one of forty at most is a tie, which rounding may decide


@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38, 1e-37, 1e37, 3e38], ids="{:.0e}".format)
def test_features_of_any_size_are_finite_columns_that_can_be_fitted(size: float) -> None:
    """Alone, beside one that is constant, and beside one of ordinary size, which alone decides."""
    random = np.random.default_rng(0)
    wild = (random.choice([-1.0, 0.0, 1.0], (400, 1)) * random.random((400, 1)) * size).astype(np.float32)
    plain = random.random((400, 1)).astype(np.float32)
    target = np.square(plain[:, 0].astype(float))
    for others in ([], [np.full((400, 1), size, dtype=np.float32)], [plain]):
        seen = np.concatenate([wild, *others], axis=1)
        far = np.concatenate([seen, -seen, np.full_like(seen, 3.4e38), np.full_like(seen, -3.4e38)])
        for basis in (Ramps.of(seen, 8), Hinges.of(seen, 64, 0)):
            assert basis(torch.from_numpy(far)).isfinite().all()
        fit = Regression(seen, bases(seen, 0)).fit(target)
        assert fit.function()(torch.from_numpy(far)).isfinite().all()
        assert fit.error <= (0.03 if others and others[0] is plain else 1.03 * target.std())


def test_a_solved_rule_reads_past_a_feature_of_no_normal_size() -> None:
    trace = of_numbers(1_000)
    column = 1e-42 * np.random.default_rng(1).random((1_000, 4, 1))
    seen = np.concatenate([trace.observations, column], axis=2)
    with_it = Trace(trace.losses, seen, trace.costs, (*trace.features, "tiny"))
    features = ("confidence", "tiny")
    for price in (0.0, 0.05):
        rules = (snell(with_it, price=price, features=features), snell(trace, price=price, features=("confidence",)))
        values = [
            float((t.losses + price * t.costs.paid())[np.arange(1_000), rule.stopped_at(t)].mean())
            for t, rule in zip((with_it, trace), rules, strict=True)
        ]
        assert values[0] <= values[1] + 0.02


def test_scaled_values_are_the_values_over_one_power_of_two() -> None:
    random = np.random.default_rng(0)
    losses, paid = random.normal(size=(20, 3)), np.array([1.0, 2.0, 5.5])
    for price, unit in itertools.product((0.0, 0.3, 2.0**400), (1.0, 2.0**-600, 2.0**600)):
        found = weighed(losses * unit, paid, price * unit)
        assert 0.25 <= np.abs(found).max() < 2
        ratio = found / (losses + price * paid)
        assert np.ptp(ratio) == 0
        assert np.frexp(ratio[0, 0])[0] == 0.5
    assert not weighed(np.zeros((2, 3)), np.zeros(3), 1e300).any()
    assert exponent(np.zeros(3)) < exponent(np.array([5e-324]))
    assert (priced(np.array([1e200, 2e200]), 1e200, 2000) > 0).all()
