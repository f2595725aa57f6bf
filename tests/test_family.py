"""Families: one call for a family or a rule, and nothing that fitted one certifies or judges it."""

import dataclasses
import inspect
import warnings
from functools import partial

import numpy as np
import pytest

from conftest import noisy_trace
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import confidence, entropy, patience, tuned
from optdepth.stopping.evaluate import applied
from optdepth.stopping.family import Family
from optdepth.stopping.frontier import frontier
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.placed import placed
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.stopping.snell import snell
from optdepth.trace import Trace

SOLVERS = {
    "snell": snell,
    "placed": placed,
    "lookahead": lookahead,
    "confidence": confidence,
    "entropy per exit": partial(entropy, per_exit=True),
    "patience": patience,
    "tuned": lambda trace, **asked: tuned(trace, "margin", **asked),
}


@pytest.fixture(scope="module")
def thirds() -> list[Trace]:
    return noisy_trace(1_800, exits=4).split(*[1 / 3] * 3, seed=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_gives_a_family_or_the_rule_of_the_price_or_budget_asked(name: str, thirds: list[Trace]) -> None:
    solve, (fit, test, _) = SOLVERS[name], thirds
    family = solve(fit)
    assert isinstance(family, Family)
    assert family.trace is fit
    for rule, same in (
        (solve(fit, price=0.1), family.at(0.1)),
        (solve(fit, budget=0.7), family.within(0.7)),
        (solve(fit, price=0.1), family.chosen(price=0.1)),
        (solve(fit, budget=0.7), family.chosen(budget=0.7)),
    ):
        assert rule.origin.price == same.origin.price
        assert (rule.stopped_at(test) == same.stopped_at(test)).all()
    assert applied(family.within(0.7), fit).cost <= 0.7


@pytest.mark.parametrize("name", ["snell", "placed", "tuned"])
def test_what_fitted_a_family_neither_certifies_nor_judges_it(name: str, thirds: list[Trace]) -> None:
    whole = Trace.concat(thirds)
    family = SOLVERS[name](whole)
    for used, shared in ((thirds[0], 600), (whole, 1_800), (thirds[1].select(np.arange(7)), 7)):
        with pytest.raises(InputError, match=f"{shared} of these {len(used)} samples fitted the family"):
            family.certified(used, risk=0.1, confidence=0.9)
    with pytest.raises(InputError, match="1 of these 601 samples fitted the family"):
        SOLVERS[name](thirds[0]).check_unseen(Trace.concat([thirds[1], thirds[0].select(np.array([3]))]))
    with pytest.raises(InputError, match="600 of these 1800 samples fitted the family"):
        frontier("snell", thirds[0], whole, [0.1])


def test_a_certificate_over_a_family_is_of_one_of_its_rules(thirds: list[Trace]) -> None:
    fit, certify, _ = thirds
    family = confidence(fit)
    found = family.certified(certify, risk=0.2, confidence=0.9)
    assert found.gained
    assert (found.rule.thresholds == family.at(found.rule.origin.price).thresholds).all()


def test_senseless_requests_are_refused_before_anything_is_solved(thirds: list[Trace]) -> None:
    def solve(price: float) -> FixedDepth:
        raise AssertionError("solved")

    fit, certify, _ = thirds
    family = Family(fit, solve)
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite and >= 0"):
            family.at(price)
    with pytest.raises(InputError, match="the nearest is"):
        family.within(0.01)
    for asked in ({}, {"price": 0.1, "budget": 0.5}):
        with pytest.raises(InputError, match=r"either price= .* or budget="):
            family.chosen(**asked)
    with pytest.raises(InputError, match="confidence is 95"):
        family.certified(certify, risk=0.1, confidence=95)
    with pytest.raises(InputError, match="does not say where answers differ"):
        family.certified(
            dataclasses.replace(certify, disagreement=None), risk=0.1, confidence=0.9, measure="disagreement"
        )
    blind = Family(dataclasses.replace(fit, disagreement=None), solve)
    with pytest.raises(InputError, match="does not say where answers differ"):
        blind.certified(certify, risk=0.1, confidence=0.9, measure="disagreement")


def in_flops(trace: Trace) -> Trace:
    """The same recording at costs that nobody has made relative."""
    costs = Costs.of(2.4e6 * trace.costs.reach, 2.4e6 * trace.costs.look, unit="FLOPs")
    return dataclasses.replace(trace, costs=costs)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_price_in_another_unit_than_the_costs_is_announced(name: str, thirds: list[Trace]) -> None:
    """Where one step costs more than a hundred times all that losses can fall, every sample stops, and it is said."""
    fit = in_flops(thirds[0])
    with pytest.warns(
        UserWarning, match="so every sample stops there. A price is loss per unit of cost, here FLOPs"
    ) as said:
        rule = SOLVERS[name](fit, price=0.05)
    assert (rule.stopped_at(fit) == rule.stopped_at(fit)[0]).all()
    sentence = str(said[0].message)
    assert "at price 0.05 a step beyond the first exit costs 3e+04 or more, and losses differ by 1 at most" in sentence
    assert sentence.endswith("give one near 4e-07, or solve on costs in full passes, costs.relative()")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for price in (0.0, 4e-8, 4e-7, 4e-6):
            SOLVERS[name](fit, price=price)
        for price in (0.0, 0.05, 1.0, 10.0, 100.0):  # sweeps of prices in full passes
            SOLVERS[name](thirds[0], price=price)


def test_no_price_is_announced_where_nothing_is_to_be_known() -> None:
    """Losses that are all alike, and exits that cost the same."""
    same, free = np.zeros((60, 2)), np.tile([0.5, 0.0], (60, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for losses, costs in ((same, [1e6, 2e6]), (free, [1e6, 1e6])):
            trace = Trace(losses, np.zeros((*losses.shape, 1)), Costs.of(costs))
            rule = FixedDepth(Origin.of(trace), 0)
            assert Family(trace, lambda price, rule=rule: rule).at(0.05) is rule


def test_a_budget_above_what_any_rule_takes_is_refused(thirds: list[Trace]) -> None:
    family = confidence(thirds[0])
    most = thirds[0].costs.paid()[-1]
    assert applied(family.within(most), thirds[0]).cost <= most
    said = (
        f"a budget of 5 cost is more than any rule takes, {most:g}: give less than the full network's 1.002, or price=0"
    )
    with pytest.raises(InputError, match=said):
        family.within(5.0)


@pytest.mark.parametrize("scale", [1.0, 1e-170])
def test_a_ladder_ends_however_small_the_losses(scale: float) -> None:
    """The cost falls from one step to the other at one price, and between those no rung is any use."""
    trace = Trace(scale * np.tile([0.5, 0.0], (60, 1)), np.zeros((60, 2, 1)), Costs.of([1.0, 2.0]))
    origin = Origin.of(trace)
    family = Family(trace, lambda price: FixedDepth(origin, int(price < 0.1 * scale)))
    rules = family.ladder(risk=0.9)
    assert {rule.exit for rule in rules} == {0, 1}
    assert applied(family.within(1.0), trace).cost == 1.0


def test_look_ahead_decides_on_the_features_named(thirds: list[Trace]) -> None:
    assert lookahead(thirds[0], price=0.1, features=["margin"]).features == ("margin",)
    assert (
        lookahead(thirds[0], price=0.1).features == snell(thirds[0]).at(0.0).features == ("margin", "entropy", "streak")
    )
    with pytest.raises(InputError, match="no feature 'size'"):
        lookahead(thirds[0], features=["size"])


def test_a_family_and_a_solver_say_how_they_are_used(thirds: list[Trace]) -> None:
    assert repr(confidence(thirds[0])).startswith("Family(fitted on 600 samples; say at(price), within(budget)")
    for solve in (snell, placed, lookahead, confidence, entropy, patience, tuned):
        asked = inspect.signature(solve).parameters
        assert {"price", "budget"} <= set(asked)
        assert asked["price"].default is asked["budget"].default is None
        assert "price, budget:" in inspect.getdoc(solve) or "see `tuned`" in inspect.getdoc(solve)
