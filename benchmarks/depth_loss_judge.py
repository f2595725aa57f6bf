"""What a trained arm is worth: its solved rules at every price, on samples that fitted nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from depth_loss_bands import Swept, ahead
from figures import provenance
from optdepth.recall import Windows, best_recall
from optdepth.runs import Run
from optdepth.stopping.bounds import gap
from optdepth.stopping.evaluate import Evaluation, evaluate
from optdepth.stopping.family import Family
from optdepth.stopping.finite import finite_depth
from optdepth.stopping.frontier import fixed_depths
from optdepth.stopping.methods import METHODS, SOLVED, baselines
from optdepth.stopping.placed import Placed
from optdepth.stopping.placement import keep
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from optdepth.training.loop import RECORD

PRICES = (0.001, 0.0032, *np.geomspace(0.01, 1.0, 13).round(4).tolist())
"""Loss that one full pass is worth. The two lowest fill the frontier up to the cost of the whole network."""
RULES = (SOLVED, *baselines())
JUDGES = ("certify", "test")


@dataclass(frozen=True, eq=False)
class Recording:
    """A trace and what it was made of, so that it can be made anew with fewer exits.

    Attributes:
        logits: (N, K, C) of every exit.
        labels: (N,) the right classes.
    """

    trace: Trace
    logits: Float[Tensor, "N K C"]
    labels: Int[np.ndarray, " N"]

    def looks(self, exits: Sequence[int], recall: Windows = ()) -> Trace:
        """As a network with only these exits records it: patience counts agreements between the exits looked at."""
        costs = keep(self.trace, exits).costs
        where = {name: getattr(self.trace, name) for name in ("source", "rows", "identity")}
        return Trace.from_logits(self.logits[:, list(exits)], self.labels, costs, recall=recall, **where)


def judge(recorded: dict[str, Recording]) -> dict[str, Any]:
    """Accuracy of every exit, solved rule and tuned thresholds at every price and budget, certificate, residuals."""
    traces = {split: each.trace for split, each in recorded.items()}
    fit = traces["fit"]
    family = METHODS[SOLVED].solve(fit)
    sweep, rules = zip(*(at_price(recorded, family, price) for price in PRICES), strict=True)
    costs = {"reach": fit.costs.reach.tolist(), "look": fit.costs.look.tolist(), "paid": fit.costs.paid().tolist()}
    return {
        "samples": {split: len(trace) for split, trace in traces.items()},
        "unit": fit.costs.unit,
        "costs": costs,
        "accuracy": {split: (1 - trace.losses.mean(0)).tolist() for split, trace in traces.items()},
        "sweep": sweep,
        "ahead": at_budgets(traces["test"], rules),
        "certificate": certificate(traces, family),
        "residuals": residuals(traces["test"]),
    }


def at_budgets(test: Trace, rules: Sequence[dict[str, Evaluation]]) -> list[dict[str, Any]]:
    """The solved rule against each kind of threshold at equal mean cost.

    All rules of a sweep stand for a method, and its two ends: the first exit and the last without a look at another,
    which every method comes to at high prices and at price 0. The exits kept differ between prices, and losses and
    costs of the samples are comparable all the same.
    """
    each = fixed_depths(test)
    swept = {}
    for method in RULES:
        found = [each[0], *(rule[method] for rule in rules), each[-1]]
        swept[method] = Swept(np.stack([one.losses for one in found]), np.stack([one.costs for one in found]))
    return ahead(swept.pop(SOLVED), swept)


def at_price(
    recorded: dict[str, Recording], family: Family[Rule], price: float
) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    """What each method does with the exits that the solved rule looks at; and its rule on the test samples."""
    rule, test = family.at(price), recorded["test"].trace
    left = gap(rule, recorded["fit"].trace, test, price=price)
    pooled: dict[str, Any] = {}
    if isinstance(rule, Placed):
        rule, exits = rule.inner, list(rule.kept)
        pooled = {"recalled": recalled(recorded, exits, price, rule.features)}
        kept = {split: each.looks(exits) for split, each in recorded.items()}
        test = keep(test, exits)
        rules = {SOLVED: rule, **{name: METHODS[name].solve(kept["fit"]).at(price) for name in baselines()}}
    else:  # no look pays, and all methods come to the whole network
        kept, exits = {split: each.trace for split, each in recorded.items()}, [test.n_exits - 1]
        rules = dict.fromkeys(RULES, rule)
    judged = {method: {split: evaluate(one, kept[split]) for split in JUDGES} for method, one in rules.items()}
    rows: dict[str, Any] = {}
    for method, found in judged.items():
        rows[method] = {split: summary(each, price) for split, each in found.items()}
        if method != SOLVED:
            rows[method]["test"] |= behind(found["test"], judged[SOLVED]["test"], price)
    bounds = finite_depth(test, rule, price=price)  # with the residual sizes, which logits do not tell
    rows[SOLVED]["test"] |= {
        "shares": judged[SOLVED]["test"].shares.round(4).tolist(),
        "deepest used": bounds.deepest,
        "deepest by the bounds": bounds.bound,
    }
    bound = {"value": left.value, "bound": left.bound}
    figures = {"price": price, "exits": exits, "methods": rows, "gap": bound, **pooled}
    return figures, {method: each["test"] for method, each in judged.items()}


def recalled(
    recorded: dict[str, Recording], exits: Sequence[int], price: float, features: Sequence[str]
) -> dict[str, Any]:
    """The rule solved on the same exits where each may also answer by those before it, as is best on the fit split."""
    fit = recorded["fit"]
    windows = best_recall(fit.logits[:, list(exits)], torch.as_tensor(fit.labels))
    rule = snell(fit.looks(exits, windows), price=price, features=features)
    judged = {split: summary(evaluate(rule, recorded[split].looks(exits, windows)), price) for split in JUDGES}
    return {"windows": windows, **judged}


def summary(found: Evaluation, price: float) -> dict[str, float]:
    """Loss, cost and their value at the price, with standard errors."""
    return {
        "loss": found.loss,
        "loss_error": found.loss_error,
        "cost": found.cost,
        "cost_error": found.cost_error,
        "value": found.value(price),
        "value_error": found.value_error(price),
    }


def behind(rival: Evaluation, solved: Evaluation, price: float) -> dict[str, float]:
    """How much worse a rival's value is than the solved rule's, paired by sample: mean and standard error."""
    apart = rival.losses - solved.losses + price * (rival.costs - solved.costs)
    return {"behind": float(apart.mean()), "behind_error": float(apart.std(ddof=1) / np.sqrt(len(apart)))}


def certificate(traces: dict[str, Trace], family: Family[Rule]) -> dict[str, Any]:
    """The cheapest solved rule whose loss exceeds the full network's by at most 1%, with 95% confidence."""
    found = family.certified(traces["certify"], risk=0.01, confidence=0.95, measure="excess")
    test = evaluate(found.rule, traces["test"])
    return {"says": str(found), "cost": found.cost, "test": {"cost": test.cost, "accuracy": 1 - test.loss}}


def residuals(test: Trace) -> dict[str, Any]:
    """Mean relative residual size before each exit, and the law of decay that they follow."""
    if "residual" not in test.features:
        return {}
    sizes = test.columns(["residual"])[:, :, 0]
    fit, judge = test.split(0.5, 0.5, seed=0)
    rule = FixedDepth(Origin.of(fit, 1.0), test.n_exits - 1)
    law = finite_depth(judge, rule, price=1.0).residual.decay
    return {"mean": sizes.mean(0).round(4).tolist(), "law": "too few depths of one shape" if law is None else str(law)}


def made(run: Run, before: dict[str, Any]) -> dict[str, Any]:
    """What made the figures: what trained the arm, and what judged it where that was another time.

    Args:
        before: the figures that are there, whose word on the training is kept; empty where there are none.
    """
    now = provenance("depth_loss.py")
    if before:
        return {key: before[key] for key in (*now, "training")} | {"judged": now}
    path = run.folder / RECORD
    training = json.loads(path.read_text()) if path.is_file() else {}
    seconds = [epoch["seconds"] for epoch in training.pop("epochs", [])]
    return {**now, "training": {**training, "seconds an epoch": [round(second) for second in seconds]}}
