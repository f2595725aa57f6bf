"""One sample in plain numbers is seen and decided on as the same sample in a batch of tensors."""

import dataclasses

import numpy as np
import pytest
import torch

from conftest import noisy_logits
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.features import Observer
from optdepth.stopping.bounds import prophet
from optdepth.stopping.evaluate import applied, evaluate
from optdepth.stopping.lookahead import lookahead
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.rule import FixedDepth, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from settings import Setting

NAMES = ("confidence", "margin", "entropy", "streak", "divergence")


@pytest.mark.parametrize("names", [NAMES, ("margin",), ("streak", "entropy"), ("divergence", "confidence")])
def test_one_sample_has_the_features_of_the_batch(names: tuple[str, ...]) -> None:
    logits = torch.cat([noisy_logits(60, exits=4)[0].float(), 40 * noisy_logits(60, exits=4, seed=1)[0].float()])
    observer = Observer(names)
    memory: dict = {}
    alone: list[dict] = [{} for _ in logits]
    for k in range(4):
        expected, memory = observer(logits[:, k], memory)
        for i in range(len(logits)):
            found, alone[i] = observer.one(logits[i : i + 1, k], alone[i])
            np.testing.assert_allclose(found, expected[i], rtol=2e-6, atol=1e-7)


def test_certainty_is_the_same_number_both_ways() -> None:
    """Thresholds of 0 and 1 meet saturated probabilities exactly, in tensors and in plain numbers."""
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0], [18.0, 0.0, 0.0, 0.0]])
    observer = Observer(("confidence", "margin"))
    batch, _ = observer(logits, {})
    for i in range(2):
        assert observer.one(logits[i : i + 1], {})[0] == batch[i].tolist()


@pytest.mark.parametrize("name", ["confidence", "entropy", "patience", "additive", "hinged"])
def test_a_rule_decides_on_one_sample_as_on_a_batch(setting: Setting, name: str) -> None:
    rule = setting.rules[name]
    columns = torch.from_numpy(setting.trace.columns(rule.features))
    for k in range(2):
        stops = rule.stop(k, columns[:, k]).tolist()
        assert [rule.decide(k, row) for row in columns[:, k].tolist()] == stops


def test_a_rule_of_another_kind_decides_through_its_tensors(splits: tuple[Trace, Trace]) -> None:
    rule = FixedDepth(snell(splits[0], price=0.1).origin, 2)
    assert [rule.decide(k, []) for k in range(4)] == [False, False, True, False]


def dear_looks(trace: Trace) -> Trace:
    return dataclasses.replace(trace, costs=Costs.of(trace.costs.reach, 0.05))


def test_dear_looks_are_left_out_and_that_is_worth_it(splits: tuple[Trace, Trace]) -> None:
    fit, test = map(dear_looks, splits)
    rule, everywhere = placed(fit, price=0.2), snell(fit, price=0.2, features=("margin",))
    assert 2 <= sum(rule.looks) < sum(everywhere.looks)
    value = lambda rule: np.mean(  # noqa: E731
        (test.losses + 0.2 * test.costs.paid(rule.looks))[np.arange(len(test)), rule.stopped_at(test)]
    )
    assert value(rule) < value(everywhere)


def test_hindsight_looks_only_where_it_stops_so_no_placed_rule_beats_it() -> None:
    """All are right from exit 2 on and nobody before: the placed rule passes the dear looks by, as hindsight does."""
    losses = np.repeat([[1.0, 1.0, 0.0, 0.0]], 400, axis=0)
    noise = np.random.default_rng(0).random((400, 4, 1))
    fit, test = Trace(losses, noise, Costs.of([1, 2, 3, 4], 0.5), ("noise",)).split(0.5, 0.5, seed=0)
    rule, best = placed(fit, price=0.1), prophet(test, price=0.1)
    assert rule.looks == (False, False, True, True)
    assert evaluate(rule, test).value(0.1) == pytest.approx(best.value) == pytest.approx(0.35)


def test_a_placed_rule_survives_being_saved(splits: tuple[Trace, Trace], tmp_path) -> None:
    fit, test = map(dear_looks, splits)
    rule = placed(fit, price=0.2, features=("margin", "entropy"))
    rule.save(tmp_path)
    again = Rule.load(tmp_path)
    assert again.looks == rule.looks
    assert np.array_equal(again.stopped_at(test), rule.stopped_at(test))


def test_where_no_look_pays_there_is_none(splits: tuple[Trace, Trace]) -> None:
    costs = Costs.of(splits[0].costs.reach, [*[3.0] * 7, 0.0])
    rule = placed(dataclasses.replace(splits[0], costs=costs), price=0.2)
    assert rule.looks == (False,) * 7 + (True,)


def test_a_budget_is_met_by_the_price(splits: tuple[Trace, Trace]) -> None:
    fit = dear_looks(splits[0])
    rule = placed(fit, budget=0.6 * fit.costs.full)
    assert 0.5 * fit.costs.full < applied(rule, fit).cost <= 0.6 * fit.costs.full


def test_without_a_margin_it_decides_on_what_refers_to_one_exit(splits: tuple[Trace, Trace]) -> None:
    names = ("entropy", "streak", "confidence")
    fit = dataclasses.replace(splits[0], observations=splits[0].columns(names), features=names)
    assert placed(fit, price=0.1).features == ("entropy", "confidence")


def test_features_with_a_history_are_refused(splits: tuple[Trace, Trace]) -> None:
    with pytest.raises(InputError, match="streak refers to the exit before"):
        placed(splits[0], price=0.1, features=("margin", "streak"))
    with pytest.raises(InputError, match="no feature left to decide on: streak"):
        placed(
            dataclasses.replace(splits[0], observations=splits[0].columns(["streak"]), features=("streak",)), price=0.1
        )
    inner = lookahead(splits[0], price=0.1)
    assert "streak" in inner.features
    with pytest.raises(InputError, match="streak refers"):
        Placed(inner.origin, inner, range(8))
