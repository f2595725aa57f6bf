"""The engine answers as the trace says it should, whatever the batch, and does not run what is not needed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optdepth.batch import select
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.inference.clock import clock
from optdepth.inference.engine import Answer, Engine
from optdepth.inference.stream import stream
from optdepth.inference.timings import Timings, latency
from optdepth.networks import StagedNetwork, resnet
from optdepth.record import record
from optdepth.stopping.gain import GainRule
from optdepth.stopping.rule import FixedDepth, Origin
from settings import Counting, Glancing, Setting, anywhere, counted

RULES = ("confidence", "entropy", "margin", "patience", "additive", "hinged")


@pytest.mark.parametrize("name", [*RULES, "fixed 0", "fixed 1", "fixed 2"])
@settings(max_examples=8, deadline=None)
@given(size=st.sampled_from([1, 2, 7, 64, 200]), order=st.integers(0, 1_000))
def test_engine_equals_the_rule_on_the_trace(setting: Setting, name: str, size: int, order: int) -> None:
    """Exits exactly, costs exactly, logits to rounding; for any batch size and any order of the samples."""
    rule = setting.rules[name]
    exits = rule.stopped_at(setting.test)
    assert np.array_equal(exits, setting.stops[name][200:])
    shuffled = np.random.default_rng(order).permutation(200)[: 200 if size > 7 else 30]
    engine = Engine(setting.network, rule)
    for part in np.array_split(shuffled, max(1, len(shuffled) // size)):
        answer = engine(setting.inputs[200 + part])
        wrong = answer.exit.numpy() != exits[part]
        assert not wrong.any()
        np.testing.assert_allclose(answer.cost, setting.trace.costs.paid(rule.looks)[exits[part]])
        expected = setting.logits[200 + part, exits[part]]
        torch.testing.assert_close(answer.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_every_decision_of_the_setting_is_far_from_a_tie(setting: Setting, name: str) -> None:
    """Guards the tests here: some samples stop early and some late, and rounding sends none elsewhere."""
    rule = setting.rules[name]
    assert np.count_nonzero(np.bincount(setting.stops[name][200:])) >= 2
    seen = torch.from_numpy(setting.trace.columns(rule.features)[:, :-1])
    if isinstance(rule, GainRule):
        away = torch.stack([gain(seen[:, k]).abs() for k, gain in enumerate(rule.gains)])
    else:
        away = (seen[..., 0] - rule.thresholds).abs()
    assert away.min() > 0.02


@pytest.mark.parametrize("size", [1, 5, 96])
def test_two_exits_behind_one_block(size: int) -> None:
    """The block is run and paid once, whoever asks its second head pays that too."""
    given = Glancing()
    exits = given.rule.stopped_at(given.trace)
    assert np.bincount(exits, minlength=3).min() > 0
    stages = [Counting(stage) for stage in given.network.stages]
    network = StagedNetwork(given.network.stem, stages, list(given.network.heads), given.network.exits).eval()
    answers = [Engine(network, anywhere(given.rule))(part) for part in given.inputs.split(size)]
    assert np.array_equal(torch.cat([answer.exit for answer in answers]), exits)
    np.testing.assert_allclose(torch.cat([answer.cost for answer in answers]), given.trace.costs.paid()[exits])
    assert sum(stages[0].sizes) == 96
    assert sum(stages[1].sizes) == (exits > 0).sum()
    served = list(stream(Engine(given.network, given.rule), given.inputs, batch=size, ordered=True))
    assert [answer.exit for answer in served] == exits.tolist()


def test_two_exits_behind_one_block_on_the_clock() -> None:
    given = Glancing()
    timings = Timings.measure(given.network, given.inputs, sizes=(1, 16), repeats=1)
    assert timings.costs(16).reach[1] < timings.costs(16).reach[2]
    answer = Engine(given.network, given.rule, timings=timings)(given.inputs)
    assert np.array_equal(answer.exit, given.rule.stopped_at(given.trace))


def test_layers_behind_the_last_exit_taken_are_not_run(setting: Setting) -> None:
    network, stages, heads = counted(setting.network)
    for exit in range(3):
        for module in (*stages, *heads):
            module.sizes.clear()
        Engine(network, anywhere(FixedDepth(Origin.of(setting.fit), exit)))(setting.inputs[:5])
        assert [len(stage.sizes) for stage in stages] == [1] * (exit + 1) + [0] * (2 - exit)
        assert [len(head.sizes) for head in heads] == [int(k == exit) for k in range(3)]


def test_only_survivors_go_on(setting: Setting) -> None:
    network, stages, _ = counted(setting.network)
    rule = anywhere(setting.rules["confidence"])
    exits = rule.stopped_at(setting.test)
    Engine(network, rule)(setting.inputs[200:])
    survivors = [int((exits >= k).sum()) for k in range(3)]
    assert [sum(stage.sizes) for stage in stages] == survivors


def test_a_rule_for_another_network_is_refused(setting: Setting) -> None:
    other = resnet(8, classes=4, channels=1, width=8, exits="all", seed=1)
    with pytest.raises(InputError, match="was solved for network"):
        Engine(other, setting.rules["confidence"])
    with pytest.raises(InputError, match="decides between 3 exits"):
        Engine(resnet(14, classes=4, channels=1, exits="all", seed=1), setting.rules["confidence"])


def test_bad_batches_are_refused(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["additive"])
    inputs = setting.inputs[:4].clone()
    inputs[2, 0, 3, 3] = float("nan")
    with pytest.raises(InputError, match="sample 2 of the batch holds NaN"):
        engine(inputs)
    with pytest.raises(InputError, match="empty batch"):
        engine(setting.inputs[:0])
    with pytest.raises(InputError, match="sample 2 of the batch holds NaN"):
        record(setting.network, [(inputs, setting.labels[:4])], setting.trace.costs)
    with pytest.raises(InputError, match="no batches"):
        record(setting.network, [], setting.trace.costs)


def test_recording_and_serving_leave_the_network_as_it_was(setting: Setting) -> None:
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    record(network, [(setting.inputs[:8], setting.labels[:8])], setting.trace.costs)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_flops_of_a_convolution_and_a_head_are_the_textbook_count(setting: Setting) -> None:
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0)
    costs = flops(network, setting.inputs[:3])
    stem = 2 * 8 * 8 * 8 * (1 * 9)  # two operations a product; 8x8 places, 8 channels out, 9 weights each
    block = 2 * (2 * 8 * 8 * 8 * (8 * 9))
    assert costs.reach[0] == stem + block
    np.testing.assert_allclose(costs.look, [2 * 8 * 4, 2 * 16 * 4, 2 * 32 * 4])
    assert costs.unit == "FLOPs"


class Ticking(nn.Module):
    """A module that takes so many milliseconds by a clock of ours."""

    def __init__(self, inner: nn.Module, clock: list[float], spent: float) -> None:
        super().__init__()
        self.inner, self.clock, self.spent = inner, clock, spent

    def forward(self, state: Tensor) -> Tensor:
        self.clock[0] += self.spent / 1e3
        return self.inner(state)


def test_latency_parts_add_up_to_the_whole(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, whole = [0.0], setting.network
    monkeypatch.setattr("optdepth.inference.timings.now", lambda device: clock[0])
    stages = [Ticking(stage, clock, spent) for stage, spent in zip(whole.stages, (3.0, 1.0, 4.0), strict=True)]
    heads = [Ticking(head, clock, spent) for head, spent in zip(whole.heads, (0.5, 0.25, 0.75), strict=True)]
    network = StagedNetwork(Ticking(whole.stem, clock, 2.0), stages, heads, whole.exits)
    costs = latency(network, setting.inputs[:32], repeats=2)
    np.testing.assert_allclose(costs.reach * 32, [2 + 3, 2 + 3 + 1, 2 + 3 + 1 + 4])
    np.testing.assert_allclose(costs.look * 32, [0.5, 0.25, 0.75])
    assert "batch 32" in costs.unit
    with pytest.raises(InputError, match="repeats is 0"):
        latency(setting.network, setting.inputs[:32], repeats=0)


def test_clock_promises_what_the_costs_say(setting: Setting) -> None:
    rules = {name: setting.rules[name] for name in ("confidence", "fixed 0")}
    rows = clock(setting.network, rules, setting.inputs, batches=[8, 64], repeats=2)
    assert {(row.method, row.batch) for row in rows} == {(n, b) for n in rules for b in (8, 64)}
    fixed = next(row for row in rows if row.method == "fixed 0")
    assert fixed.saving == pytest.approx(1 / setting.trace.costs.paid([True, False, False])[0])
    with pytest.raises(InputError, match="batch sizes"):
        clock(setting.network, rules, setting.inputs[:4], batches=[8])


def same(found: Answer, expected: Answer) -> None:
    assert torch.equal(found.exit, expected.exit)
    assert torch.equal(found.cost, expected.cost)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def timed(
    network: StagedNetwork, stages: np.ndarray, *, gather: float = 0.0, sizes: Sequence[float] = (1.0, 64.0)
) -> Timings:
    """Timings as they might have been measured, looks free."""
    nothing = np.zeros_like(stages)
    return Timings(
        network.fingerprint(), np.array(sizes, dtype=float), stages, nothing, nothing + gather, (1,) * len(sizes)
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1, 3, 16, 40, 100])
def test_fixed_sizes_change_no_answer(setting: Setting, name: str, size: int) -> None:
    network, stages, heads = counted(setting.network)
    rule, inputs = anywhere(setting.rules[name]), setting.inputs[200 : 200 + size]
    expected = Engine(network, rule)(inputs)
    for module in (*stages, *heads):
        module.sizes.clear()
    same(Engine(network, rule, sizes=(4, 16, 40))(inputs), expected)
    assert {size for module in (*stages, *heads) for size in module.sizes} <= {4, 16, 40}


def test_compacting_waits_until_it_pays(setting: Setting) -> None:
    network, stages, _ = counted(setting.network)
    rule, inputs = anywhere(setting.rules["additive"]), setting.inputs[200:264]
    expected = Engine(network, rule)(inputs)
    survivors = [int((expected.exit >= k).sum()) for k in range(3)]
    for gather, sizes in ((0.0, survivors), (1e9, [64, 64, 64])):
        for stage in stages:
            stage.sizes.clear()
        timings = timed(network, np.ones((3, 2)) * [1, 64], gather=gather)
        same(Engine(network, rule, timings=timings)(inputs), expected)
        assert [stage.sizes for stage in stages] == [[size] for size in sizes]


def test_measured_timings_are_of_this_network(setting: Setting) -> None:
    timings = Timings.measure(setting.network, setting.inputs[:2], sizes=(1, 8), repeats=3)
    assert timings.stages.shape == timings.looks.shape == timings.gathers.shape == (3, 2)
    assert (timings.stages > 0).all()
    assert (timings.looks > 0).all()
    same(
        Engine(setting.network, setting.rules["additive"], timings=timings)(setting.inputs[200:264]),
        Engine(setting.network, setting.rules["additive"])(setting.inputs[200:264]),
    )
    with pytest.raises(InputError, match="measure them again"):
        Engine(
            resnet(8, classes=4, channels=1, width=8, seed=3),
            anywhere(FixedDepth(Origin.of(setting.fit), 0)),
            timings=timings,
        )
    for sizes in ((), (0, 4), (4, 4)):
        with pytest.raises(InputError, match="rise from 1 on"):
            Timings.measure(setting.network, setting.inputs[:2], sizes=sizes)


def test_a_batch_is_cut_where_large_ones_are_slow_and_no_answer_changes(setting: Setting) -> None:
    network, stages, _ = counted(setting.network)
    rule, inputs = anywhere(setting.rules["fixed 2"]), setting.inputs[200:300]
    expected = Engine(network, rule)(inputs)
    steep = timed(network, np.ones((3, 3)) * [1, 16, 200], sizes=[1, 16, 64])  # 1 ms a sample up to 16, 3 at 64
    level = timed(network, np.ones((3, 3)) * [1, 16, 63], sizes=[1, 16, 64])
    for timings, pieces in ((steep, [15] * 6 + [10]), (level, [100])):
        for stage in stages:
            stage.sizes.clear()
        same(Engine(network, rule, timings=timings)(inputs), expected)
        assert [stage.sizes for stage in stages] == [pieces] * 3
    assert steep.piece(16) == 16
    assert steep.piece(17) == 9  # two pieces of about the same size, not 16 and 1
    dear = Timings("", steep.sizes, steep.stages, np.full((3, 3), 400.0), steep.gathers, (1, 1, 1))
    assert dear.piece(100, (False, False, True)) == 100  # a look of 400 ms at any size: seven of them do not pay
    assert dear.piece(100, (False, False, False)) == 15
    stages[0].sizes.clear()
    Engine(network, rule, timings=steep)(inputs, deadline=1e6)
    assert stages[0].sizes == [100]  # with a deadline no sample waits for the others' last exit


def test_costs_at_a_batch_size_are_the_measured_times_a_sample(setting: Setting) -> None:
    stages, looks = np.array([[2.0, 8.0], [1.0, 4.0]]), np.array([[0.5, 1.0], [0.1, 0.2]])
    timings = Timings("", np.array([1.0, 5.0]), stages, looks, np.zeros((2, 2)), (1, 1))
    for batch, reach, look in ((1, [2, 3], [0.5, 0.1]), (5, [1.6, 2.4], [0.2, 0.04]), (3, [5 / 3, 2.5], [0.25, 0.05])):
        costs = timings.costs(batch)
        np.testing.assert_allclose(costs.reach, reach)
        np.testing.assert_allclose(costs.look, look)
        assert costs.unit == f"ms a sample at batch {batch}, 1 thread"


def test_a_call_may_name_a_price(setting: Setting) -> None:
    rules = [setting.ladder[price] for price in (0.02, 0.3)]
    engine, inputs = Engine(setting.network, rules), setting.inputs[200:264]
    for rule in rules:
        same(engine(inputs, price=rule.origin.price), Engine(setting.network, rule)(inputs))
    same(engine(inputs), engine(inputs, price=0.02))
    with pytest.raises(InputError, match=r"no rule at price 0.1; the engine has 0.02, 0.3"):
        engine(inputs, price=0.1)
    with pytest.raises(InputError, match="give one rule a price"):
        Engine(setting.network, [rules[0], rules[0]])


@pytest.mark.parametrize("size", [1, 64])
def test_a_deadline_degrades_to_the_exit_reached(setting: Setting, size: int) -> None:
    engine, inputs = Engine(setting.network, setting.rules["additive"]), setting.inputs[200 : 200 + size]
    same(engine(inputs, deadline=1e6), engine(inputs))
    late = engine(inputs, deadline=0.0)
    assert (late.exit == 0).all()
    torch.testing.assert_close(late.logits, setting.logits[200 : 200 + size, 0], rtol=1e-4, atol=1e-4)
    slow = timed(setting.network, np.full((3, 2), [[1.0], [1.0], [1e9]]))
    foresees = Engine(setting.network, setting.rules["additive"], timings=slow)(inputs, deadline=1e6)
    assert int(foresees.exit.max()) == min(1, int(engine(inputs).exit.max()))


def test_what_an_engine_cannot_be_made_of_is_refused(setting: Setting) -> None:
    rule = setting.rules["additive"]
    for sizes in ((), (0, 4), (8, 8)):
        with pytest.raises(InputError, match="must rise from 1 on"):
            Engine(setting.network, rule, sizes=sizes)
    with pytest.raises(InputError, match="compile=True needs sizes="):
        Engine(setting.network, rule, compile=True)
    with pytest.raises(InputError, match="empty list"):
        Engine(setting.network, [])


def test_gathering_keeps_values_and_layout() -> None:
    index = torch.tensor([4, 0, 2])
    for tensor in (
        torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(5, 3, 4, 4),
        torch.randn(5, 2),
    ):
        found = select({"x": tensor}, index)["x"]
        assert torch.equal(found, tensor[index])
        assert found.stride()[1:] == tensor.stride()[1:]
        assert torch.equal(select(tensor, torch.tensor([True, False, True, True, False])), tensor[[0, 2, 3]])


def test_answer_depends_on_no_neighbour(setting: Setting) -> None:
    engine = Engine(setting.network, setting.rules["additive"])
    whole = engine(setting.inputs[200:264])
    alone = [engine(setting.inputs[i : i + 1]) for i in range(200, 264)]
    assert torch.equal(whole.exit, torch.cat([a.exit for a in alone]))
    torch.testing.assert_close(whole.logits, torch.cat([a.logits for a in alone]), rtol=1e-4, atol=1e-4)
