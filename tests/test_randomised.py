"""The randomised stopping time: its gradient is exact, and its fits do not see what they are held out from."""

import numpy as np
import pytest
import torch

from conftest import noisy_trace
from optdepth.stopping.randomised import RandomisedFit, Start, _slopes
from optdepth.stopping.rule import first_stop
from optdepth.trace import Trace


def test_slopes_are_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, 1, 6, generator=generator, dtype=torch.float64)
    halting = scores.sigmoid()
    total, reached = torch.zeros(3, 6, dtype=torch.float64), torch.ones(3, 6, dtype=torch.float64)
    for k in range(4):
        total = total + reached * halting[k] * values[k]
        reached = reached * (1 - halting[k])
    weight = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    (weight * (total + reached * values[4])).sum().backward()
    torch.testing.assert_close(_slopes(scores.detach(), values, weight), scores.grad)


def left_out(fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All samples, then all but each fold; and for every sample the fit without it."""
    kept = np.vstack([np.ones(len(fold), dtype=bool), fold != np.arange(fold.max() + 1)[:, None]])
    return kept, 1 + fold


def start(trace: Trace, groups: int) -> Start:
    return Start(feature=0, below=False, cuts=np.full(groups, np.median(trace.observations[:, :, 0])))


def test_held_out_scores_do_not_see_their_samples() -> None:
    """Giving fold 1 other values, the same ones in another order, changes no score held out from it."""
    trace = noisy_trace(300, exits=4)
    fold = np.arange(300) % 3
    values = np.random.default_rng(0).normal(size=(300, 4))
    changed = values.copy()
    changed[fold == 1] = np.random.default_rng(1).permutation(values[fold == 1])
    made = RandomisedFit(trace.observations[:, :-1], *left_out(fold), 8, trace.ended)
    first, second = made.fit(values, start(trace, 4)), made.fit(changed, start(trace, 4))
    np.testing.assert_allclose(first.scores[fold == 1], second.scores[fold == 1], atol=1e-4)
    assert not np.allclose(first.scores[fold != 1], second.scores[fold != 1], atol=1e-2)


@pytest.mark.parametrize("below", [False, True])
def test_the_descent_starts_at_the_threshold(below: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optdepth.stopping.randomised._STEPS", 0)
    trace = noisy_trace(300, exits=4)
    cuts = np.array([0.5, 0.9, np.inf * (-1 if below else 1)])
    found = RandomisedFit(trace.observations[:, :-1], *left_out(np.arange(300) % 2), 8, trace.ended).fit(
        trace.losses, Start(feature=0, below=below, cuts=cuts)
    )
    seen = trace.observations[:, :-1, 0]
    for f in (0, 1):
        rows = np.arange(300) % 2 == f
        expected = seen[rows] <= cuts[1 + f] if below else seen[rows] >= cuts[1 + f]
        # A cut lies between two float32 numbers of the ramps: a hair's breadth may fall on either side.
        assert (expected != (found.scores[rows] >= 0)).mean() < 0.01


def test_more_ways_to_stop_never_cost_more_on_the_fit_split() -> None:
    """The fitted rule is at least as good as the best fixed depth, which its class contains."""
    trace = noisy_trace(2_000, exits=6)
    for price in (0.05, 0.2):
        values = trace.losses + price * trace.costs.paid()
        found = RandomisedFit(trace.observations[:, :-1], *left_out(np.arange(2_000) % 5), 8, trace.ended).fit(
            values, start(trace, 6)
        )
        columns = torch.from_numpy(trace.observations)
        stops = np.stack([(gain(columns[:, k]) <= 0).numpy() for k, gain in enumerate(found.gains)], axis=1)
        reached = values[np.arange(2_000), first_stop(stops)].mean()
        assert reached <= values.mean(axis=0).min()
