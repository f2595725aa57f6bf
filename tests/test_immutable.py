"""A rule says one thing however it is asked, and nothing changes what it says."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checker import unchecked
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.gain import GainRule
from optdepth.stopping.placed import Placed
from optdepth.stopping.regression import Additive, Hinged
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.stationary import Stationary

ORIGIN = Origin(Costs.of(np.arange(1.0, 6.0)), price=0.1)
PAIR = ("margin", "entropy")


class Nearest(Rule):
    """A rule of one's own, which holds a tensor and decides by tensors alone: stops near a place."""

    def __init__(self, origin: Origin, place: Tensor) -> None:
        super().__init__(origin, PAIR)
        self._place = place.clone()

    def stop(self, k: int, observation: Tensor) -> Tensor:
        return self.score(k, observation) <= 0

    def score(self, k: int, observation: Tensor) -> Tensor:
        return (observation - self._place).norm(dim=1) - 0.3

    def arguments(self) -> dict[str, Any]:
        return {"place": self._place.clone()}


def additive() -> Additive:
    """0.6 less a ramp on the first feature, plus half of one on the second."""
    low, scale = torch.tensor([[0.0, 0.5], [0.0, 0.5]]), torch.full((2, 2), 2.0)
    weight = torch.tensor([[-0.5, -0.5], [0.25, 0.25]])
    return Additive(low=low, scale=scale, weight=weight, intercept=torch.tensor(0.3))


def hinged() -> Hinged:
    """One hinge on each feature."""
    tensors = {
        "least": torch.zeros(2),
        "most": torch.ones(2),
        "weight": torch.eye(2),
        "bias": torch.tensor([-0.2, -0.4]),
    }
    return Hinged(**tensors, last=torch.tensor([-1.0, 0.8]), intercept=torch.tensor(0.2))


def stationary(spread: float) -> Stationary:
    return Stationary(ORIGIN, PAIR, additive(), additive(), spread)


KINDS: dict[str, Callable[[], Rule]] = {
    "fixed": lambda: FixedDepth(ORIGIN, 2),
    "above": lambda: Threshold(ORIGIN, "margin", torch.tensor([0.35, 0.5, 0.65, 0.8])),
    "below": lambda: Threshold(ORIGIN, "entropy", torch.tensor([0.35, 0.5, 0.65, 0.8]), below=True),
    "never": lambda: Threshold(ORIGIN, "margin", torch.full((4,), torch.inf)),
    "additive": lambda: GainRule(ORIGIN, PAIR, [additive()] * 4),
    "hinged": lambda: GainRule(ORIGIN, PAIR, [hinged()] * 4),
    "placed": lambda: Placed(ORIGIN, GainRule(Origin(Costs.of([1.0, 3.0, 5.0])), PAIR, [additive()] * 2), (0, 2, 4)),
    "stationary": lambda: stationary(1.0),
    "stationary at its limit": lambda: stationary(0.2),
    "own": lambda: Nearest(ORIGIN, torch.tensor([0.5, 0.5])),
}


@pytest.fixture(params=KINDS)
def rule(request: pytest.FixtureRequest) -> Rule:
    return KINDS[request.param]()


def seen(rule: Rule) -> Tensor:
    """Observations of what the rule reads, from all of [0, 1], none near where any of the rules changes its mind."""
    steps = torch.linspace(0.02, 0.98, 25)
    grid = torch.cartesian_prod(steps, steps)
    near = torch.stack([function(grid).abs() for function in (additive(), hinged())]).amin(0)
    near = torch.minimum(near, (grid - 0.5).norm(dim=1).sub(0.3).abs())
    near = torch.minimum(near, (grid[..., None] - torch.tensor([0.35, 0.5, 0.65, 0.8])).abs().flatten(1).amin(1))
    return grid[near > 0.01][:, : len(rule.features)]


def said(rule: Rule) -> list[list[bool]]:
    """What a rule says at every exit that it decides at: the same in tensors, in numbers, and rebuilt."""
    observation, answers = seen(rule), []
    again = type(rule).restore(rule.origin, rule.arguments())
    for k in [k for k in range(rule.last) if rule.decides[k]]:
        stops = rule.stop(k, observation).tolist()
        assert [rule.decide(k, row) for row in observation.tolist()] == stops
        assert again.stop(k, observation).tolist() == stops
        answers.append(stops)
    return answers


def test_a_rule_says_one_thing_however_it_is_asked(rule: Rule) -> None:
    answers = said(rule)
    if rule.features and rule.arguments().get("thresholds", torch.zeros(1)).isfinite().all():
        assert answers
        assert all(0 < sum(stops) < len(stops) for stops in answers)


def test_where_all_stop() -> None:
    early = {"fixed": 2, "stationary at its limit": 2}
    assert {name: make().last for name, make in KINDS.items()} == {name: early.get(name, 4) for name in KINDS}


def test_a_score_is_positive_where_the_rule_goes_on(rule: Rule) -> None:
    observation = seen(rule)
    if isinstance(rule, FixedDepth | Placed):
        with pytest.raises(InputError, match=f"a rule of kind {type(rule).__name__} has no score to find the zero of"):
            rule.score(0, observation)
        return
    for k in range(rule.last):
        assert torch.equal(rule.score(k, observation) <= 0, rule.stop(k, observation))


def test_no_attribute_can_be_set_or_deleted(rule: Rule) -> None:
    before = said(rule)
    for name in (*vars(rule), "something", "below", "features", "last"):
        with pytest.raises(InputError, match=f"'{name}' of a {type(rule).__name__} cannot be changed: .* a new one"):
            setattr(rule, name, 0.9)
        with pytest.raises(InputError, match="cannot be changed"):
            delattr(rule, name)
    with pytest.raises(InputError, match="cannot be changed"):
        Rule.__init__(rule, ORIGIN, ())
    assert said(rule) == before


def test_functions_are_immutable_too() -> None:
    for function in (additive(), hinged()):
        with pytest.raises(InputError, match="cannot be changed"):
            function._weight = torch.zeros(2, 2)


def test_what_goes_in_and_what_comes_out_may_be_written_to(rule: Rule) -> None:
    before = said(rule)
    for value in rule.arguments().values():
        if isinstance(value, Tensor):
            value.fill_(0.9)
        elif isinstance(value, list):
            value.clear()
    for function in getattr(rule, "gains", ()):
        for value in function.arguments().values():
            value.zero_()
    assert said(rule) == before


def test_what_it_was_made_of_may_be_written_to() -> None:
    cuts = torch.tensor([0.35, 0.5, 0.65, 0.8])
    threshold = Threshold(ORIGIN, "margin", cuts)
    parts = {name: value.clone() for name, value in additive().arguments().items()}
    functions = [Additive(**parts)] * 4
    gain = GainRule(ORIGIN, PAIR, functions)
    before = said(threshold), said(gain)
    for tensor in (cuts, *parts.values(), threshold.thresholds):
        tensor.fill_(0.9)
    functions.clear()
    assert (said(threshold), said(gain)) == before


class Holder(nn.Module):
    """A torch module that has a rule."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.linear = rule, nn.Linear(2, 2)


def through_a_file(holder: Holder) -> Holder:
    buffer = io.BytesIO()
    torch.save(holder, buffer)
    buffer.seek(0)
    back: Holder = torch.load(buffer, weights_only=False)
    return back


def overwritten(holder: Holder) -> Holder:
    """All that a torch module offers is written to."""
    holder.load_state_dict({name: torch.full_like(value, 0.9) for name, value in holder.state_dict().items()})
    for tensor in (*holder.parameters(), *holder.buffers()):
        tensor.data.fill_(0.9)
    return holder


CHANGES: dict[str, Callable[[Holder], Holder]] = {
    "half": lambda holder: holder.half(),
    "double": lambda holder: holder.double(),
    "bfloat16": lambda holder: holder.to(torch.bfloat16),
    "empty": lambda holder: holder.to_empty(device="cpu"),
    "deepcopy": copy.deepcopy,
    "pickle": lambda holder: pickle.loads(pickle.dumps(holder)),
    "file": through_a_file,
    "overwritten": overwritten,
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_that_is_done_to_a_torch_module_reaches_the_rule_in_it(rule: Rule, change: str) -> None:
    before, holder = said(rule), CHANGES[change](Holder(rule))
    assert said(holder.rule) == before
    with pytest.raises(InputError, match="cannot be changed"):
        holder.rule.origin = ORIGIN


def test_there_is_no_state_to_load(rule: Rule) -> None:
    """Neither what a torch module is overwritten by, nor its precision."""
    for name in ("load_state_dict", "register_buffer", "half", "double", "apply"):
        assert not hasattr(rule, name)


def test_it_moves_between_devices_and_keeps_its_precision(rule: Rule) -> None:
    before = said(rule)
    assert rule.to("cpu") is rule
    away = rule.to("meta")
    assert (away.device.type, rule.device.type) == ("meta", "cpu")
    if rule.features:
        k = rule.decides.index(True)
        assert away.stop(k, torch.zeros(3, len(rule.features), device="meta")).device.type == "meta"
    assert said(rule) == before
    for wrong in (torch.float16, "somewhere"):
        with unchecked(), pytest.raises(InputError, match="it keeps its precision"):
            rule.to(wrong)  # type: ignore[arg-type]


def test_a_rule_with_a_network_in_it_is_moved_as_a_copy() -> None:
    class Learned(Nearest):
        """Holds a module."""

        def __init__(self, origin: Origin, place: Tensor) -> None:
            super().__init__(origin, place)
            self.net = nn.Linear(2, 1)

    rule = Learned(ORIGIN, torch.zeros(2))
    assert rule.to("meta").net.weight.is_meta
    assert not rule.net.weight.is_meta
