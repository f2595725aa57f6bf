"""A rule of one's own, with a last exit and a score of its own, in every place that takes a rule."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from checker import unchecked
from conftest import noisy_trace
from optdepth.continuous.boundary import Boundary, field_of_scores
from optdepth.continuous.flow import FlowEngine
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.export.bundle import export
from optdepth.export.runtime import Runtime
from optdepth.inference.decoding import Decoder
from optdepth.inference.engine import Engine
from optdepth.inference.legs import legs_of
from optdepth.inference.stream import stream
from optdepth.networks import StagedNetwork, neural_ode, resnet, stage
from optdepth.record import record
from optdepth.report.promises import Promises
from optdepth.report.regions import Regions
from optdepth.stopping.evaluate import applied
from optdepth.stopping.methods import SOLVED
from optdepth.stopping.placed import Placed
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.trace import Trace
from zoo import DECODERS, build


class Levels(Rule):
    """Stops where the margin reaches the exit's level; all stop at an exit of its own; it may pass exits by."""

    def __init__(self, origin: Origin, levels: Tensor, last: int, passes: int = -1) -> None:
        super().__init__(origin, ("margin",))
        self._levels, self._last, self._passes = tuple(levels.tolist()), last, passes

    @property
    def last(self) -> int:
        return self._last

    @property
    def looks(self) -> tuple[bool, ...]:
        return tuple(k != self._passes for k in range(len(self.origin.costs)))

    def stop(self, k: int, observation: Tensor) -> Tensor:
        return self.score(k, observation) <= 0

    def score(self, k: int, observation: Tensor) -> Tensor:
        return self._levels[k] - observation[:, 0]

    def arguments(self) -> dict[str, Any]:
        return {"levels": torch.tensor(self._levels), "last": self._last, "passes": self._passes}


def levels(trace: Trace) -> Tensor:
    """Amid the widest gaps between the margins at each exit, which no rounding crosses, so that a share stops."""
    found = []
    for column in np.sort(trace.columns(["margin"])[:, :-1, 0], axis=0).T:
        middle = column[len(column) // 3 : 2 * len(column) // 3]
        k = int(np.diff(middle).argmax())
        found.append((middle[k] + middle[k + 1]) / 2)
    return torch.tensor(found)


class Given:
    """A network of five exits, inputs, and what is recorded of them."""

    def __init__(self) -> None:
        self.network: StagedNetwork = resnet(14, classes=4, channels=1, width=8, exits="all", seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        for head in self.network.heads:
            head.linear.weight.data = torch.randn(head.linear.weight.shape, generator=generator)
        self.inputs = torch.rand(60, 1, 8, 8, generator=generator)
        costs = flops(self.network, self.inputs[:1]).relative()
        self.trace = record(self.network, [(self.inputs, torch.arange(60) % 4)], costs)
        self.origin, self.levels = Origin.of(self.trace), levels(self.trace)


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


@pytest.mark.parametrize(("last", "passes"), [(5, -1), (2, -1), (3, 1), (0, -1)])
def test_engine_and_stream_stop_where_the_trace_says(given: Given, last: int, passes: int) -> None:
    rule = Levels(given.origin, given.levels, last, passes)
    expected = rule.stopped_at(given.trace)
    assert last in expected
    assert passes not in expected
    assert len(set(expected)) >= min(3, last + 1)
    for options in ({}, {"sizes": (1, 8, 64)}):
        engine = Engine(given.network, rule, **options)
        for size in (1, 7, 60):
            for asked in ({}, {"deadline": 1e9}):
                answers = [engine(part, **asked) for part in given.inputs.split(size)]
                np.testing.assert_array_equal(torch.cat([answer.exit for answer in answers]), expected)
    paid = given.trace.costs.paid(rule.looks)[expected]
    np.testing.assert_allclose(torch.cat([answer.cost for answer in answers]), paid)
    np.testing.assert_allclose(applied(rule, given.trace).costs, paid)
    streamed = list(stream(Engine(given.network, rule), given.inputs, batch=8, ordered=True))
    np.testing.assert_array_equal([answer.exit for answer in streamed], expected)


def test_nothing_behind_its_last_exit_is_run_nor_a_head_it_passes_by(given: Given) -> None:
    ran: list[str] = []
    named = [(f"stage {k}", part) for k, part in enumerate(given.network.stages)]
    named += [(f"head {k}", part) for k, part in enumerate(given.network.heads)]
    handles = [part.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, part in named]
    Engine(given.network, Levels(given.origin, torch.full((5,), 2.0), last=3, passes=1))(given.inputs)
    for handle in handles:
        handle.remove()
    assert ran == ["stage 0", "head 0", "stage 1", "stage 2", "head 2", "stage 3", "head 3"]


def test_it_may_be_placed(given: Given) -> None:
    kept = (1, 2, 5)
    inner = Levels(Origin(given.origin.costs.keep(kept), given.origin.network), given.levels[[1, 2]], last=1)
    rule = Placed(given.origin, inner, kept)
    assert (rule.last, rule.looks) == (2, (False, True, True, False, False, True))
    np.testing.assert_array_equal(Engine(given.network, rule)(given.inputs).exit, rule.stopped_at(given.trace))


def test_the_regions_of_a_report_are_of_the_exits_it_decides_at(given: Given) -> None:
    regions = Regions.of(Levels(given.origin, given.levels, last=3, passes=1), given.trace)
    assert [at.exit for at in regions.decisions] == [0, 2]
    assert (regions.feature, regions.ranked) == ("margin", 1.0)


@pytest.mark.parametrize("last", [3, 2])
def test_the_promises_of_a_report_speak_of_it(last: int) -> None:
    fit, test, certify = noisy_trace(900, exits=4).split(1 / 3, 1 / 3, 1 / 3, seed=0)
    rule = Levels(Origin.of(fit, 0.1), torch.tensor([0.6, 0.6, 0.6]), last)
    names = ("a", "b", "c", "d")
    study = SimpleNamespace(rules={SOLVED: rule}, fit=fit, test=test, names=names, price=0.1)
    with unchecked():  # what a study holds, without measuring one
        promises = Promises.of(study, certify)  # type: ignore[arg-type]
    assert promises.names == names
    np.testing.assert_allclose(promises.depth.shares, np.bincount(rule.stopped_at(test), minlength=4) / len(test))
    inner = Levels(Origin(fit.costs.keep((0, 3)), price=0.1), torch.tensor([0.6]), 1)
    study.rules = {SOLVED: Placed(Origin.of(fit, 0.1), inner, (0, 3))}
    with unchecked():
        assert Promises.of(study, certify).names == ("a", "d")  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [4, 2])
def test_a_path_of_a_flow_ends_at_its_boundary_or_where_all_stop(last: int) -> None:
    network = neural_ode(4, classes=3, channels=1, width=4, horizon=2.0, seed=5).eval()
    inputs = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trace = record(network, [(inputs, torch.arange(40) % 3)], Costs.of(np.arange(1.0, 6.0)))
    rule = Levels(Origin.of(trace), levels(trace), last)
    with torch.no_grad():
        stopped = FlowEngine(network, rule)(inputs)
    np.testing.assert_array_equal(stopped.exit, rule.stopped_at(trace))
    np.testing.assert_array_equal(stopped.exit, Engine(network, rule)(inputs).exit)
    assert float(stopped.time.max()) <= 0.5 * last
    assert 0 < float((stopped.time == 0.5 * last).double().mean()) < 1


def test_what_is_no_boundary_says_so(given: Given) -> None:
    class Unscored(Levels):
        """Has no score."""

        score = Rule.score

    with pytest.raises(InputError, match="a rule of kind Unscored has no score to find the zero of; use snell"):
        Boundary(Unscored(given.origin, given.levels, 5))
    for rule in (Levels(given.origin, given.levels, 3, passes=1), Levels(given.origin, given.levels, 0)):
        with pytest.raises(InputError, match="does not decide at every exit up to its last"):
            Boundary(rule)
    never = Levels(given.origin, torch.full((5,), torch.inf), 5)
    times = torch.tensor([0.0, 0.5])
    assert torch.isfinite(field_of_scores(Boundary(never), times, torch.arange(6.0), torch.tensor([0.1, 0.9]))).all()


def test_a_decoder_stops_tokens_by_it() -> None:
    prompt = torch.randint(0, 60, (3, 6), generator=torch.Generator().manual_seed(2))
    model, _ = build(f"transformers {next(iter(DECODERS))}, per token")
    model = model.double()
    model.config.use_cache = True
    network = stage(model, example={"input_ids": prompt}, exits="all")
    generator = torch.Generator().manual_seed(0)
    for head in network.heads[:-1]:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    origin = Origin(Costs.of(np.arange(1.0, 5.0)), network.fingerprint())
    for last, passes in ((2, -1), (1, 0), (3, -1)):
        decoder = Decoder(model, network, Levels(origin, torch.full((3,), 0.02), last, passes))
        text = decoder.generate(prompt, 6)
        assert int(text.exit.max()) <= last
        assert passes not in text.exit
        followed = decoder.follow(torch.cat([prompt, text.tokens], dim=1), prompt=6)
        np.testing.assert_array_equal(followed.stopped_at, text.exit.flatten())


def test_a_bundle_ends_where_all_stop(given: Given, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rule = Levels(given.origin, given.levels, last=2, passes=1)
    bundle = export(given.network, rule, given.inputs, tmp_path / "bundle")
    assert bundle.graphs == 2
    np.testing.assert_array_equal(Runtime(tmp_path / "bundle")(given.inputs.numpy()).exit, rule.stopped_at(given.trace))


@pytest.mark.slow
def test_compiled_it_stops_where_the_trace_says(given: Given) -> None:
    rule = Levels(given.origin, given.levels, last=3, passes=1)
    engine = Engine(given.network, rule, sizes=(1, 8), compile=True)
    found = torch.cat([engine(part).exit for size in (1, 8) for part in given.inputs[:16].split(size)])
    np.testing.assert_array_equal(found, np.tile(rule.stopped_at(given.trace)[:16], 2))


def test_what_it_would_recall_of_exits_it_passes_by_is_refused(given: Given) -> None:
    windows = tuple((max(0, k - 1), k) for k in range(6))
    origin = Origin(given.origin.costs, given.origin.network, recall=windows)
    with pytest.raises(InputError, match="answers at exit 2 by recall of exit 1, which it does not look at"):
        Engine(given.network, Levels(origin, given.levels, 5, passes=1))
    assert len(legs_of(given.network, FixedDepth(origin, 3))) == 2


def test_a_history_of_exits_it_passes_by_is_refused(given: Given) -> None:
    class Patient(Levels):
        """Reads a history."""

        def __init__(self, origin: Origin, levels: Tensor, last: int, passes: int = -1) -> None:
            super().__init__(origin, levels, last, passes)
            self.features = ("streak",)

    for judge in (lambda rule: rule.stopped_at(given.trace), lambda rule: Engine(given.network, rule)):
        judge(Patient(given.origin, given.levels, 5))
        with pytest.raises(InputError, match="streak refers to the exit before, which the rule does not look at"):
            judge(Patient(given.origin, given.levels, 5, passes=1))


def test_saved_and_loaded_it_stops_where_it_did(given: Given, tmp_path: Path) -> None:
    rule = Levels(given.origin, given.levels, last=3, passes=1)
    rule.save(tmp_path)
    back = Rule.load(tmp_path)
    assert (back.last, back.looks) == (3, rule.looks)
    np.testing.assert_array_equal(back.stopped_at(given.trace), rule.stopped_at(given.trace))
