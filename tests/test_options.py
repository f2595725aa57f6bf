"""Options: the solved rule earns what others published, no solver earns more, and none gives a worthless option up."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from checker import unchecked
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold, tuned
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.money import InTheMoney
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from problems import MAX_CALL_VALUE, PUT_VALUES, american_put, max_call, put_earned

PATHS = 100_000
QUICK = (44, 0.2, 1)
PUTS = [pytest.param(row, marks=() if row == QUICK else pytest.mark.slow, id=str(row)) for row in PUT_VALUES]


@pytest.mark.parametrize("row", PUTS)
def test_the_solved_rule_earns_the_published_value_of_a_put(row: tuple[int, float, int]) -> None:
    """Every row of the table: within 0.3% below on average over all paths there are, and so on paths drawn anew."""
    spot, sigma, years = row
    draw = partial(american_put, PATHS, spot=spot, sigma=sigma, years=years)
    rule = snell(draw(seed=1), price=0.0)
    worth, best = (put_earned(r, spot=spot, sigma=sigma, years=years) for r in (rule, None))
    assert 0.997 * PUT_VALUES[row] <= worth <= best + 1e-6
    earned = evaluate(rule, draw(seed=2))
    assert -earned.loss == pytest.approx(worth, abs=3 * earned.loss_error)


def test_the_solved_rule_earns_the_published_value_of_a_max_call() -> None:
    """Within 0.3% below, and nobody earns more, three standard errors of 400,000 paths allowed for."""
    rule = snell(max_call(PATHS, seed=1), price=0.0)
    earned = evaluate(rule, max_call(400_000, seed=2))
    assert 0.997 * MAX_CALL_VALUE - 3 * earned.loss_error <= -earned.loss <= MAX_CALL_VALUE + 3 * earned.loss_error


def test_what_a_rule_earns_by_quadrature_is_known_at_both_ends() -> None:
    """The put that is never exercised early is Black and Scholes'; the best is the table's, to its last digit but one.

    The finite differences of the table are up to 0.1% from it, most at the highest spot, volatility and term.
    """
    spot, sigma, years, strike, rate = 36.0, 0.2, 1, 40.0, 0.06
    far = (np.log(spot / strike) + (rate + sigma**2 / 2) * years) / (sigma * np.sqrt(years))
    european = strike * np.exp(-rate * years) * norm.cdf(sigma * np.sqrt(years) - far) - spot * norm.cdf(-far)
    never = FixedDepth(Origin(Costs.of(np.zeros(50))), 49)
    assert put_earned(never) == pytest.approx(european, rel=1e-4)
    for (spot, sigma, years), published in PUT_VALUES.items():
        assert put_earned(None, spot=spot, sigma=sigma, years=years) == pytest.approx(published, rel=1.1e-3)


@pytest.mark.parametrize("name", ["put", "max-call"])
def test_no_solver_earns_more(name: str) -> None:
    simulate, published = (american_put, PUT_VALUES[36, 0.2, 1]) if name == "put" else (max_call, MAX_CALL_VALUE)
    fit, test = simulate(10_000, seed=1), simulate(20_000, seed=2)
    for solver in (snell, lookahead, partial(tuned, feature="payoff"), partial(tuned, feature="payoff", per_exit=True)):
        earned = evaluate(solver(fit, price=0.0), test)
        assert -earned.loss <= published + 3 * earned.loss_error


def test_one_cut_a_date_on_the_price_is_the_form_of_the_put_s_optimum() -> None:
    fit = american_put(20_000, seed=1)
    rule = tuned(fit, "price", below=True, price=0.0, per_exit=True)
    seen = lambda k, columns: rule.stop(k, columns[:, :1])  # noqa: E731 - the price is the first of the two
    earned = put_earned(type("OnPrice", (), {"stop": staticmethod(seen)})())  # type: ignore[arg-type]
    assert earned >= 0.99 * PUT_VALUES[36, 0.2, 1]


@pytest.mark.parametrize("spot", [36, 44, 50])
@pytest.mark.parametrize("samples", [60, 1_000, 10_000])
def test_an_option_that_pays_nothing_is_never_given_up(spot: int, samples: int) -> None:
    rule = snell(american_put(samples, spot=spot, seed=1), price=0.0)
    assert isinstance(rule, InTheMoney)
    test = american_put(5_000, spot=spot, seed=2)
    worthless = test.columns(["payoff"])[:, :-1, 0] == 0
    assert worthless.mean() > 0.2
    assert not rule.stops(test)[worthless].any()


def test_going_on_must_be_free_for_that() -> None:
    """Where looking again costs more than can be hoped for, a put far out of the money is given up at once."""
    put = american_put(300, spot=50, seed=1)
    dear = Trace.from_rewards(-put.losses, put.observations, Costs.of(np.arange(1.0, 51.0)), features=put.features)
    assert dear.reward == "payoff"
    rule = snell(dear, price=10.0)
    assert not isinstance(rule, InTheMoney)
    assert (rule.stopped_at(dear) == 0).all()
    costs = Costs.of(np.minimum(np.arange(1.0, 51.0), 25.0))  # free from the 25th date on
    rule = snell(Trace.from_rewards(-put.losses, put.observations, costs, features=put.features), price=10.0)
    assert isinstance(rule, InTheMoney)
    assert rule.free == (False,) * 24 + (True,) * 25
    assert isinstance(snell(dear, price=0.0), InTheMoney)


def test_a_reward_is_known_by_being_seen_in_whatever_unit() -> None:
    rewards = np.random.default_rng(0).integers(0, 4, (100, 5)).astype(float)
    other = np.random.default_rng(1).normal(size=(100, 5))
    discount = [0.9, 0.8, 0.7, 0.6, 0.5]
    seen = lambda column: np.stack([other, column], axis=2)  # noqa: E731
    for column in (rewards, rewards / 7, rewards * discount, rewards * [1, 2, 3, 4, 5e30]):
        assert Trace.from_rewards(rewards, seen(column), discount=discount, features=("a", "b")).reward == "b"
    assert Trace.from_rewards(rewards - 1, seen(rewards - 1)).reward == ""  # one may be below 0, so 0 is no floor
    for hidden in (other, -rewards, rewards + 1, rewards > 0, np.roll(rewards, 1, axis=0)):
        assert Trace.from_rewards(rewards, seen(hidden)).reward == ""
    assert Trace.from_rewards(np.zeros((100, 5)), seen(np.zeros((100, 5)))).reward == ""
    assert Trace(-rewards, seen(rewards), Costs.of(np.zeros(5))).reward == ""  # losses that nobody called rewards


def test_a_trace_keeps_the_reward_s_name(tmp_path: Path) -> None:
    trace = american_put(40, seed=1)
    trace.save(tmp_path / "put.safetensors")
    first, second = trace.split(0.5, 0.5, seed=0)
    for kept in (Trace.load(tmp_path / "put.safetensors"), first, Trace.concat([first, second])):
        assert kept.reward == "payoff"


def test_a_rule_that_may_not_look_at_the_reward_does_without() -> None:
    trace = american_put(200, seed=1)
    rule = snell(trace, price=0.0, features=("price",))
    assert rule.features == ("price",)
    assert not isinstance(rule, InTheMoney)


def by_hand(trace: Trace, free: tuple[bool, ...]) -> InTheMoney:
    """Stops at every exit where the price is at most the strike, unless the payoff forbids it."""
    inside = Threshold(Origin.of(trace), "price", torch.ones(trace.n_exits - 1), below=True)
    return InTheMoney(inside.origin, inside, "payoff", free)


def test_a_reward_of_nothing_outvotes_the_rule_inside_where_going_on_is_free(tmp_path: Path) -> None:
    trace = american_put(60, seed=1)
    rule = by_hand(trace, (False,) + (True,) * 48)
    assert rule.features == ("price", "payoff")
    columns = torch.tensor([[0.9, 0.1], [0.9, 0.0], [1.1, 0.0], [1.1, 0.1]])
    assert rule.stop(0, columns).tolist() == [True, True, False, False]
    assert rule.stop(1, columns).tolist() == [True, False, False, False]
    for k in (0, 1):
        assert [rule.decide(k, row.tolist()) for row in columns] == rule.stop(k, columns).tolist()
    rule.save(tmp_path)
    back = Rule.load(tmp_path)
    np.testing.assert_array_equal(back.stops(trace), rule.stops(trace))
    with pytest.raises(InputError, match=r"2 marks of free exits for 50 exits; one each but the last"):
        by_hand(trace, (True, True))


def test_it_stands_inside_a_placed_rule(tmp_path: Path) -> None:
    trace = american_put(60, seed=1)
    origin = Origin.of(trace)
    kept = (10, 30, 49)
    short = Origin(origin.costs.keep(kept))
    threshold = Threshold(short, "price", torch.ones(2), below=True)
    rule = Placed(origin, InTheMoney(short, threshold, "payoff", (True, True)), kept)
    rule.save(tmp_path)
    np.testing.assert_array_equal(Rule.load(tmp_path).stops(trace), rule.stops(trace))
    assert not rule.stops(trace)[trace.losses[:, :-1] == 0].any()
    found = placed(trace, price=0.0)  # nothing is paid for a look, so it may look anywhere
    assert not found.stops(trace)[trace.losses[:, :-1] == 0].any()


def test_rewards_are_losses_of_the_other_sign_and_lose_worth_on_the_way() -> None:
    rewards, seen = np.array([[1.0, 2.0, 4.0]]), np.zeros((1, 3, 1))
    assert Trace.from_rewards(rewards, seen).losses.tolist() == [[-1.0, -2.0, -4.0]]
    assert Trace.from_rewards(rewards, seen, discount=0.5).losses.tolist() == [[-1.0, -1.0, -1.0]]
    given = Trace.from_rewards(rewards, seen, Costs.of([1.0, 2.0, 3.0]), discount=[0.9, 0.8, 0.5], features=("x",))
    assert given.losses.tolist() == [[-0.9, -1.6, -2.0]]
    assert given.costs.full == 3.0
    for wrong in (0.0, 1.1, [0.9, 0.8], [0.9, 0.8, float("nan")]):
        with pytest.raises(InputError, match=r"discount .* must be one factor"):
            Trace.from_rewards(rewards, seen, discount=wrong)
    with unchecked(), pytest.raises(InputError, match=r"rewards must be \(N, K\)"):
        Trace.from_rewards([1.0, 2.0], seen)
