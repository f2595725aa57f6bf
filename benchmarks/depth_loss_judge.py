"""What a trained arm is worth: its solved rules at every price, on samples that fitted nothing."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
import torch

from optdepth.stopping.certify import certified
from optdepth.stopping.evaluate import Evaluation, evaluate
from optdepth.stopping.finite import finite_depth
from optdepth.stopping.frontier import BASELINES, FAMILIES
from optdepth.stopping.placement import keep, place
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.trace import Trace
from optdepth.workflow import Run, versions
from provenance import commit, processor

PRICES = tuple(np.geomspace(0.01, 1.0, 13).round(4).tolist())
"""Loss that one full pass is worth."""
METHODS = ("snell", *BASELINES)
JUDGES = ("certify", "test")


def judge(traces: dict[str, Trace]) -> dict[str, Any]:
    """Accuracy of every exit, the solved rule and tuned thresholds at every price, certificate, residual sizes."""
    fit = traces["fit"]
    costs = {"reach": fit.costs.reach.tolist(), "probe": fit.costs.probe.tolist(), "paid": fit.costs.paid().tolist()}
    return {
        "samples": {split: len(trace) for split, trace in traces.items()},
        "unit": fit.costs.unit,
        "costs": costs,
        "accuracy": {split: (1 - trace.losses.mean(0)).tolist() for split, trace in traces.items()},
        "sweep": [at_price(traces, price) for price in PRICES],
        "certificate": certificate(traces),
        "residuals": residuals(traces["test"]),
    }


def at_price(traces: dict[str, Trace], price: float) -> dict[str, Any]:
    """The exits to keep at a price, chosen on the fit split, and what each method then does with them."""
    exits = place(traces["fit"], price=price).exits
    kept = traces if len(exits) == 1 else {split: keep(trace, exits) for split, trace in traces.items()}
    rows: dict[str, Any] = {}
    judged: dict[str, dict[str, Evaluation]] = {}
    for method in METHODS:
        rule: Rule = (
            FixedDepth(Origin.of(kept["fit"], price), kept["fit"].exits - 1)
            if len(exits) == 1
            else FAMILIES[method](kept["fit"])(price)
        )
        judged[method] = {split: evaluate(rule, kept[split]) for split in JUDGES}
        rows[method] = {split: summary(found, price) for split, found in judged[method].items()}
        if method == "snell":
            bounds = finite_depth(kept["test"], rule, price=price)
            rows[method]["test"] |= {
                "shares": judged[method]["test"].shares.round(4).tolist(),
                "deepest used": bounds.deepest,
                "deepest by the bounds": bounds.bound,
            }
        else:
            rows[method]["test"] |= behind(judged[method]["test"], judged["snell"]["test"], price)
    return {"price": price, "exits": list(exits), "methods": rows}


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


def certificate(traces: dict[str, Trace]) -> dict[str, Any]:
    """The cheapest solved rule whose loss exceeds the full network's by at most 1%, with 95% confidence.

    All exits are kept: the rules to be tested must share them.
    """
    found = certified(
        FAMILIES["snell"](traces["fit"]),
        traces["fit"],
        traces["certify"],
        risk=0.01,
        confidence=0.95,
        measure="excess",
    )
    test = evaluate(found.rule, traces["test"])
    return {"says": str(found), "cost": found.cost, "test": {"cost": test.cost, "accuracy": 1 - test.loss}}


def residuals(test: Trace) -> dict[str, Any]:
    """Mean relative residual size before each exit, and the law of decay that they follow."""
    if "residual" not in test.features:
        return {}
    sizes = test.columns(["residual"])[:, :, 0]
    rule = FixedDepth(Origin.of(test, 1.0), test.exits - 1)
    other = test.split(0.5, 0.5, seed=0)
    rule.origin = Origin.of(other[0], 1.0)
    law = finite_depth(other[1], rule, price=1.0).residual.decay
    return {"mean": sizes.mean(0).round(4).tolist(), "law": "too few depths of one shape" if law is None else str(law)}


def provenance(run: Run) -> dict[str, Any]:
    """What made the figures."""
    path = run.folder / "training.json"
    training = json.loads(path.read_text()) if path.is_file() else {}
    seconds = [epoch["seconds"] for epoch in training.pop("epochs", [])]
    return {
        "command": " ".join(["python", "benchmarks/depth_loss.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **versions()},
        "training": {**training, "seconds an epoch": [round(second) for second in seconds]},
    }
