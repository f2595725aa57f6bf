"""Costs and horizons of each sample's own: one mechanism through solvers, bounds, certificates and files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import noisy_logits, noisy_trace
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.networks import resnet
from optdepth.record import record
from optdepth.stopping.baselines import Threshold, tuned
from optdepth.stopping.bounds import dual, gap, prophet
from optdepth.stopping.certify import certify
from optdepth.stopping.evaluate import applied, evaluate
from optdepth.stopping.finite import finite_depth
from optdepth.stopping.frontier import fixed_depths, prices_for
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.placement import keep, place
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.stopping.stationary import stationary
from optdepth.trace import Trace
from problems_discrete import brittle_chain

LOSSES = np.array([[0.9, 0.5, 0.1, 0.0], [0.8, 0.7, 0.6, 0.5], [0.4, 0.3, 0.2, 0.1]])
SEEN = np.array([[0.1, 0.2, 0.3, 0.4], [0.2, 0.6, 0.7, 0.9], [0.3, 0.1, 0.0, 0.9]])[:, :, None]
REACH = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], [10.0, 20.0, 30.0, 40.0]])
HORIZON = [4, 3, 2]


def by_hand(losses: np.ndarray = LOSSES, seen: np.ndarray = SEEN, reach: np.ndarray = REACH) -> Trace:
    return Trace(losses, seen, Costs.of(reach, 0.5, 0.1, horizon=HORIZON), ("sure",), identity=np.arange(3))


def at_half(trace: Trace) -> Rule:
    return Threshold(Origin(trace.costs), "sure", torch.full((trace.n_exits - 1,), 0.5))


def ragged(seed: int, samples: int = 400) -> Trace:
    random = np.random.default_rng(seed)
    scale, ends = random.uniform(0.5, 2.0, samples), random.integers(2, 9, samples)
    costs = Costs.of(scale[:, None] * np.arange(1.0, 9.0), 0.2, horizon=ends)
    return Trace.from_logits(*noisy_logits(samples, seed=seed), costs)


def test_each_sample_pays_its_own_and_stops_at_its_own_end() -> None:
    trace = by_hand()
    found = applied(at_half(trace), trace)
    # The first never comes to a half and goes to its last exit; the second stops at exit 1; the third ends there.
    assert found.stopped_at.tolist() == [3, 1, 1]
    np.testing.assert_allclose(found.costs, [4 + 4 * 0.5 + 0.1, 4 + 2 * 0.5 + 0.1, 20 + 2 * 0.5 + 0.1])
    np.testing.assert_allclose(found.losses, [0.0, 0.7, 0.3])
    last = fixed_depths(trace)[-1]
    assert last.stopped_at.tolist() == [3, 2, 1]
    np.testing.assert_allclose(last.costs, [4.6, 6.6, 20.6])  # the look at its own end alone
    assert trace.costs.full == pytest.approx((4.6 + 6.6 + 20.6) / 3)


def test_what_stands_behind_an_end_is_never_read() -> None:
    behind = np.arange(4) >= np.array(HORIZON)[:, None]
    changed = [np.where(behind, np.nan, LOSSES), np.where(behind[:, :, None], np.nan, SEEN)]
    trace, other = by_hand(), by_hand(*changed, np.where(behind, -1.0, REACH))
    for name in ("losses", "observations"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(other, name))
    np.testing.assert_array_equal(trace.costs.paid(), other.costs.paid())


@pytest.mark.parametrize("solve", [snell, placed, lookahead, lambda t, **p: tuned(t, "margin", per_exit=True, **p)])
def test_a_rule_cannot_see_how_long_a_sample_would_become(solve: Callable[..., Rule]) -> None:
    """Until it ends, a sample that ends late is decided like one that ends early and has shown the same."""
    trace = ragged(0)
    assert "horizon" not in trace.features
    early = np.maximum(trace.costs.horizon - 3, 1)
    reach = trace.costs.reach
    shorter = Trace.from_logits(*noisy_logits(400, seed=0), Costs.of(reach, 0.2, horizon=early))
    rule = solve(trace, price=0.02)
    going = ~shorter.ended
    np.testing.assert_array_equal(rule.stops(trace)[going], rule.stops(shorter)[going])


def test_the_mean_costs_pay_what_samples_pay_on_average() -> None:
    costs, random = ragged(1).costs, np.random.default_rng(0)
    for _ in range(10):
        looks = (random.random(8) < 0.5).tolist()
        np.testing.assert_allclose(costs.mean().paid(looks), costs.paid(looks).mean(axis=0))
    assert costs.mean().full == pytest.approx(costs.full)


@pytest.mark.parametrize("own", ["costs", "horizon"])
def test_equal_rows_are_as_one_row(own: str, repeated: None) -> None:
    """Costs (N, K) whose rows are equal, and a horizon at the last exit, change no value that anything reports."""
    rows = {"costs": {"answer": np.zeros((400, 8))}, "horizon": {"horizon": np.full(400, 8)}}[own]
    alike, each, price = Costs.of(np.arange(1.0, 9.0), 0.2), Costs.of(np.arange(1.0, 9.0), 0.2, **rows), 0.02
    fit, test = (replace(noisy_trace(400, seed=seed), costs=alike) for seed in (0, 1))
    own_fit, own_test = (replace(trace, costs=each) for trace in (fit, test))
    assert each.samples == 400
    for solve in (snell, placed, lookahead, lambda t, **p: tuned(t, "margin", **p)):
        rule, other = solve(fit, price=price), solve(own_fit, price=price)
        value = evaluate(rule, test).value(price)
        assert evaluate(other, own_test).value(price) == pytest.approx(value, abs=2e-3)
    rule = at_margin(fit)
    assert evaluate(rule, own_test).cost == pytest.approx(evaluate(rule, test).cost)
    assert prophet(own_test, price=price).value == pytest.approx(prophet(test, price=price).value)
    assert place(own_fit, price=price).value == pytest.approx(place(fit, price=price).value, abs=2e-3)
    np.testing.assert_allclose(prices_for(own_fit), prices_for(fit))
    ours, theirs = (certify([rule], trace, risk=0.9, confidence=0.9) for trace in (own_test, test))
    assert str(ours) == str(theirs)
    bounds = [finite_depth(trace, at_margin(fit), price=price) for trace in (own_test, test)]
    assert bounds[0].expected.bound == pytest.approx(bounds[1].expected.bound)
    np.testing.assert_allclose(bounds[0].diminishing.worth, bounds[1].diminishing.worth)
    if own == "costs":  # behind a horizon the last loss is met, not regressed
        assert gap(rule, own_fit, own_test, price=price).bound == pytest.approx(
            gap(rule, fit, test, price=price).bound, abs=1e-6
        )


def at_margin(trace: Trace) -> Rule:
    return Threshold(Origin(trace.costs), "margin", torch.full((trace.n_exits - 1,), 0.5))


def test_steps_of_one_cost_for_each_sample_solve_stationary_and_a_horizon_does_not() -> None:
    random = np.random.default_rng(0)
    steps = 0.5 ** np.arange(12) * random.uniform(0.5, 1.5, (500, 1))
    scale = np.repeat([[1.0], [4.0]], 250, axis=0)
    seen = np.stack([steps, np.broadcast_to(scale, steps.shape)], axis=2)
    trace = Trace(steps, seen, Costs.of(scale * np.arange(1.0, 13.0)), ("left", "scale"))
    stopped_at = stationary(trace, price=0.02, features=("left", "scale")).rule.stopped_at(trace)
    assert stopped_at[:250].mean() > stopped_at[250:].mean() + 0.5  # dear steps are worth fewer
    ends = replace(trace, costs=Costs.of(np.arange(1.0, 13.0), horizon=np.full(500, 12)))
    with pytest.raises(InputError, match="end by themselves"):
        stationary(ends, price=0.02)


def test_the_bounds_hold_where_samples_end_by_themselves() -> None:
    fit, test = brittle_chain(4_000, 1), brittle_chain(20_000, 2)
    rule = snell(fit.trace, price=fit.price)
    found = evaluate(rule, test.trace).value(fit.price)
    error = 3 * evaluate(rule, test.trace).value_error(fit.price)
    assert prophet(test.trace, price=fit.price).value <= fit.value + error
    assert dual(rule, fit.trace, test.trace, price=fit.price).value <= fit.value + error
    bounds = gap(rule, fit.trace, test.trace, price=fit.price)
    assert bounds.bound <= bounds.value
    assert abs(bounds.value - found) <= error
    # Every second exit: samples that end between two of them have met their end.
    inner = keep(fit.trace, range(1, 10, 2))
    sparse = Placed(Origin.of(fit.trace, fit.price), snell(inner, price=fit.price), range(1, 10, 2))
    looser = gap(sparse, fit.trace, test.trace, price=fit.price)
    assert looser.bound <= looser.value
    assert looser.value == pytest.approx(evaluate(sparse, test.trace).value(fit.price), abs=error)


def test_keeping_exits_keeps_what_samples_met_where_they_ended() -> None:
    trace = ragged(2)
    exits = (1, 4, 7)
    inner = keep(trace, exits)
    placed_rule = Placed(Origin(trace.costs), at_margin(inner), exits)
    found, short = applied(placed_rule, trace), applied(placed_rule.inner, inner)
    np.testing.assert_allclose(found.costs, short.costs)
    np.testing.assert_allclose(found.losses, short.losses)
    whole = applied(FixedDepth(Origin(trace.costs), 7), trace)
    np.testing.assert_allclose(applied(FixedDepth(Origin(inner.costs), 2), inner).costs, whole.costs)


def test_budgets_and_ladders_are_in_mean_costs() -> None:
    fit, test = ragged(3, 600), ragged(4, 600)
    family = tuned(fit, "margin")
    budget = 0.7 * fit.costs.full
    assert applied(family.within(budget), fit).cost <= budget
    found = family.certified(test, risk=0.9, confidence=0.9)
    assert found.full_cost == pytest.approx(test.costs.full)
    assert found.gained


def test_files_selections_and_joins_keep_costs_and_ends(tmp_path: Path) -> None:
    trace = ragged(5, 60)
    trace.save(tmp_path / "trace")
    parts = [trace.select(np.arange(20)), trace.select(np.arange(20, 60))]
    for again in (Trace.load(tmp_path / "trace"), Trace.concat(parts)):
        np.testing.assert_array_equal(again.costs.horizon, trace.costs.horizon)
        np.testing.assert_array_equal(again.costs.paid(), trace.costs.paid())
        np.testing.assert_array_equal(again.losses, trace.losses)
    rule = tuned(trace, "margin", price=0.05)
    rule.save(tmp_path / "rule")
    assert Rule.load(tmp_path / "rule").origin.costs.alike(trace.costs.mean())
    other = replace(trace.costs, unit="dollars")
    with pytest.raises(InputError, match="in cost at 8 exits and in dollars"):
        Trace.concat([parts[0], replace(parts[1], costs=other.select(np.arange(20, 60)))])


def test_logits_behind_an_end_count_for_nothing() -> None:
    logits = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    ends = np.arange(50) % 4 + 1
    behind = torch.from_numpy(np.arange(4) >= ends[:, None])
    costs, labels = Costs.of(np.arange(1.0, 5.0), horizon=ends), torch.arange(50) % 3
    pooled = ((0, 0), (0, 1), (0, 2), (0, 3))
    traces = [
        Trace.from_logits(given, labels, costs, recall=pooled)
        for given in (logits, torch.where(behind[:, :, None], float("nan"), logits))
    ]
    for name in ("losses", "observations", "posterior_losses", "disagreement", "identity"):
        np.testing.assert_array_equal(*(getattr(trace, name) for trace in traces))
    assert not traces[0].disagreement[np.arange(50), ends - 1].any()


def test_a_recording_takes_costs_in_the_order_of_its_batches() -> None:
    network = resnet(8, classes=3, channels=1, width=4, seed=0).eval()
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 3
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    base = flops(network, images).relative()
    costs = Costs.of(base.reach * np.arange(1, 11)[:, None], base.look, unit=base.unit)
    trace = record(network, batches, costs)
    np.testing.assert_array_equal(trace.costs.paid(), costs.paid())
    for wrong in (costs.select(np.arange(9)), Costs.concat([costs, costs])):
        with pytest.raises(InputError, match=r"costs of (9|20) samples"):
            record(network, batches, wrong)


def test_costs_of_other_samples_and_samples_that_all_end_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="costs of 2 samples for losses of 3"):
        Trace(LOSSES, SEEN, Costs.of(REACH[:2]))
    costs = Costs.of(np.arange(1.0, 9.0), horizon=np.ones(60, dtype=int))
    with pytest.raises(InputError, match="0 samples are too few"):
        snell(Trace.from_logits(*noisy_logits(60), costs), price=0.1)
