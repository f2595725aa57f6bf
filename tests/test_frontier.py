import numpy as np
import pytest

from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.bounds import prophet
from optdepth.stopping.evaluate import Evaluation, evaluate
from optdepth.stopping.frontier import Frontier, fixed_depths, frontier, prices_for
from optdepth.stopping.methods import METHODS, baselines
from optdepth.trace import Trace


def synthetic(samples: int, exits: int = 5, seed: int = 0) -> Trace:
    """Inputs of many difficulties, each recognised from some depth on, seen through noisy logits."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, samples)
    depth = (np.arange(exits) + 1) / exits
    logits = random.normal(0, 1, (samples, exits, 6))
    strength = np.clip(6 * depth - random.normal(0, 2, (samples, 1)), 0, 8)
    logits[np.arange(samples)[:, None], np.arange(exits), labels[:, None]] += strength
    return Trace.from_logits(logits, labels, Costs.of(depth, 0.01).relative())


@pytest.fixture(scope="module")
def halves() -> list[Trace]:
    return synthetic(2000).split(0.4, 0.6, seed=1)


def evaluation(costs: np.ndarray, losses: np.ndarray) -> Evaluation:
    error = lambda values: float(values.std(ddof=1) / np.sqrt(len(values)))  # noqa: E731
    means = float(losses.mean()), float(costs.mean()), error(losses), error(costs)
    return Evaluation(*means, np.ones(1), np.zeros(len(costs), dtype=int), losses, costs)


def straight(points: list[tuple[float, float]], full: tuple[float, float] = (1.0, 0.1)) -> Frontier:
    """A frontier of (cost, loss) points at which all samples are the same."""
    same = [evaluation(np.full(10, cost), np.full(10, loss)) for cost, loss in (*points, full)]
    return Frontier("snell", np.arange(1.0, len(points) + 1), tuple(same[:-1]), same[-1])


def test_every_method_takes_a_price_and_a_budget(halves: list[Trace]) -> None:
    fit, test = halves
    for name, method in METHODS.items():
        family = method.solve(fit)
        for rule in (family.at(0.1), family.within(0.8)):
            found = evaluate(rule, test)
            assert found.loss < 1, name
        assert found.cost < 0.9, name
    assert set(METHODS) == {"snell", "placed", "lookahead", *baselines()}


@pytest.mark.parametrize("method", METHODS)
def test_points_are_what_evaluate_reports_and_never_beat_hindsight(method: str, halves: list[Trace]) -> None:
    fit, test = halves
    prices = [0.02, 0.6]
    swept = frontier(method, fit, test, prices)
    for price, found in zip(prices, swept.evaluations, strict=True):
        assert found.value(price) == evaluate(METHODS[method].solve(fit).at(price), test).value(price)
        assert found.value(price) >= prophet(test, price=price).value
    assert swept.evaluations[0].cost > swept.evaluations[1].cost
    assert swept.full.cost == pytest.approx(test.costs.full)


def test_the_sweep_runs_from_the_full_accuracy_to_the_first_exit(halves: list[Trace]) -> None:
    fit, test = halves
    prices = prices_for(fit, count=12)
    assert len(prices) == 12
    assert np.allclose(np.diff(np.log(prices), n=2), 0)
    for method in ("snell", "confidence"):
        swept = frontier(method, fit, test, prices)
        paid = test.costs.paid()
        assert swept.evaluations[0].loss == pytest.approx(swept.full.loss, abs=3 * swept.full.loss_error)
        assert swept.evaluations[-1].cost == pytest.approx(paid[0], rel=0.1)


def test_a_sweep_in_another_unit_of_cost_has_the_same_worth(halves: list[Trace]) -> None:
    fit = halves[0]
    dear = Costs(1000 * fit.costs.reach, 1000 * fit.costs.look, 1000 * fit.costs.answer)
    again = Trace(fit.losses, fit.observations, dear, fit.features)
    assert prices_for(again) == pytest.approx(prices_for(fit) / 1000)


def test_where_depth_gains_nothing_there_is_still_a_sweep() -> None:
    observations = np.random.default_rng(0).random((50, 3, 1))
    prices = prices_for(Trace(np.zeros((50, 3)), observations, Costs.of([1, 2, 3])), count=3)
    assert prices == pytest.approx([0.01, 0.01 * 10**0.5, 0.1])


def test_fixed_depths_pay_for_one_look(halves: list[Trace]) -> None:
    test = halves[1]
    depths = fixed_depths(test)
    assert [depth.cost for depth in depths] == pytest.approx(list(test.costs.reach + test.costs.look))
    assert [depth.loss for depth in depths] == pytest.approx(list(test.losses.mean(axis=0)))


def test_cost_at_a_loss_is_read_off_straight_lines() -> None:
    swept = straight([(0.8, 0.1), (0.2, 0.5), (0.4, 0.3)])
    assert swept.cost_at(0.1) == pytest.approx(0.8)
    assert swept.cost_at(0.2) == pytest.approx(0.6)
    assert swept.cost_at(0.9) == pytest.approx(0.2)
    assert np.isnan(swept.cost_at(0.05))
    assert swept.saving() == pytest.approx(0.2)
    assert swept.saving(0.1) == pytest.approx(0.4)
    assert np.isnan(straight([(0.5, 0.2)]).saving())


def test_a_band_without_noise_is_the_line_itself_and_nan_beyond_it() -> None:
    low, middle, high = straight([(0.2, 0.5), (0.6, 0.1)]).band([0.1, 0.2, 0.3, 0.7], resamples=20)
    assert middle == pytest.approx([np.nan, 0.5, 0.4, np.nan], nan_ok=True)
    assert low == pytest.approx(middle, nan_ok=True)
    assert high == pytest.approx(middle, nan_ok=True)


def test_the_band_of_one_rule_is_its_standard_error() -> None:
    random = np.random.default_rng(3)
    samples = [evaluation(np.full(4000, cost), (random.random(4000) < 0.3).astype(float)) for cost in (0.5, 1.0)]
    low, _, high = Frontier("snell", np.ones(2), tuple(samples), samples[1]).band([0.5], resamples=2000, seed=5)
    assert (high - low)[0] / 2 == pytest.approx(1.645 * samples[0].loss_error, rel=0.08)


def test_bands_with_one_seed_are_paired() -> None:
    random = np.random.default_rng(4)
    losses = (random.random(500) < 0.3).astype(float)

    def shifted(by: float) -> Frontier:
        points = [evaluation(np.full(500, cost), losses + by) for cost in (0.5, 1.0)]
        return Frontier("snell", np.ones(2), tuple(points), points[1])

    one, other = shifted(0.0), shifted(0.1)
    gap = other.resampled([0.5, 0.8], seed=7) - one.resampled([0.5, 0.8], seed=7)
    assert gap == pytest.approx(0.1)
    assert one.resampled([0.5], seed=7).std() > 0.01


def test_bad_input_is_refused(halves: list[Trace]) -> None:
    fit, test = halves
    with pytest.raises(InputError, match="no method 'magic'; choose from placed, snell"):
        frontier("magic", fit, test, [0.1])
    with pytest.raises(InputError, match="no prices"):
        frontier("snell", fit, test, [])
    with pytest.raises(InputError, match="10 of these 1210 samples fitted the family"):
        frontier("snell", fit, Trace.concat([test, fit.select(np.arange(10))]), [0.1])
    with pytest.raises(InputError, match="at least two"):
        prices_for(fit, count=1)
    free = Trace(fit.losses, fit.observations, Costs.of(np.zeros(fit.n_exits)), fit.features)
    with pytest.raises(InputError, match="no price makes stopping early pay"):
        prices_for(free)
    with pytest.raises(InputError, match="costs nothing"):
        straight([(0.0, 0.1)], full=(0.0, 0.1)).saving()
