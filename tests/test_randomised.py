"""The randomised stopping time: its gradient is exact, and its fits do not see what they are held out from."""

import numpy as np
import torch

from conftest import noisy_trace
from optdepth.stopping.randomised import RandomisedFit, _slopes
from optdepth.stopping.rule import first_stop


def test_slopes_are_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, 6, 1, generator=generator, dtype=torch.float64)
    halting = scores.sigmoid()
    total, reached = torch.zeros(6, 3, dtype=torch.float64), torch.ones(6, 3, dtype=torch.float64)
    for k in range(4):
        total = total + reached * halting[k] * values[k]
        reached = reached * (1 - halting[k])
    (total + reached * values[4]).sum().backward()
    torch.testing.assert_close(_slopes(scores.detach(), values), scores.grad)


def test_a_sample_does_not_fit_its_own_held_out_score() -> None:
    """Values that only say "this very sample": the whole fit may follow them, the held-out scores must not."""
    trace = noisy_trace(300, exits=4)
    fold = np.arange(300) % 3
    values = np.random.default_rng(0).normal(size=(300, 4))
    first = RandomisedFit(trace.observations[:, :-1], fold, 3, 8).fit(values)
    changed = values.copy()
    changed[fold == 1] = np.random.default_rng(1).normal(size=(100, 4)) * values.std()
    changed *= values.std() / changed.std()  # the fit works in units of the spread, so that is kept
    scale = values.std() / np.concatenate([values[fold != 1], changed[fold == 1]]).std()
    kept = np.where((fold == 1)[:, None], changed, values * scale if scale != 1 else values)
    second = RandomisedFit(trace.observations[:, :-1], fold, 3, 8).fit(kept)
    agree = (first.held_out[fold == 1] >= 0) == (second.held_out[fold == 1] >= 0)
    assert agree.mean() > 0.98


def test_more_ways_to_stop_never_cost_more_on_the_fit_split() -> None:
    """The fitted rule is at least as good as the best fixed depth, which its class contains."""
    trace = noisy_trace(2_000, exits=6)
    for price in (0.05, 0.2):
        values = trace.losses + price * trace.costs.paid()
        found = RandomisedFit(trace.observations[:, :-1], np.arange(2_000) % 5, 5, 8).fit(values)
        columns = torch.from_numpy(trace.observations)
        stops = np.stack([(gain(columns[:, k]) <= 0).numpy() for k, gain in enumerate(found.gains)], axis=1)
        reached = values[np.arange(2_000), first_stop(stops)].mean()
        assert reached <= values.mean(axis=0).min()
