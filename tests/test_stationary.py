"""Infinite horizon: closed forms, a long finite horizon, and an honest account where there is no fixed point."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.rule import Rule
from optdepth.stopping.snell import snell
from optdepth.stopping.stationary import stationary
from optdepth.trace import Trace

LAST = 20
LOSS = 1 + 0.5 * np.cos(0.9 * np.arange(LAST + 1)) + 0.02 * np.arange(LAST + 1)
"""Of stopping at each place of the walk: valleys, with deeper ones behind hills."""
SHRINKS = 0.9
"""Of the flow: x' = -a x in steps of h has 1 - a h = 0.9."""


def walk(samples: int, steps: int, seed: int) -> Trace:
    """A symmetric random walk on 0..LAST that ends at either end, from everywhere alike, at cost 1 a step."""
    random = np.random.default_rng(seed)
    place = np.empty((samples, steps), dtype=int)
    place[:, 0] = random.integers(0, LAST + 1, samples)
    for k in range(1, steps):
        now = place[:, k - 1]
        place[:, k] = now + random.choice([-1, 1], samples) * ((now > 0) & (now < LAST))
    return Trace(LOSS[place], place[:, :, None], Costs.of(np.arange(1, steps + 1)), ("place",))


def walk_values(price: float) -> np.ndarray:
    """U on 0..LAST: value iteration on the law itself. Stopping is all there is to do at the ends."""
    value, previous = LOSS.copy(), np.full_like(LOSS, np.inf)
    while np.abs(value - previous).max() > 1e-13:
        previous = value.copy()
        value[1:-1] = np.minimum(LOSS[1:-1], price + (previous[:-2] + previous[2:]) / 2)
    return value


def flow(samples: int, steps: int, seed: int) -> Trace:
    """x_k+1 = 0.9 x_k, answered at loss x² / 2 (theory, section 8, in discrete time)."""
    start = np.random.default_rng(seed).uniform(-3, 3, samples)
    x = start[:, None] * SHRINKS ** np.arange(steps)
    return Trace(x**2 / 2, x[:, :, None], Costs.of(np.arange(1, steps + 1)), ("x",))


def noisy_flow(samples: int, steps: int, seed: int) -> Trace:
    """The flow with a little noise in every step, so that where it rests still moves."""
    random = np.random.default_rng(seed)
    x = np.empty((samples, steps))
    x[:, 0] = random.uniform(-3, 3, samples)
    for k in range(1, steps):
        x[:, k] = SHRINKS * x[:, k - 1] + 0.2 * random.normal(size=samples)
    return Trace(x**2 / 2, x[:, :, None], Costs.of(np.arange(1, steps + 1)), ("x",))


@pytest.mark.parametrize("price", [0.001, 0.01, 0.03, 0.1])
def test_a_random_walk_stops_where_the_exact_solution_does(price: float) -> None:
    exact, places = walk_values(price), torch.arange(LAST + 1.0)[:, None]
    rule = stationary(walk(8_000, 12, seed=0), price=price).rule
    np.testing.assert_allclose(rule.value(places), exact, atol=0.03)
    ties = np.abs(exact - LOSS) < 0.005  # one step's chance in the sample decides those
    differs = rule.stop(0, places).numpy() != (exact == LOSS)
    assert not (differs & ~ties).any()


def test_the_rule_attains_the_exact_value_on_longer_paths_than_it_saw() -> None:
    price, longer = 0.01, walk(10_000, 300, seed=5)
    found = evaluate(stationary(walk(4_000, 12, seed=0), price=price).rule.over(longer.costs), longer)
    exact = walk_values(price)[longer.observations[:, 0, 0].astype(int)].mean()
    ahead = found.value(price) - price * longer.costs.paid()[0]
    assert found.stopped_at.max() > 20
    assert ahead == pytest.approx(exact, abs=3 * found.value_error(price))


@pytest.mark.parametrize("price", [0.01, 0.05, 0.2])
def test_a_flow_stops_at_its_free_boundary(price: float) -> None:
    """U(x) = min over n of 0.9^2n x² / 2 + price n; going on pays iff x² / 2 (1 - 0.81) > price."""
    rule = stationary(flow(4_000, 12, seed=0), price=price).rule
    x, n = np.linspace(-3, 3, 601), np.arange(200)[:, None]
    exact = (SHRINKS ** (2 * n) * x**2 / 2 + price * n).min(axis=0)
    seen = torch.tensor(x[:, None])
    np.testing.assert_allclose(rule.value(seen), exact, atol=0.02 * 4.5)  # 2% of the largest loss
    boundary = np.sqrt(2 * price / (1 - SHRINKS**2))
    assert np.abs(x[rule.stop(0, seen).numpy()]).max() == pytest.approx(boundary, abs=0.02)


def test_it_agrees_with_a_long_finite_horizon() -> None:
    fit, test = noisy_flow(8_000, 40, seed=1), noisy_flow(20_000, 40, seed=2)
    price = 0.02
    stands = evaluate(stationary(fit, price=price).rule, test)
    solved = evaluate(snell(fit, price=price), test)
    margin = (stands.losses - solved.losses) + price * (stands.costs - solved.costs)
    assert margin.mean() <= 3 * margin.std() / np.sqrt(len(test))  # one regressor beats 39 on as many samples
    assert stands.value(price) == pytest.approx(solved.value(price), rel=0.01)


def test_the_value_never_exceeds_the_loss_and_rises_with_the_price() -> None:
    fit, places = walk(4_000, 12, seed=0), torch.arange(LAST + 1.0)[:, None]
    values = [stationary(fit, price=price).rule.value(places) for price in (0.005, 0.02, 0.08)]
    for cheaper, dearer in itertools.pairwise(values):
        assert (cheaper <= dearer + 1e-4).all()
    assert (values[-1] <= torch.from_numpy(LOSS) + 0.02).all()


def test_saved_rules_decide_the_same(tmp_path: Path) -> None:
    rule = stationary(walk(2_000, 8, seed=0), price=0.02).rule
    rule.save(tmp_path)
    back = Rule.load(tmp_path)
    places = torch.arange(LAST + 1.0)[:, None]
    assert torch.equal(back.stop(3, places), rule.stop(0, places))
    assert torch.equal(back.value(places), rule.value(places))
    longer = walk(100, 30, seed=9)
    np.testing.assert_array_equal(
        back.over(longer.costs).stopped_at(longer), rule.over(longer.costs).stopped_at(longer)
    )


def test_it_is_set_to_other_depths_by_name_and_never_to_other_costs() -> None:
    rule = stationary(walk(2_000, 8, seed=0), price=0.02).rule
    longer = walk(100, 30, seed=9)
    with pytest.raises(InputError, match=r"set to 8 steps, but here are 30; rule\.over"):
        rule.stopped_at(longer)
    with pytest.raises(InputError, match="a step costs 2 here, the rule was solved for 1"):
        rule.over(Costs.of(2.0 * np.arange(1, 31)))
    with pytest.raises(InputError, match=r"the step to exit 1 costs 1, that to exit 3 4"):
        rule.over(Costs.of([1.0, 2.0, 3.0, 7.0]))


def test_losses_that_fall_for_ever_have_no_fixed_point() -> None:
    """A state that never shows how far it has come, and every step gains more than it costs."""
    losses = np.tile(10.0 - np.arange(10), (100, 1))
    observations = np.random.default_rng(0).random((100, 10, 1))
    trace = Trace(losses, observations, Costs.of(np.arange(1, 11)))
    found = stationary(trace, price=0.5)
    assert found.status == "diverged"
    assert "no rule; the losses still fall" in str(found)
    with pytest.raises(InputError, match="record more steps, or raise the price"):
        _ = found.rule
    settled = stationary(trace, price=1.5)
    assert settled.status == "converged"
    assert str(settled).startswith("at price 1.5, after 1 iterations")
    assert settled.rule.stop(0, torch.rand(5, 1)).all()


def test_what_moves_slowly_for_ever_is_reported_as_not_converged() -> None:
    """A ring to walk round at next to no price, with one good place: the news of it spreads by diffusion."""
    ring, steps = 400, 6
    random = np.random.default_rng(0)
    moved = np.cumsum(random.choice([-1, 1], (3_000, steps)), axis=1)
    place = (random.integers(0, ring, 3_000)[:, None] + moved) % ring
    trace = Trace((place != 0).astype(float), place[:, :, None], Costs.of(np.arange(1, steps + 1)))
    found = stationary(trace, price=1e-7)
    assert found.status == "not converged"
    assert "a higher price settles sooner" in str(found)
    with pytest.raises(InputError, match="still moves by"):
        _ = found.rule


def test_bad_input_says_what_to_do() -> None:
    trace = walk(200, 8, seed=0)
    for price in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="going on costs nothing"):
            stationary(trace, price=price)
    free = Trace(trace.losses, trace.observations, Costs.of(np.ones(8)))
    with pytest.raises(InputError, match="a step costs 0"):
        stationary(free, price=0.1)
    uneven = Trace(trace.losses, trace.observations, Costs.of([1.0, 2, 3, 4, 5, 6, 7, 9]))
    with pytest.raises(InputError, match="one rule for all steps needs equal ones"):
        stationary(uneven, price=0.1)
    with pytest.raises(InputError, match="70 pairs of states for 33 coefficients; record at least 165"):
        stationary(walk(10, 8, seed=0), price=0.1)
