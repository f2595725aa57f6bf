"""The stream answers what the engine answers: nothing lost, nothing twice, in bounded memory, whatever fails."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optdepth.errors import InputError
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from test_engine import Setting, anywhere, counted


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["snell", "confidence", "patience", "fixed 1"]),
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
    engine, drawn, given, most = Engine(setting.network, setting.rules["snell"]), 0, 0, 0

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


def test_deep_stages_run_on_full_batches(setting: Setting) -> None:
    network, stages, _ = counted(setting.network)
    engine = Engine(network, anywhere(setting.rules["snell"]))
    list(stream(engine, setting.inputs[200:], batch=16))
    exits = engine(setting.inputs[200:]).exit
    for k in (1, 2):
        runs = stages[k].sizes[:-1]  # the last is the engine's
        assert sum(runs) == int((exits >= k).sum())
        assert len(runs) == -(-sum(runs) // 16), "a run that was not full before the stream's end"


def test_a_sample_that_fails_is_named_and_the_others_are_answered(setting: Setting) -> None:
    engine, inputs = Engine(setting.network, setting.rules["snell"]), list(setting.inputs[200:230])
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
    engine = Engine(setting.network, setting.rules["snell"])
    endless = itertools.cycle(setting.inputs[200:])
    waits = {}
    for delay in (None, 50.0):
        answers = stream(engine, itertools.islice(endless, 600), batch=64, max_delay=delay, clock=Clock())
        waits[delay] = max(answer.waited for answer in answers)
    # Once due, a sample has one run to go for each of three stages, behind at most two batches before it at each.
    assert waits[50.0] <= 50 + 30
    assert waits[None] > 100


def test_samples_of_unlike_shapes_are_answered_apart(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["snell"])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 8 + 4 * (i % 2), 8 + 4 * (i % 2), generator=generator) for i in range(20)]
    for answer in stream(engine, inputs, batch=4):
        alone = engine(inputs[answer.index].unsqueeze(0))
        assert answer.exit == int(alone.exit)
        torch.testing.assert_close(answer.logits, alone.logits[0], rtol=1e-4, atol=1e-4)


def test_a_stream_reads_only_as_far_as_it_is_asked(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["fixed 0"])
    drawn = itertools.count()
    answers = stream(engine, (setting.inputs[next(drawn) % 400] for _ in itertools.count()), batch=4)
    next(answers)
    assert next(drawn) == 4


def test_bad_arguments_are_refused(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["snell"])
    for wrong in ({"batch": 0}, {"batch": 8, "capacity": 4}, {"batch": 1, "max_delay": -1.0}):
        with pytest.raises(InputError):
            next(stream(engine, setting.inputs[:4], **wrong))
