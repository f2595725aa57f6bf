"""Recall: earlier answers and pools of them, chosen on the fit split, the same in traces and in recordings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checker import unchecked
from conftest import noisy_logits
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.inference.engine import Engine
from optdepth.inference.legs import Outcome, Remembered, legs_of
from optdepth.networks import resnet
from optdepth.recall import best_recall, every_answer
from optdepth.record import record
from optdepth.stopping.baselines import Threshold, confidence
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.frontier import fixed_depths
from optdepth.stopping.placement import place
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from settings import Setting

COSTS = Costs.of([1.0, 2.0, 3.0, 4.0], look=0.1)


def spoiled(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of four exits whose third one forgets what the second knew, as networks that overthink do."""
    logits, labels = noisy_logits(samples, exits=4, seed=seed)
    logits = torch.as_tensor(logits).clone()
    logits[:, 2] = torch.randn(logits[:, 2].shape, generator=torch.Generator().manual_seed(seed))
    return logits.float(), torch.as_tensor(labels)


def test_answers_are_the_means_of_the_windows() -> None:
    logits, _ = spoiled(50)
    likely = logits.softmax(-1)
    answers = every_answer(logits, ((0, 0), (0, 1), (1, 1), (1, 3))).softmax(-1)
    torch.testing.assert_close(answers[:, 0], likely[:, 0])
    torch.testing.assert_close(answers[:, 1], likely[:, :2].mean(1))
    torch.testing.assert_close(answers[:, 2], likely[:, 1])
    torch.testing.assert_close(answers[:, 3], likely[:, 1:].mean(1))
    assert torch.equal(every_answer(logits, ()), logits)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_exit_answers_worse_than_any_before_it_on_the_fit_split(seed: int) -> None:
    """So at price zero, where every sample may go to the end, recall never loses accuracy on the fitting law."""
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(60, 5, 3)), random.integers(0, 3, 60)
    costs = Costs.of(np.arange(1.0, 6.0))
    own = Trace.from_logits(logits, labels, costs).losses.mean(axis=0)
    recalled = Trace.from_logits(logits, labels, costs, recall=best_recall(logits, labels)).losses.mean(axis=0)
    assert (recalled <= np.minimum.accumulate(own) + 1e-12).all()
    assert recalled[-1] == recalled.min()


def test_an_exit_that_forgets_lets_an_earlier_one_answer() -> None:
    chosen = best_recall(*spoiled(4_000))
    assert chosen[2][1] < 2
    logits, labels = spoiled(4_000, seed=1)
    own = Trace.from_logits(logits, labels, COSTS)
    recalled = Trace.from_logits(logits, labels, COSTS, recall=chosen)
    assert recalled.losses[:, 2].mean() < own.losses[:, 2].mean() - 0.1
    np.testing.assert_array_equal(recalled.observations, own.observations)


def test_a_rule_carries_the_recall_that_it_was_solved_for(tmp_path: Path) -> None:
    chosen = best_recall(*spoiled(2_000))
    fit, test = (Trace.from_logits(*spoiled(2_000, seed), COSTS, recall=chosen) for seed in (0, 1))
    rule = snell(fit, price=0.02)
    assert rule.origin.recall == chosen
    rule.save(tmp_path)
    assert Rule.load(tmp_path).origin.recall == chosen
    test.save(tmp_path / "trace.safetensors")
    assert Trace.load(tmp_path / "trace.safetensors").recall == chosen
    plain = Trace.from_logits(*spoiled(2_000, 1), COSTS)
    with pytest.raises(InputError, match="the losses are of each exit alone; make the trace with recall="):
        evaluate(rule, plain)
    without = snell(Trace.from_logits(*spoiled(2_000, 0), COSTS), price=0.02)
    assert evaluate(rule, test).value(0.02) <= evaluate(without, plain).value(0.02) + 0.01


def test_a_fixed_depth_pays_for_the_looks_that_its_answer_needs() -> None:
    trace = Trace.from_logits(*spoiled(100), COSTS, recall=((0, 0), (0, 1), (1, 1), (3, 3)))
    assert [found.cost for found in fixed_depths(trace)] == pytest.approx([1.1, 2.2, 3.2, 4.1])
    assert FixedDepth(Origin.of(trace), 2).looks == (False, True, True, False)


def test_the_engine_answers_by_the_recall_of_its_rule(setting: Setting) -> None:
    """At every batch size what the trace says: its losses are of the answers that the engine gives."""
    windows = ((0, 0), (0, 1), (1, 1))
    trace = record(setting.network, [(setting.inputs, setting.labels)], setting.trace.costs, recall=windows)
    answers = every_answer(setting.logits, windows)
    for name in ("additive", "fixed 1", "fixed 2"):
        rule, exits = setting.rules[name], setting.stops[name]
        engine = Engine(setting.network, type(rule).restore(Origin.of(trace), rule.arguments()))
        for size in (1, 7, 400):
            batches = [engine(part) for part in setting.inputs[: 40 if size == 1 else 400].split(size)]
            found, rows = torch.cat([batch.logits for batch in batches]), np.arange(40 if size == 1 else 400)
            np.testing.assert_array_equal(torch.cat([batch.exit for batch in batches]), exits[rows])
            torch.testing.assert_close(found.softmax(-1), answers[rows, exits[rows]].softmax(-1), rtol=1e-4, atol=1e-4)
            wrong = found.argmax(-1) != setting.labels[rows]
            np.testing.assert_array_equal(wrong.double(), trace.losses[rows, exits[rows]])


def test_a_fixed_depth_keeps_nothing_for_exits_that_do_not_answer() -> None:
    """A deeper exit would recall the first; the fixed one does not, and does not look at it."""
    network = resnet(14, classes=4, channels=1, width=4, seed=0).eval()
    inputs = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    windows = ((0, 0), (1, 1), (0, 2), (2, 3), (0, 4), (5, 5))
    rule = FixedDepth(Origin(flops(network, inputs[:1]), network.fingerprint(), recall=windows), 3)
    assert rule.looks == (False, False, True, True, False, False)
    with torch.inference_mode():
        expected = every_answer(torch.stack(network(inputs), dim=1), windows)[:, 3]
    for size in (1, 6):
        answers = [Engine(network, rule)(part) for part in inputs.split(size)]
        torch.testing.assert_close(torch.cat([answer.logits for answer in answers]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_leg_gives_one_outcome_with_all_that_is_remembered_in_one_memory(rows: int) -> None:
    network = resnet(8, classes=4, channels=1, width=4, seed=0).eval()
    costs, windows = Costs.of([1.0, 2.0, 3.0]), ((0, 0), (0, 1), (0, 2))
    rule = Threshold(Origin(costs, recall=windows), "streak", torch.tensor([9.0, 9.0]))
    state, memory = torch.zeros(rows, 1, 8, 8), Remembered.nothing()
    with torch.inference_mode():
        for k, leg in enumerate(legs_of(network, rule)):
            found = leg.one(state, memory) if rows == 1 else leg(state, memory)
            assert isinstance(found, Outcome)
            assert isinstance(found.memory, Remembered)
            assert (found.answers is None) == (rows == 1 and k < 2)
            assert (found.stops is None) == (rows == 1 or k == 2)
            state, _, _, memory = found
    assert list(memory.seen) == ["streak"]
    assert list(memory.past) == ["0", "1"]


def test_windows_that_cannot_be_are_refused() -> None:
    logits, labels = spoiled(60)
    for windows, message in (
        (((0, 0), (0, 1)), "recall has 2 windows for 4 exits"),
        (((0, 0), (0, 2), (0, 2), (0, 3)), r"recall at exit 1 is \(0, 2\)"),
        (((0, 0), (1, 0), (0, 2), (0, 3)), r"recall at exit 1 is \(1, 0\)"),
    ):
        with pytest.raises(InputError, match=message):
            Trace.from_logits(logits, labels, COSTS, recall=windows)
    with unchecked(), pytest.raises(InputError, match=r"logits must be \(N, K, C\)"):
        best_recall(logits[:, 0], labels)
    recalled = Trace.from_logits(logits, labels, COSTS, recall=best_recall(logits, labels))
    with pytest.raises(InputError, match="record the trace without"):
        place(recalled, price=0.1)
    with pytest.raises(InputError, match=r"must share .* recall"):
        Trace.concat([recalled, Trace.from_logits(logits, labels, COSTS)])
    assert confidence(recalled, price=0.1).origin.recall == recalled.recall
