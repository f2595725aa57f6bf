"""Problems whose exact value is known: nobody beats it, and the solvers that apply come near it."""

from functools import partial

import numpy as np
import pytest

from optdepth.stopping.baselines import tuned
from optdepth.stopping.evaluate import Evaluation, evaluate
from optdepth.stopping.lookahead import lookahead, monotone_case
from optdepth.stopping.snell import snell
from problems_discrete import PROBLEMS, house, parking, secretary

Found = dict[tuple[str, str], tuple[float, Evaluation, float]]

SOLVERS = ("snell", "lookahead", "thresholds")
NEAR = {
    ("secretary", "snell"): 0.02,
    ("parking", "snell"): 0.01,
    ("house", "snell"): 0.005,
    ("sequential test", "snell"): 0.03,
    ("chain", "snell"): 0.01,
    ("dear tosses", "snell"): 0.03,
    ("brittle chain", "snell"): 0.015,
    ("house", "lookahead"): 0.005,  # the monotone case
    # One threshold an exit is the form of the optimal rule in these four.
    ("secretary", "thresholds"): 0.01,
    ("parking", "thresholds"): 0.01,
    ("house", "thresholds"): 0.005,
    ("sequential test", "thresholds"): 0.02,
}
"""How far above the exact value a rule solved on 8,000 paths may be on others, as a share of it."""

per_exit = partial(tuned, per_exit=True)
THRESHOLDS = {
    "secretary": partial(per_exit, feature="rank", below=True),
    "parking": partial(per_exit, feature="free"),
    "house": partial(per_exit, feature="best"),
    "sequential test": partial(per_exit, feature="confidence"),
    "chain": partial(per_exit, feature="ending", below=True),
    "dear tosses": partial(per_exit, feature="confidence"),
    "brittle chain": partial(per_exit, feature="ending", below=True),
}


@pytest.fixture(scope="module")
def found() -> Found:
    """By problem and solver: the price, the rule on 40,000 paths that it was not fitted on, the exact value."""
    held: Found = {}
    for name, draw in PROBLEMS.items():
        fit, test = draw(8_000, 1), draw(40_000, 2)
        for solver, solve in zip(SOLVERS, (snell, lookahead, THRESHOLDS[name]), strict=True):
            rule = solve(fit.trace, price=fit.price)
            held[name, solver] = fit.price, evaluate(rule, test.trace), fit.value
    return held


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_nobody_beats_the_optimum(name: str, solver: str, found: Found) -> None:
    price, evaluation, exact = found[name, solver]
    assert evaluation.value(price) >= exact - 3 * evaluation.value_error(price)


@pytest.mark.parametrize("key", NEAR, ids=" by ".join)
def test_the_solvers_that_apply_are_near_the_optimum(key: tuple[str, str], found: Found) -> None:
    price, evaluation, exact = found[key]
    assert evaluation.value(price) <= exact + NEAR[key] * abs(exact)


def test_the_monotone_case_is_told_from_the_others(found: Found) -> None:
    fit, test = house(8_000, 1), house(8_000, 2)
    assert monotone_case(lookahead(fit.trace, price=fit.price), test.trace).left == 0.0
    price, evaluation, exact = found["parking", "lookahead"]
    assert evaluation.value(price) > 1.5 * exact  # one spot ahead is no better than giving up, several are


def test_exact_values_agree_with_published_solutions() -> None:
    # Ferguson (1989): pass over r candidates, then take the first that beats them all; r = 7 of 20 wins most.
    wins = [r / 20 * np.sum(1 / np.arange(r, 20)) for r in range(1, 20)]
    assert np.argmax(wins) + 1 == 7
    assert secretary(10, 0).value == pytest.approx(1 - max(wins))
    # Chow, Robbins & Siegmund (1971): park from the least r with q^(r + 1) <= 1/2 steps away, r = 3 for q = 0.8; the
    # mean walk is then r + 1 + (2 q^(r + 1) - 1) / (1 - q).
    assert parking(10, 0).value == pytest.approx(4 + (2 * 0.8**4 - 1) / 0.2)
