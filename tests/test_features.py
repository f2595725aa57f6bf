"""Features: one record says all; a feature of one's own works wherever there are features."""

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from checker import unchecked
from optdepth.continuous.boundary import Boundary
from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.features import (
    FEATURES,
    Feature,
    Observer,
    features_of,
    frugal_features,
    not_smooth,
    observe,
    register,
    with_history,
)
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from optdepth.networks import StagedNetwork, resnet
from optdepth.record import record
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.gain import GainRule, frugal
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.regression import Additive
from optdepth.stopping.rule import Origin, Rule
from optdepth.trace import Trace

GINI = Feature(
    "gini",
    "chance that two draws from the class distribution differ",
    of="classes",
    batch=lambda view, _: 1 - view.probabilities.square().sum(-1),
    smooth=True,
)
RISE = Feature(
    "rise",
    "how far the highest probability rose since the exit before",
    of="classes",
    batch=lambda view, earlier: view.best if earlier is None else view.best - earlier,
    one=lambda view, earlier: view.best if earlier is None else view.best - earlier,
    keep=lambda view, _: view.best,
    tokens="least",
)
MOVED = Feature(
    "moved", "largest part that moved", of="state", batch=lambda view, _: (view.states[1][:, 0]).flatten(1).amax(1)
)
HIGHEST = Feature(
    "highest",
    "the highest of the numbers",
    of="numbers",
    batch=lambda view, _: view.numbers.amax(1),
    one=lambda view, _: max(view.numbers),
)


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    """Registered for a test, and gone after it."""
    with patch.dict(FEATURES):
        for feature in (GINI, RISE, MOVED, HIGHEST):
            register(feature)
        yield


class Given:
    """A small network, inputs, and what is recorded of them."""

    def __init__(self) -> None:
        self.network: StagedNetwork = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.rand(60, 1, 8, 8, generator=generator)
        for head in self.network.heads:
            head.linear.weight.data = torch.randn(head.linear.weight.shape, generator=generator)
        costs = flops(self.network, self.inputs[:1]).relative()
        self.trace = record(self.network, [(self.inputs, torch.arange(60) % 4)], costs)

    def threshold(self, feature: str, trace: Trace | None = None) -> Threshold:
        """Stops a share of the samples at each exit; cuts lie where no rounding reaches, amid the widest gaps."""
        seen = (self.trace if trace is None else trace).columns([feature])[:, :-1, 0]
        cuts = []
        for column in np.sort(seen, axis=0).T:
            middle = column[len(column) // 3 : 2 * len(column) // 3]
            k = int(np.diff(middle).argmax())
            cuts.append((middle[k] + middle[k + 1]) / 2)
        return Threshold(Origin.of(self.trace), feature, torch.tensor(cuts))


@pytest.fixture
def given() -> Given:
    return Given()


def test_what_is_known_of_the_features_there_are() -> None:
    with patch.dict(FEATURES):
        for name in ("gini", "rise", "moved", "highest"):
            del FEATURES[name]
        assert features_of("classes") == ("confidence", "margin", "entropy", "streak", "divergence")
        assert features_of("numbers") == ("change", "level")
        assert features_of("state") == ("residual",)
        assert frugal_features() == ("margin", "entropy", "streak")
        assert with_history([*FEATURES, "age"]) == ("streak", "divergence", "change")
        assert not_smooth([*FEATURES, "age"]) == ("streak", "divergence", "change", "residual", "age")
        assert [name for name, feature in FEATURES.items() if feature.one] == list(features_of("classes"))


@pytest.mark.parametrize("feature", ["gini", "rise", "moved"])
def test_engine_stream_and_trace_agree_on_a_feature_of_ones_own(given: Given, feature: str) -> None:
    """In batches and one by one, with a form in Python numbers and without."""
    rule = given.threshold(feature)
    expected = rule.stopped_at(given.trace)
    assert len(set(expected)) == 3
    engine = Engine(given.network, rule)
    for size in (1, 7, 60):
        found = torch.cat([engine(part).exit for part in given.inputs.split(size)])
        np.testing.assert_array_equal(found, expected)
    streamed = stream(engine, given.inputs, batch=8, ordered=True)
    np.testing.assert_array_equal([answer.exit for answer in streamed], expected)


def test_two_at_once_one_of_them_in_tensors_alone(given: Given) -> None:
    one = torch.ones(2, 1)
    gain = Additive(low=torch.tensor([[0.2], [-0.3]]), scale=one, weight=one, intercept=torch.tensor(-0.7))
    rule = GainRule(Origin.of(given.trace), ("gini", "rise"), [gain, gain])
    engine = Engine(given.network, rule)
    together = engine(given.inputs).exit
    assert torch.equal(torch.cat([engine(part).exit for part in given.inputs.split(1)]), together)


def test_it_is_in_every_trace_of_its_kind(given: Given) -> None:
    assert given.trace.features == (*features_of("classes"), "residual", "moved")
    assert {"gini", "rise"} < set(given.trace.features)
    shares = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]])
    seen, names = observe(shares.clamp(min=1e-30).log(), "classes")
    torch.testing.assert_close(seen[0, :, names.index("gini")], torch.tensor([0.625, 0.0]))
    torch.testing.assert_close(seen[0, :, names.index("rise")], torch.tensor([0.5, 0.5]))


def test_a_history_is_known_where_exits_are_passed_by(given: Given) -> None:
    rule = given.threshold("gini")
    assert Placed(rule.origin, rule, (0, 1, 2)).features == ("gini",)
    with pytest.raises(InputError, match="rise refers to the exit before"):
        Placed(rule.origin, given.threshold("rise"), (0, 1, 2))
    with pytest.raises(InputError, match="rise refers to the exit before"):
        placed(given.trace, price=0.1, features=("rise",))


def test_a_boundary_knows_what_is_smooth(given: Given) -> None:
    boundary = Boundary(given.threshold("gini"))
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    score = boundary(torch.zeros(5, dtype=torch.long), torch.zeros(5), logits)
    expected = float(boundary.rule.thresholds[0]) - (1 - logits.softmax(-1).square().sum(-1))
    torch.testing.assert_close(score, expected)
    for feature in ("rise", "moved"):
        with pytest.raises(InputError, match=f"the rule reads {feature}, which has no boundary"):
            Boundary(given.threshold(feature))


def test_it_is_pooled_over_tokens_and_padding_left_out() -> None:
    logits = torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(0))  # samples, exits, tokens, classes
    seen, names = observe(logits, "classes")
    each = torch.stack([observe(logits[:, :, t], "classes")[0] for t in range(7)], dim=2)
    gini, rise = (each[..., names.index(name)] for name in ("gini", "rise"))
    torch.testing.assert_close(seen[..., names.index("gini")], gini.mean(2))
    torch.testing.assert_close(seen[..., names.index("rise")], rise.amin(2))
    padded = torch.cat([logits, torch.zeros(4, 3, 6, 5)], dim=2)
    torch.testing.assert_close(observe(padded, "classes")[0], seen)


def test_numbers_have_theirs_and_one_sample_reads_them_as_a_batch_does() -> None:
    answers = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    seen, names = observe(answers, "numbers")
    assert names == ("change", "level", "highest")
    torch.testing.assert_close(seen[..., 2], answers.amax(-1))
    assert Observer(("highest",)).one(answers[:1, 0], {})[0] == seen[0, 0, 2:].tolist()


def test_a_rule_that_reads_it_is_saved_and_loaded(given: Given, tmp_path: Path) -> None:
    rule = given.threshold("gini")
    rule.save(tmp_path)
    np.testing.assert_array_equal(Rule.load(tmp_path).stopped_at(given.trace), rule.stopped_at(given.trace))


def test_rules_read_the_frugal_ones_unless_told_otherwise(given: Given) -> None:
    assert frugal(given.trace) == ("margin", "entropy", "streak")
    register(dataclasses.replace(GINI, name="frugal gini", frugal=True))
    assert frugal_features() == ("margin", "entropy", "streak", "frugal gini")
    assert frugal(given.trace) == given.trace.features  # an older trace has not all of them


@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature.one is not None])
def test_one_sample_has_the_number_of_the_batch(name: str) -> None:
    """Of logits far apart, near each other, and equal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([scale * torch.randn(20, 4, 6, generator=generator) for scale in (0.0, 1e-6, 1.0, 40.0)])
    observer = Observer((name,))
    memory: dict = {}
    alone: list[dict] = [{} for _ in logits]
    for k in range(4):
        expected, memory = observer(logits[:, k], memory)
        for i in range(len(logits)):
            found, alone[i] = observer.one(logits[i : i + 1, k], alone[i])
            np.testing.assert_allclose(found, expected[i], rtol=2e-6, atol=2e-7)


class Counted(TorchDispatchMode):
    """Counts the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:
        self.runs[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_what_features_share_is_computed_once_a_look() -> None:
    logits = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    for names, highest in ((features_of("classes"), 1), (("confidence", "margin", "entropy", "streak"), 0)):
        observer = Observer(names)
        _, memory = observer(logits[:, 0], {})
        with Counted() as counted:
            observer(logits[:, 1], memory)
        assert (counted.runs["_softmax"], counted.runs["topk"], counted.runs["argmax"]) == (1, 1, 1)
        assert counted.runs["amax"] == highest  # the likeliest is one of the two likeliest, where these are asked first
    with Counted() as counted:
        Observer(("streak",))(logits[:, 0], {})
    assert not counted.runs["_softmax"]  # nothing that nobody asked for


def test_an_observer_is_copied_and_sent_by_name() -> None:
    observer = Observer(("gini", "rise"))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for again in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert torch.equal(again(logits, {})[0], observer(logits, {})[0])


def test_a_name_is_given_once() -> None:
    for name in ("gini", "margin"):
        with pytest.raises(InputError, match=f"a feature '{name}' is registered already"):
            register(dataclasses.replace(GINI, name=name, words="something else"))
    assert FEATURES["gini"] is GINI


def test_what_cannot_be_a_feature_says_so(given: Given) -> None:
    with unchecked(), pytest.raises(InputError, match="is of 'pictures'; choose from classes, numbers, state"):
        dataclasses.replace(GINI, of="pictures")
    with pytest.raises(InputError, match="leave one= out"):
        dataclasses.replace(MOVED, one=lambda view, _: 0.0)
    for record_ in (RISE, MOVED):
        with pytest.raises(InputError, match="it is not smooth along a path"):
            dataclasses.replace(record_, smooth=True)
    register(dataclasses.replace(GINI, name="wide", batch=lambda view, _: view.probabilities))
    with pytest.raises(InputError, match=r"feature 'wide' has shape \(3, 4\); give one number a sample"):
        Observer(("wide",))(torch.zeros(3, 4), {})
    with pytest.raises(InputError, match="unknown feature 'age'; choose from confidence, margin"):
        Observer(("margin", "age"))
    with pytest.raises(InputError, match="which a feature of the state is of"):
        Observer(("moved",))(torch.zeros(3, 4), {})
    logits, labels = torch.zeros(3, 3, 4), torch.zeros(3, dtype=torch.long)
    for of_state, said in (({"gini": np.zeros((3, 3))}, "'gini' is no feature"), ({"moved": np.zeros(3)}, "has shape")):
        with unchecked(), pytest.raises(InputError, match=said):
            Trace.from_logits(logits, labels, given.trace.costs, of_state=of_state)


def test_features_of_the_state_can_be_given_to_a_trace(given: Given) -> None:
    """As for one that was recorded elsewhere: the columns are those that recording gives."""
    with torch.inference_mode():
        logits = torch.stack(given.network(given.inputs), dim=1)
    besides = {name: given.trace.columns([name])[:, :, 0] for name in features_of("state")}
    made = Trace.from_logits(logits, torch.arange(60) % 4, given.trace.costs, of_state=besides)
    assert made.features == given.trace.features
    torch.testing.assert_close(torch.from_numpy(made.observations), torch.from_numpy(given.trace.observations))


def test_the_page_on_extending_runs_as_printed() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
    section = page.partition("## A feature of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    check = "print(trace.features[5], rule.features)"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gini ('gini',)\n"
