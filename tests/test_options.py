"""Options: the solved rule earns what others published, and no solver earns more."""

from functools import partial

import numpy as np
import pytest

from checker import unchecked
from optdepth.errors import InputError
from optdepth.stopping.baselines import tuned
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.snell import snell
from optdepth.trace import Costs, Trace
from problems import MAX_CALL_VALUE, PUT_VALUES, american_put, max_call

PATHS = 100_000
OPTIONS = {
    **{
        f"put {sigma:g} {years}y": (partial(american_put, sigma=sigma, years=years), v)
        for (sigma, years), v in PUT_VALUES.items()
    },
    "max-call": (max_call, MAX_CALL_VALUE),
}
OPTION_NAMES = [pytest.param(name, marks=pytest.mark.slow if name.endswith("2y") else ()) for name in OPTIONS]


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_the_solved_rule_earns_the_published_value(name: str) -> None:
    """On paths that fitted nothing: within 0.5% below, and never more than two standard errors above."""
    simulate, published = OPTIONS[name]
    earned = evaluate(snell(simulate(PATHS, seed=1), price=0.0), simulate(PATHS, seed=2))
    assert 0.995 * published <= -earned.loss <= published + 2 * earned.loss_error


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_no_solver_earns_more(name: str) -> None:
    simulate, published = OPTIONS[name]
    fit, test = simulate(20_000, seed=1), simulate(20_000, seed=2)
    for solver in (snell, lookahead, partial(tuned, feature="payoff"), partial(tuned, feature="payoff", per_exit=True)):
        earned = evaluate(solver(fit, price=0.0), test)
        assert -earned.loss <= published + 3 * earned.loss_error


def test_one_cut_a_date_on_the_price_is_the_form_of_the_put_s_optimum() -> None:
    fit, test = american_put(20_000, seed=1), american_put(40_000, seed=2)
    earned = evaluate(tuned(fit, "price", below=True, price=0.0, per_exit=True), test)
    assert -earned.loss >= 0.99 * PUT_VALUES[0.2, 1] - 2 * earned.loss_error


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
