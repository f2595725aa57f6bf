"""The stream answers what the engine answers: nothing lost, nothing twice, in bounded memory, whatever fails."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checker import unchecked
from optdepth.errors import InputError
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from optdepth.recall import Windows
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin
from settings import Setting, anywhere, counted
from zoo import deciding, speaking, tokens


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["additive", "confidence", "patience", "fixed 1"]),
    samples=st.integers(1, 70),
    batch=st.sampled_from([1, 4, 16]),
    room=st.integers(1, 5),
    ordered=st.booleans(),
    sizes=st.sampled_from([None, (4, 16)]),
)
def test_each_sample_is_answered_once_as_by_the_engine(
    setting: Setting, name: str, samples: int, batch: int, room: int, ordered: bool, sizes: tuple[int, ...] | None
) -> None:
    engine, inputs = Engine(setting.network, setting.rules[name], sizes=sizes), setting.inputs[200 : 200 + samples]
    expected = engine(inputs)
    answers = list(stream(engine, inputs, batch=batch, capacity=room * batch, ordered=ordered))
    assert Counter(answer.index for answer in answers) == Counter(range(samples))
    if ordered:
        assert [answer.index for answer in answers] == list(range(samples))
    for answer in answers:
        assert (answer.exit, answer.cost) == (int(expected.exit[answer.index]), float(expected.cost[answer.index]))
        torch.testing.assert_close(answer.logits, expected.logits[answer.index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ordered", [False, True])
def test_no_more_samples_are_in_flight_than_the_capacity(setting: Setting, ordered: bool) -> None:
    engine, drawn, given, most = Engine(setting.network, setting.rules["additive"]), 0, 0, 0

    def source():
        nonlocal drawn, most
        for sample in setting.inputs[200:]:
            drawn += 1
            most = max(most, drawn - given)
            yield sample

    for _ in stream(engine, source(), batch=8, capacity=20, ordered=ordered):
        given += 1
    assert most == 20
    assert given == drawn == 200


def test_deep_stages_run_on_full_batches_until_the_stream_ends(setting: Setting) -> None:
    network, stages, _ = counted(setting.network)
    engine, ended = Engine(network, anywhere(setting.rules["additive"])), []

    def source():
        yield from setting.inputs[200:]
        ended.extend(len(stage.sizes) for stage in stages)

    list(stream(engine, source(), batch=16))
    exits = setting.stops["additive"][200:]
    for k, stage in enumerate(stages):
        assert ended[k] > 0
        assert stage.sizes[: ended[k]] == [16] * ended[k]
        assert sum(stage.sizes) == (exits >= k).sum()


def test_a_sample_that_fails_is_named_and_the_others_are_answered(setting: Setting) -> None:
    engine, inputs = Engine(setting.network, setting.rules["additive"]), list(setting.inputs[200:230])
    inputs[3] = torch.full_like(inputs[3], float("nan"))
    inputs[17] = torch.randn(5, 8, 8)  # five channels
    answers = {answer.index: answer for answer in stream(engine, inputs, batch=8)}
    failed = {index: answer.error for index, answer in answers.items() if answer.error}
    assert sorted(failed) == [3, 17]
    assert "sample 3 of the stream failed" in failed[3]
    assert "NaN" in failed[3]
    assert all("\n" not in error for error in failed.values())
    expected = engine(setting.inputs[200:230])
    assert all(answer.exit == int(expected.exit[i]) for i, answer in answers.items() if i not in failed)
    assert len(answers) == 30


class Clock:
    """A clock that ticks a millisecond each time somebody looks at it."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1e-3
        return self.time


def test_no_sample_waits_longer_than_the_delay(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["additive"])
    endless = itertools.cycle(setting.inputs[200:])
    waits = {}
    for delay in (None, 50.0):
        answers = stream(engine, itertools.islice(endless, 600), batch=64, max_delay=delay, clock=Clock())
        waits[delay] = max(answer.waited for answer in answers)
    # Once due, a sample has one run to go for each of three stages, behind at most two batches before it at each.
    assert waits[50.0] <= 50 + 30
    assert waits[None] > 100


def test_samples_of_unlike_shapes_are_answered_apart(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["additive"])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 8 + 4 * (i % 2), 8 + 4 * (i % 2), generator=generator) for i in range(20)]
    for answer in stream(engine, inputs, batch=4):
        alone = engine(inputs[answer.index].unsqueeze(0))
        assert answer.exit == int(alone.exit)
        torch.testing.assert_close(answer.logits, alone.logits[0], rtol=1e-4, atol=1e-4)


def test_sentences_of_several_lengths_are_answered_as_by_the_engine_on_each() -> None:
    network, lengths = speaking("transformers bert"), (9, 3, 9, 5, 1, 5, 9, 3, 3, 9, 5, 9) * 3
    padded = tokens(lengths)
    samples = [{name: tensor[i, :length] for name, tensor in padded.items()} for i, length in enumerate(lengths)]
    rows = {length: [i for i, each in enumerate(lengths) if each == length] for length in set(lengths)}
    batches = {length: {name: tensor[rows[length], :length] for name, tensor in padded.items()} for length in rows}
    engine = Engine(network, deciding(network, list(batches.values())))
    expected = {length: engine(batch) for length, batch in batches.items()}
    answers = {answer.index: answer for answer in stream(engine, samples, batch=4)}
    assert sorted(answers) == list(range(len(samples)))
    assert {answer.exit for answer in answers.values()} == {0, 1, 2}
    for length, numbers in rows.items():
        for row, i in enumerate(numbers):
            assert (answers[i].exit, answers[i].error) == (int(expected[length].exit[row]), "")
            torch.testing.assert_close(answers[i].logits, expected[length].logits[row], rtol=1e-4, atol=1e-4)


def test_samples_that_cannot_run_together_run_apart_and_others_are_answered(setting: Setting) -> None:
    """A sample of another form or type neither stops the stream nor spoils those it arrives with."""
    engine, inputs = Engine(setting.network, setting.rules["additive"]), setting.inputs[200:212]
    strange = [inputs[0].double(), {"images": inputs[0]}, (inputs[0],), None, 3.0, {}, "cat", [inputs[0], "cat"]]
    mixed = [sample for pair in zip(inputs, strange, strict=False) for sample in pair] + list(inputs[8:])
    for ordered in (False, True):
        with unchecked():
            answers = {answer.index: answer for answer in stream(engine, mixed, batch=4, ordered=ordered)}
        assert sorted(answers) == list(range(len(mixed)))
        failed = [i for i, answer in answers.items() if answer.error]
        assert sorted(failed) == list(range(1, 16, 2))
        assert "it is a NoneType; give a tensor, or a tuple or dict of tensors" in answers[7].error
        right = [answers[i].exit for i in sorted(answers) if i not in failed]
        assert right == engine(inputs).exit.tolist()


@pytest.mark.parametrize("recall", [((0, 0), (0, 1), (1, 1)), ((0, 0), (0, 1), (0, 2))])
def test_a_rule_with_recall_is_answered_by_it(setting: Setting, recall: Windows) -> None:
    origin, inputs = replace(Origin.of(setting.fit), recall=recall), setting.inputs[200:240]
    for rule in (Threshold(origin, "margin", torch.tensor([0.62, 0.63])), *(FixedDepth(origin, k) for k in range(3))):
        engine = Engine(setting.network, rule)
        expected = engine(inputs)
        for answer in stream(engine, inputs, batch=8, ordered=True):
            assert (answer.exit, answer.error) == (int(expected.exit[answer.index]), "")
            torch.testing.assert_close(answer.logits, expected.logits[answer.index], rtol=1e-4, atol=1e-4)


def test_a_stream_reads_only_as_far_as_it_is_asked(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["fixed 0"])
    drawn = itertools.count()
    answers = stream(engine, (setting.inputs[next(drawn) % 400] for _ in itertools.count()), batch=4)
    next(answers)
    assert next(drawn) == 4


def test_bad_arguments_are_refused(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["additive"])
    for wrong in ({"batch": 0}, {"batch": 8, "capacity": 4}, {"batch": 1, "max_delay": -1.0}):
        with pytest.raises(InputError):
            next(stream(engine, setting.inputs[:4], **wrong))
