"""Rules: thresholds are tuned exactly, solved rules keep the promises of theory section 2, bad files are refused."""

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import noisy_trace
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold, common_cut, confidence, entropy, exit_cuts, patience
from optdepth.stopping.bounds import prophet
from optdepth.stopping.evaluate import applied, evaluate
from optdepth.stopping.lookahead import lookahead, monotone_case
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from stamped import restamp_tensors

PRICES = (0.0, 0.02, 0.1, 0.5)


def value_of_cuts(score: np.ndarray, values: np.ndarray, cuts: np.ndarray) -> float:
    stops = np.column_stack([score >= cuts, np.ones(len(score), dtype=bool)])
    return float(values[np.arange(len(score)), stops.argmax(axis=1)].mean())


def random_trace(seed: int, samples: int, exits: int = 4) -> Trace:
    """Any losses, and observations that may have nothing to do with them."""
    random = np.random.default_rng(seed)
    losses, seen = random.random((samples, exits)), random.integers(0, 9, (samples, exits, 2))
    costs = Costs.of(np.cumsum(random.random(exits)), random.random(exits) / 10)
    return Trace(losses + 0.05 * seen[:, :, 0], seen, costs, ("confidence", "streak"))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 12), exits=st.integers(2, 5))
def test_common_cut_is_the_best_of_all_cuts(seed: int, levels: int, exits: int) -> None:
    random = np.random.default_rng(seed)
    score = random.integers(0, levels, (30, exits - 1)).astype(np.float32)
    values = random.normal(size=(30, exits))
    cut, mean = common_cut(score, values)
    tried = [value_of_cuts(score, values, np.full(exits - 1, c)) for c in [*np.unique(score), np.inf]]
    assert mean == pytest.approx(min(tried))
    assert value_of_cuts(score, values, np.full(exits - 1, cut)) == pytest.approx(mean)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_exit_cuts_improve_on_their_start_and_no_single_cut_betters_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    score = random.integers(0, 6, (40, 3)).astype(np.float32)
    values = random.normal(size=(40, 4))
    start = np.full(3, common_cut(score, values)[0], dtype=np.float32)
    cuts = exit_cuts(score, values, start)
    found = value_of_cuts(score, values, cuts)
    assert found <= value_of_cuts(score, values, start) + 1e-12
    for k, cut in itertools.product(range(3), [*np.unique(score), np.inf]):
        changed = cuts.copy()
        changed[k] = cut
        assert found <= value_of_cuts(score, values, changed) + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_where_stopping_is_barred_no_cut_stops_and_the_best_is_found_among_the_others(seed: int) -> None:
    random = np.random.default_rng(seed)
    score = random.integers(0, 6, (30, 3)).astype(np.float32)
    score[random.random(score.shape) < 0.4] = -np.inf
    values = random.normal(size=(30, 4)) - [4, 0, 0, 0]  # stopping at once is what a cut of -inf would be taken for
    cut, mean = common_cut(score, values)
    tried = [value_of_cuts(score, values, np.full(3, c)) for c in [*range(6), np.inf]]
    assert cut > -np.inf
    assert mean == pytest.approx(min(tried))
    cuts = exit_cuts(score, values, np.full(3, cut, dtype=np.float32))
    assert (cuts > -np.inf).all()
    for k, other in itertools.product(range(3), [*range(6), np.inf]):
        changed = cuts.copy()
        changed[k] = other
        assert value_of_cuts(score, values, cuts) <= value_of_cuts(score, values, changed) + 1e-9
    assert common_cut(np.full((30, 3), -np.inf, dtype=np.float32), values)[0] == np.inf


@pytest.mark.parametrize("per_exit", [False, True])
@pytest.mark.parametrize(("solver", "feature"), [(confidence, "confidence"), (entropy, "entropy")])
def test_cuts_lie_between_scores_so_that_no_rounding_decides(solver, feature: str, per_exit: bool) -> None:
    """Scores a thousandth apart: moved by a third of that, up or down, all samples stop where they stopped."""
    random = np.random.default_rng(0)
    scores = random.permutation(400 * 4).reshape(400, 4) / 1_000 - 0.5
    losses = random.random((400, 4)) + 0.5 * (scores if feature == "entropy" else -scores)
    moved = scores + np.where(random.random(scores.shape) < 0.5, -1, 1) / 3_000
    costs = Costs.of(np.arange(1.0, 5.0))
    fit, again = (Trace(losses, seen[:, :, None], costs, (feature,)) for seen in (scores, moved))
    for price in (0.0, 0.02, 0.1, 0.3):
        rule = solver(fit, price=price, per_exit=per_exit)
        np.testing.assert_array_equal(rule.stopped_at(again), rule.stopped_at(fit))


def test_a_cut_is_halfway_between_neighbours_and_as_far_below_the_least_score() -> None:
    values = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])  # the first two are to stop, the third is not
    for levels, expected in (([4, 3, 1], 2.0), ([3, 3, 1], 2.0)):
        assert common_cut(np.array(levels, dtype=np.float32)[:, None], values)[0] == expected
    at_once = np.array([[0.0, 1.0]] * 3)
    for levels, expected in (([4, 3, 1], 0.0), ([3, 3, 3], 1.5), ([-3, -3, -3], -4.5), ([0, 0, 0], -0.5)):
        assert common_cut(np.array(levels, dtype=np.float32)[:, None], at_once)[0] == expected
    one = np.float32(1.0)
    beside = np.nextafter(one, np.float32(2))  # nothing lies between the two: then the cut is the score
    assert common_cut(np.array([[beside], [beside], [one]]), values)[0] == beside
    widest = np.finfo(np.float32).max
    assert common_cut(np.array([[widest], [widest], [-widest]]), at_once)[0] == -widest


def test_a_threshold_stops_at_equality_on_either_side() -> None:
    origin = Origin.of(noisy_trace(10, exits=2))
    seen = torch.tensor([[0.4], [0.5], [0.6]])
    above = Threshold(origin, "confidence", torch.tensor([0.5]))
    below = Threshold(origin, "entropy", torch.tensor([0.5]), below=True)
    assert above.stop(0, seen).tolist() == [False, True, True]
    assert below.stop(0, seen).tolist() == [True, True, False]


@pytest.mark.parametrize("solver", [snell, lookahead, confidence, entropy, patience])
def test_no_rule_beats_the_prophet_and_cost_falls_with_the_price(solver, splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    costs = []
    for price in PRICES:
        found = evaluate(solver(fit, price=price), test)
        assert found.value(price) >= prophet(test, price=price).value
        costs.append(found.cost)
    assert all(after <= before + 0.01 for before, after in itertools.pairwise(costs))


def test_the_solved_rule_is_no_worse_than_any_threshold_beyond_noise(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    for price in (0.01, 0.03, 0.1, 0.3):
        solved = evaluate(snell(fit, price=price), test)
        for rival in (confidence, entropy, patience):
            for per_exit in (False, True):
                other = evaluate(rival(fit, price=price, per_exit=per_exit), test)
                margin = (solved.losses - other.losses) + price * (solved.costs - other.costs)
                assert margin.mean() <= 3 * margin.std() / np.sqrt(len(test))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), price=st.floats(0, 2))
def test_on_any_trace_no_rule_beats_the_prophet(seed: int, price: float) -> None:
    trace = random_trace(seed, samples=60)
    best = prophet(trace, price=price).value
    for solver in (confidence, partial(patience, per_exit=True), lookahead):
        assert applied(solver(trace, price=price), trace).value(price) >= best - 1e-12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_value_is_concave_and_nondecreasing_in_the_price_and_its_slope_is_the_cost(seed: int) -> None:
    """V(λ) = inf E[L + λ C]: on the class of common thresholds, tuned exactly, this holds to the last digit."""
    trace = random_trace(seed, samples=200)
    prices = np.linspace(0.01, 0.6, 12)
    found = [applied(confidence(trace, price=float(price)), trace) for price in prices]
    value = np.array([e.value(float(p)) for e, p in zip(found, prices, strict=True)])
    slope = np.diff(value) / np.diff(prices)
    assert (slope >= 0).all()
    assert (np.diff(slope) <= 1e-9).all()
    cost = np.array([e.cost for e in found])
    assert (cost[1:] <= slope + 1e-9).all()
    assert (slope <= cost[:-1] + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), new=st.integers(0, 3))
def test_an_exit_that_costs_nothing_never_hurts_a_rule_that_may_ignore_it(seed: int, new: int) -> None:
    """Thresholds tuned without the exit, and then with it from where they were: the value never rises."""
    trace = random_trace(seed, samples=80, exits=5)
    score, values = trace.observations[:, :-1, 0], trace.losses + 0.1 * Costs.of(trace.costs.reach).paid()
    rest = [k for k in range(5) if k != new]
    poor = exit_cuts(score[:, rest[:-1]], values[:, rest], np.full(3, np.inf, dtype=np.float32))
    rich = exit_cuts(score, values, np.insert(poor, new, np.inf).astype(np.float32))
    assert value_of_cuts(score, values, rich) <= value_of_cuts(score[:, rest[:-1]], values[:, rest], poor) + 1e-12


def test_an_exit_that_costs_nothing_never_hurts() -> None:
    trace = noisy_trace(6_000, exits=6)
    paid = Costs.of(trace.costs.reach)
    keep = [1, 3, 5]
    rich = Trace(trace.losses, trace.observations, paid, trace.features, source="s")
    poor = Trace(trace.losses[:, keep], trace.observations[:, keep], Costs.of(paid.reach[keep]), trace.features)
    for price in (0.05, 0.2):
        values = [applied(confidence(t, price=price, per_exit=True), t).value(price) for t in (poor, rich)]
        best = evaluate(snell(rich.select(np.arange(3000)), price=price), rich.select(np.arange(3000, 6000)))
        worse = evaluate(snell(poor.select(np.arange(3000)), price=price), poor.select(np.arange(3000, 6000)))
        assert values[1] <= values[0] + 0.005
        assert best.value(price) <= worse.value(price) + 2 * worse.value_error(price)


def test_a_known_optimal_rule_is_found() -> None:
    """One fair look at a biased coin: stop iff the posterior error is below the price of the second, perfect, exit."""
    random = np.random.default_rng(0)
    error = random.random(20_000)
    losses = np.column_stack([random.random(20_000) < error, np.zeros(20_000)]).astype(float)
    observations = np.repeat(error[:, None, None], 2, axis=1)
    trace = Trace(losses, observations, Costs.of([0.0, 1.0]))
    price = 0.3
    rule = snell(trace.select(np.arange(10_000)), price=price)
    found = evaluate(rule, trace.select(np.arange(10_000, 20_000)))
    # E[min(error, price)] for a uniform error: price - price² / 2.
    assert found.value(price) == pytest.approx(price - price**2 / 2, abs=3 * found.value_error(price))
    edge = torch.linspace(0, 1, 1001)[:, None]
    boundary = float(edge[rule.stop(0, edge)].max())
    assert boundary == pytest.approx(price, abs=0.04)


def test_at_price_zero_depth_that_helps_is_used_to_the_end() -> None:
    losses = np.repeat([[0.9, 0.5, 0.1]], 200, axis=0)
    observations = np.random.default_rng(0).random((200, 3, 1))
    trace = Trace(losses, observations, Costs.of([1.0, 2.0, 3.0]))
    assert (snell(trace, price=0.0).stopped_at(trace) == 2).all()
    assert (snell(trace, price=100.0).stopped_at(trace) == 0).all()
    assert (lookahead(trace, price=0.0).stopped_at(trace) == 2).all()


@pytest.mark.parametrize("solver", [snell, lookahead, confidence, patience])
def test_a_budget_is_met_on_the_fit_split(solver, splits: tuple[Trace, Trace]) -> None:
    fit, _ = splits
    for budget in (0.3, 0.6):
        rule = solver(fit, budget=budget)
        cost = applied(rule, fit).cost
        assert cost <= budget
        if cost < budget * 0.95:  # there the cost jumps: by whole exits of patience, or where V(λ) has a kink
            assert applied(solver(fit, price=rule.origin.price / 1.01), fit).cost > budget


def test_bad_prices_and_budgets_say_what_to_do(splits: tuple[Trace, Trace]) -> None:
    fit, _ = splits
    with pytest.raises(InputError, match="price is -1"):
        snell(fit, price=-1.0)
    with pytest.raises(InputError, match="price is nan"):
        confidence(fit, price=float("nan"))
    with pytest.raises(InputError, match=r"either price= .* or budget="):
        snell(fit, price=0.1, budget=0.5)
    with pytest.raises(InputError, match=r"no rule meets a mean cost of 0\.01 .* the nearest is 0\.127"):
        snell(fit, budget=0.01)
    with pytest.raises(InputError, match="too few to solve on"):
        snell(fit.select(np.arange(9)), price=0.1)


def test_samples_that_fitted_a_rule_may_not_judge_it(splits: tuple[Trace, Trace]) -> None:
    fit, _ = splits
    with pytest.raises(InputError, match="fitted the rule"):
        evaluate(snell(fit, price=0.1), fit)


@pytest.mark.parametrize("solver", [snell, lookahead, confidence, entropy, patience])
def test_saved_rules_decide_the_same(solver, splits: tuple[Trace, Trace], tmp_path: Path) -> None:
    fit, test = splits
    rule = solver(fit, price=0.1)
    rule.save(tmp_path)
    back = Rule.load(tmp_path)
    assert type(back) is type(rule)
    np.testing.assert_array_equal(back.stopped_at(test), rule.stopped_at(test))
    assert back.origin.price == 0.1


def test_a_rule_can_be_loaded_first_thing(splits: tuple[Trace, Trace], tmp_path: Path) -> None:
    """In a fresh process, where nothing has imported the solver that made it."""
    confidence(splits[0], price=0.1).save(tmp_path)
    code = f"import optdepth as od; print(type(od.Rule.load({str(tmp_path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Threshold"


def test_fixed_depth_pays_for_no_look_on_the_way(splits: tuple[Trace, Trace]) -> None:
    fit, test = splits
    found = evaluate(FixedDepth(Origin.of(fit), 3), test)
    assert found.cost == pytest.approx(4 / 8 + 0.002)
    assert found.shares[3] == 1.0
    with pytest.raises(InputError, match=r"exit 8 is outside 0\.\.7"):
        FixedDepth(Origin.of(fit), 8)


def test_damaged_and_foreign_rules_are_refused(splits: tuple[Trace, Trace], tmp_path: Path) -> None:
    fit = splits[0]
    with pytest.raises(InputError, match="no such file"):
        Rule.load(tmp_path)
    rule = confidence(fit, price=0.1)
    rule.save(tmp_path)
    whole = (tmp_path / "rule.safetensors").read_bytes()
    (tmp_path / "rule.safetensors").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="damaged"):
        Rule.load(tmp_path)
    (tmp_path / "rule.safetensors").write_bytes(whole)
    restamp_tensors(tmp_path / "rule.safetensors", lambda _, about: about.update(version=99))
    with pytest.raises(InputError, match="version 99"):
        Rule.load(tmp_path)
    (tmp_path / "rule.safetensors").write_bytes(whole)
    restamp_tensors(tmp_path / "rule.safetensors", lambda _, about: about.update(kind="Elsewhere"))
    with pytest.raises(InputError, match="kind 'Elsewhere'"):
        Rule.load(tmp_path)
    short = noisy_trace(20, exits=3)
    with pytest.raises(InputError, match="decides between 8 exits, but here are 3"):
        rule.stopped_at(short)


def test_look_ahead_is_enough_exactly_in_the_monotone_case() -> None:
    """Losses that fall by less and less: once one step does not pay, none after it does."""
    random = np.random.default_rng(1)
    scale = random.random(2_000)
    losses = scale[:, None] * 0.5 ** np.arange(6)
    observations = np.repeat(scale[:, None, None], 6, axis=1)
    trace = Trace(losses, observations, Costs.of(np.arange(1.0, 7.0)))
    fit, test = trace.split(0.5, 0.5, seed=0)
    rule = lookahead(fit, price=0.05)
    assert monotone_case(rule, test).left <= 0.01
    values = test.losses + 0.05 * test.costs.paid()
    best = values.min(axis=1).mean()  # nothing is hidden here, so the optimum is the prophet
    assert evaluate(rule, test).value(0.05) == pytest.approx(best, rel=0.02)
    assert evaluate(snell(fit, price=0.05), test).value(0.05) == pytest.approx(best, rel=0.02)
