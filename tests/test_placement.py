"""Placement: the exits kept are the best there are, or it is said how far from them they may be."""

import itertools

import numpy as np
import pytest

from conftest import noisy_trace
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping import placement
from optdepth.stopping.baselines import confidence
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.placement import keep, place
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.trace import Trace


def priced(trace: Trace, look: float) -> Trace:
    costs = Costs.of(trace.costs.reach, look)
    return Trace(
        trace.losses, trace.observations, costs, trace.features, trace.posterior_losses, trace.source, trace.rows
    )


def random_trace(seed: int, samples: int = 1_000, exits: int = 6) -> Trace:
    """Exits at random depths with looks at random prices; what is seen is how likely the answer is right."""
    random = np.random.default_rng(seed)
    reach = np.sort(random.uniform(0.05, 1, exits))
    evidence = np.sqrt(np.diff(reach, prepend=0)) * random.normal(size=(samples, exits))
    score = 6 * reach - 3 + 2 * random.normal(size=(samples, 1)) + 2 * np.cumsum(evidence, axis=1)
    losses = (random.random((samples, exits)) > 1 / (1 + np.exp(-score))).astype(float)
    return Trace(losses, score[:, :, None], Costs.of(reach, random.uniform(0, 0.06, exits)), ("score",))


def test_a_kept_trace_pays_for_the_whole_trunk_and_the_kept_looks() -> None:
    trace = priced(noisy_trace(100, exits=4), 0.1)
    kept = keep(trace, [1, 3])
    np.testing.assert_allclose(kept.costs.paid(), [0.5 + 0.1, 1.0 + 0.2])
    np.testing.assert_array_equal(kept.losses, trace.losses[:, [1, 3]])
    np.testing.assert_array_equal(kept.columns(["margin"]), trace.columns(["margin"])[:, [1, 3]])
    assert kept.overlap(trace) == 100
    for bad in ([1, 1, 3], [3, 1], [1, 4], [-1, 3]):
        with pytest.raises(InputError, match=r"must rise and lie in 0\.\.3"):
            keep(trace, bad)


@pytest.mark.parametrize("price", [0.05, 0.2])
def test_no_other_placement_is_better_for_another_solver_on_other_samples(price: float) -> None:
    fit, test = priced(noisy_trace(6_000, exits=5), 0.05).split(0.5, 0.5, seed=0)
    found = place(fit, price=price)
    assert found.exhaustive
    assert found.tried == 16

    def judged(exits: tuple[int, ...]) -> np.ndarray:
        if len(exits) == 1:
            result = evaluate(FixedDepth(Origin.of(fit), 4), test)
        else:
            result = evaluate(confidence(keep(fit, exits), price=price, per_exit=True), keep(test, exits))
        return result.losses + price * result.costs

    chosen = judged(found.kept)
    assert chosen.mean() == pytest.approx(found.value, abs=3 * np.hypot(found.error, chosen.std() / np.sqrt(len(test))))
    for size in range(5):
        for early in itertools.combinations(range(4), size):
            margin = chosen - judged((*early, 4))
            assert margin.mean() <= 2.5 * margin.std() / np.sqrt(len(test)) + 0.001


def test_a_local_search_is_close_to_the_exhaustive_one_and_says_how_close(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [random_trace(seed) for seed in range(12)]
    best = [place(trace, price=0.3) for trace in traces]
    monkeypatch.setattr(placement, "_EXHAUSTIVE", 0)
    near = [place(trace, price=0.3) for trace in traces]
    assert all(b.exhaustive and not n.exhaustive for b, n in zip(best, near, strict=True))
    behind = np.array([n.value - b.value for b, n in zip(best, near, strict=True)])
    scale = np.array([b.value for b in best])
    assert (behind == 0).mean() >= 0.8
    assert (behind / scale).max() <= 0.01
    assert (behind <= [n.distance for n in near]).all()


def test_looks_are_dropped_as_they_get_dear_and_the_last_exit_stays() -> None:
    trace = noisy_trace(3_000, exits=6)
    counts = [len(place(priced(trace, look), price=0.2).kept) for look in (0.0, 0.05, 0.2, 5.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 5
    assert counts[-1] <= 2
    assert place(priced(trace, 5.0), price=0.2).last == pytest.approx(trace.losses[:, -1].mean() + 0.2 * 6.0)


def test_at_most_so_many_exits_are_kept() -> None:
    trace = noisy_trace(1_000, exits=14)  # 8,192 placements, but only 1 + 13 + 78 of three exits or fewer
    found = place(trace, price=0.1, most=3)
    assert len(found.kept) <= 3
    assert found.tried == 92
    assert found.exhaustive
    assert str(found).startswith("keep 3 of 14 exits: ")
    assert "the best of all 92 placements" in str(found)
    assert "(estimated)" in str(place(trace, price=0.1))
    with pytest.raises(InputError, match="most is 0; the last exit is always kept"):
        place(trace, price=0.1, most=0)
    with pytest.raises(InputError, match="price is -1"):
        place(trace, price=-1.0)
