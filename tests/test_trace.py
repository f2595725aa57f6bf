"""Trace: what it accepts, what it refuses, and that saving, splitting and joining lose nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from checker import unchecked
from conftest import noisy_logits, noisy_trace
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.placement import keep
from optdepth.trace import Trace


def small(**changes: object) -> Trace:
    random = np.random.default_rng(0)
    given: dict = {
        "losses": random.random((6, 3)),
        "observations": random.random((6, 3, 2)),
        "costs": Costs.of([1.0, 2.0, 3.0], 0.1),
    }
    return Trace(**(given | changes))


def test_paid_adds_trunk_looks_and_answer() -> None:
    costs = Costs.of([1.0, 2.0, 4.0], [0.1, 0.2, 0.3], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(costs.paid(), [1.1, 2.3, 5.6])
    # Passing exit 0 by saves its look, but an exit that is stopped at is always looked at.
    np.testing.assert_allclose(costs.paid([False, True, True]), [1.1, 2.2, 5.5])
    assert costs.full == pytest.approx(5.3)
    assert costs.relative().full == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        (lambda: Costs.of([2.0, 1.0]), "reach falls from 2 at exit 0 to 1 at exit 1"),
        (lambda: Costs.of([1.0, np.nan]), "reach cost of exit 1 is nan"),
        (lambda: Costs.of([1.0, 2.0], [-0.1, 0.0]), "look cost of exit 0 is -0.1"),
        (lambda: Costs.of([1.0, 2.0], [0.1, 0.1, 0.1]), "look has shape"),
        (lambda: Costs.of([[[1.0]]]), "shape"),
        (lambda: Costs.of([[1.0, 2.0], [3.0, 2.0]]), "reach falls from 3 at exit 0 of sample 1 to 2 at exit 1"),
        (lambda: Costs.of([[1.0, 2.0], [3.0, np.nan]]), "reach cost of exit 1 of sample 1 is nan"),
        (lambda: Costs.of([1.0, 2.0], horizon=[2, 0]), "horizon of sample 1 is 0: .* whole number from 1 to 2; leave"),
        (lambda: Costs.of([1.0, 2.0], horizon=[1.5]), "horizon of sample 0 is 1.5"),
        (lambda: Costs.of([1.0, 2.0], horizon=[3]), "horizon of sample 0 is 3"),
        (lambda: Costs.of([[1.0, 2.0]], horizon=[1, 1]), r"horizon has shape \(2,\) for costs \(1, 2\)"),
    ],
)
def test_bad_costs_are_refused(costs: object, says: str) -> None:
    with unchecked(), pytest.raises(InputError, match=says):
        costs()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"losses": np.full((6, 3), np.nan)}, "loss of sample 0 at exit 0 is nan"),
        ({"observations": np.full((6, 3, 2), np.inf)}, "observation of sample 0 at exit 0 is inf"),
        ({"losses": np.zeros((6, 1)), "observations": np.zeros((6, 1, 2))}, "at least two exits"),
        ({"losses": np.zeros((0, 3)), "observations": np.zeros((0, 3, 2))}, "N >= 1"),
        ({"observations": np.zeros((6, 2, 2))}, "observations must be"),
        ({"costs": Costs.of([1.0, 2.0])}, "costs of 2 exits for losses at 3"),
        ({"features": ("one",)}, "1 feature names for 2"),
        ({"posterior_losses": np.zeros((6, 2))}, "posterior_losses has shape"),
        ({"rows": np.arange(5)}, "rows has shape"),
        ({"disagreement": np.zeros((6, 2))}, r"of 6 samples at 3 exits, and false at the last; got shape \(6, 2\)"),
        ({"disagreement": np.full((6, 3), 2)}, "disagreement is true or false .* values 2"),
        ({"disagreement": np.ones((6, 3))}, "false at the last; .* values 1.0"),
    ],
)
def test_bad_traces_are_refused(changes: dict, says: str) -> None:
    with unchecked(), pytest.raises(InputError, match=says):
        small(**changes)


def test_nan_names_the_sample() -> None:
    losses = np.zeros((6, 3))
    losses[4, 2] = np.nan
    with pytest.raises(InputError, match="sample 4 at exit 2"):
        small(losses=losses)


def test_save_and_load_keep_every_bit(tmp_path: Path) -> None:
    trace = noisy_trace(50)
    trace.save(tmp_path / "t.safetensors")
    back = Trace.load(tmp_path / "t.safetensors")
    for name in ("losses", "observations", "posterior_losses", "rows"):
        np.testing.assert_array_equal(getattr(back, name), getattr(trace, name))
    np.testing.assert_array_equal(back.costs.paid(), trace.costs.paid())
    assert (back.features, back.source, back.network) == (trace.features, trace.source, trace.network)


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(InputError, match="no such file"):
        Trace.load(path)
    small().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged"):
        Trace.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not an optdepth"):
        Trace.load(path)


def test_splits_are_disjoint_and_exhaustive() -> None:
    trace = noisy_trace(101)
    parts = trace.split(0.5, 0.3, 0.2, seed=3)
    assert sum(len(part) for part in parts) == 101
    assert all(a.overlap(b) == 0 for i, a in enumerate(parts) for b in parts[i + 1 :])
    whole = Trace.concat(parts)
    order = np.argsort(whole.rows)
    np.testing.assert_array_equal(whole.losses[order], trace.losses)
    again = trace.split(0.5, 0.3, 0.2, seed=3)
    np.testing.assert_array_equal(again[1].rows, parts[1].rows)


def test_concat_refuses_a_sample_twice_and_other_costs() -> None:
    trace = noisy_trace(40)
    with pytest.raises(InputError, match="in more than one"):
        Trace.concat([trace.select(np.arange(20)), trace.select(np.arange(19, 40))])
    other = Trace(trace.losses, trace.observations, Costs.of(np.arange(1, 9)), trace.features, source=trace.source)
    with pytest.raises(InputError, match="do not go together"):
        Trace.concat([trace, other])


def test_from_logits_on_a_case_worked_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]]]))
    trace = Trace.from_logits(logits, torch.tensor([1]), Costs.of([1, 2, 3]))
    assert trace.features == ("confidence", "margin", "entropy", "streak", "divergence")
    np.testing.assert_array_equal(trace.losses, [[1, 1, 0]])
    np.testing.assert_allclose(trace.posterior_losses, [[0.9, 0.9, 0.2]], atol=1e-6)
    np.testing.assert_allclose(trace.columns(["confidence"])[0, :, 0], [0.7, 0.5, 0.8], atol=1e-6)
    np.testing.assert_allclose(trace.columns(["margin"])[0, :, 0], [0.5, 0.1, 0.7], atol=1e-6)
    np.testing.assert_array_equal(trace.columns(["streak"])[0, :, 0], [1, 2, 1])
    np.testing.assert_allclose(trace.columns(["divergence"])[0, :, 0], [1.0, 0.2, 0.4], atol=1e-6)
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    assert trace.columns(["entropy"])[0, 0, 0] == pytest.approx(entropy, abs=1e-6)


def test_from_logits_refuses_labels_out_of_range_and_nan() -> None:
    logits, labels = noisy_logits(5)
    labels[3] = 10
    with pytest.raises(InputError, match=r"label 10 of sample 3 is outside 0\.\.9"):
        Trace.from_logits(logits, labels, Costs.of(np.arange(1, 9)))
    logits[2, 1, 0] = np.nan
    with pytest.raises(InputError, match="logit of sample 2 at exit 1"):
        Trace.from_logits(logits, torch.zeros(5, dtype=torch.long), Costs.of(np.arange(1, 9)))


def test_where_answers_differ_from_the_last_exits_goes_along_with_the_samples(tmp_path: Path) -> None:
    logits, labels = noisy_logits(60, exits=4)
    told = logits.argmax(-1) != logits[:, -1:].argmax(-1)
    trace = Trace.from_logits(logits, labels, Costs.of([1, 2, 3, 4]))
    np.testing.assert_array_equal(trace.disagreement, told)
    one, other = trace.split(0.5, 0.5, seed=0)
    joined = Trace.concat([one, other])
    np.testing.assert_array_equal(joined.disagreement, told[joined.rows])
    joined.save(tmp_path / "trace.safetensors")
    again = Trace.load(tmp_path / "trace.safetensors").disagreement
    assert again.dtype == bool
    np.testing.assert_array_equal(again, joined.disagreement)
    np.testing.assert_array_equal(keep(trace, [1, 3]).disagreement, told[:, [1, 3]])
    assert keep(trace, [0, 2]).disagreement is None  # of a last exit that is not there
    recalled = Trace.from_logits(logits, labels, trace.costs, recall=((0, 0),) * 4)
    assert not recalled.disagreement.any()  # all answer by the first
    likely = Trace.from_answers(logits, trace.losses, trace.costs, kind="classes")
    np.testing.assert_array_equal(likely.disagreement, told)
    assert Trace.from_answers(logits[..., 0], trace.losses, trace.costs, kind="numbers").disagreement is None
    assert Trace.concat([one, dataclasses.replace(other, disagreement=None)]).disagreement is None
