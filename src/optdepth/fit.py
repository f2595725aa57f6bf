"""fit: a model that somebody has, and data, to an `EarlyExit`. The one place that knows the whole way.

    stage -> teach -> Timings -> record -> placed -> at(price) | within(budget) | certified(...) -> clock

Each step is a function of the library that can be called by hand with the same objects.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Inputs, hidden, select
from .costs import flops
from .early import Asked, EarlyExit, Layout, in_layout
from .errors import InputError
from .exit_costs import Costs
from .inference.clock import Clocked, Serve, clock, times
from .inference.timings import Timings
from .labelled import Given, Labelled
from .networks import StagedNetwork, stage
from .progress import shown_steps
from .record import record
from .report import Provenance
from .splits import Splits
from .stopping.certify import percent
from .stopping.placed import placed
from .stopping.risks import RiskTest
from .stopping.rule import Rule
from .threads import ThreadChoice
from .trace import Trace
from .training.teach import check_labels, teach

_SIZES = (1, 8, 32)
"""Batch sizes that are timed beside the one asked for."""
_TIMED = 512
_TURNS = 5
_WORTH = 0.97
"""Another layout is taken where it needs less than this share of the time."""


def fit(
    model: nn.Module,
    data: Splits | None = None,
    *,
    train: Given | None = None,
    calibration: Given | None = None,
    test: Given | None = None,
    lose: float | None = None,
    confidence: float = 0.95,
    budget: float | None = None,
    price: float | None = None,
    exits: Literal["auto", "all"] | int | Sequence[str] = "all",
    heads: str = "mlp",
    blocks: str | Sequence[str] | None = None,
    batch: int = 32,
    costs: Literal["clock", "flops"] = "clock",
    seed: int = 0,
    progress: bool = True,
) -> EarlyExit:
    """A model that stops early: heads taught, costs measured, the stopping problem solved, the promise shown.

    The model's own weights stay as they are, and the last exit's answer is the model's: bit for bit, or up to rounding
    where images are answered faster with their channels last in memory, which is tried. Say one of `lose`, `budget` and
    `price`.

    Args:
        model: a classifier that `stage` can cut: of torchvision, timm, transformers, or your own.
        data: all samples, as `load_data`, `load_text` and `TensorData` cut them; or the next three.
        train: labelled samples that the heads learn from; see `Given`. What the model was trained on will do.
        calibration: others, like those that will be served. The model must not have been trained on them, or it is
            surer there than it will be. Half fit the rule and half show the promise where `lose` asks for one.
        test: others again, which judge and are timed; nothing else sees them.
        lose: accuracy that may be lost to the full model at most: 0.01 is one point. The cheapest rule that is shown to
            keep to it, with this `confidence`, is taken.
        budget: mean cost a sample, as a share of the full model's.
        price: loss that a full pass of the model is worth: 0.05 spends a pass to save 5 points of error.
        exits, blocks: as in `stage`.
        heads: of the early exits, kinds that read a mean over places; of several, joined by "+", the placement search
            takes at each exit what is worth its cost, one or more or none.
        batch: size of the batches that will be served; the clock is read at it.
        costs: by the clock of this machine, or by floating point operations, which are the same on every machine but
            say little of the time: the first half of a network's may take two thirds of its time, or a third.
        seed: of heads, folds and the split of the calibration samples.

    Raises:
        InputError: data that are no labelled samples of the model's classes, too few of them for the promise, a model
            that cannot be staged; before any long step where it can be known then.

    Example:
        >>> early = od.fit(classifier, data, price=0.2, costs="flops", progress=False)
        >>> early(images).logits.shape
        torch.Size([64, 10])
    """
    asked = Asked(price, budget, lose, confidence)
    given = _parts(data, train, calibration, test)
    _check_enough(given, asked)
    inputs, _ = given["fit"].first
    example = select(inputs, torch.arange(min(4, len(hidden(inputs)))))
    staged: dict[str, Any] = {"example": example, "exits": exits, "head": heads, "blocks": blocks, "seed": seed}
    network, given_way = stage(model, **staged).eval(), None
    if len(network.exits) < 2:
        raise InputError(f"the model has one exit, {network.exits[0].name}: name more blocks to stop after")
    for each in given.values():
        with torch.inference_mode():
            answer = network.full(each.first[0])
        check_labels(each.first[1], answer)
    layout: Layout = "as given"
    if _pays(model, given["fit"].rows(batch)):
        layout, given_way = "channels last", network.full
        network = in_layout(stage(copy.deepcopy(model), **staged).eval(), layout)
    right = teach(network, given["train"], seed=seed, total=given["train"].batches, progress=progress)
    timings = Timings.measure(network, given["fit"].rows(batch), sizes=sorted({*_SIZES, batch}))
    spent = timings.costs(batch) if costs == "clock" else flops(network, example)
    traces = _recorded(network, given, spent.relative(), asked, seed, progress)
    family, certificate = placed(traces["fit"], seed=seed), None
    for name in traces.keys() - {"fit"}:
        family.check_unseen(traces[name])
    rule: Rule
    if asked.lose is None:
        rule = family.chosen(price=asked.price, budget=asked.budget)
    else:
        certificate = family.certified(
            traces["certify"], risk=asked.lose, confidence=asked.confidence, measure="excess", seed=seed
        )
        rule = certificate.rule
    inputs = given.get("test", given["fit"]).rows(_TIMED)
    timed = _timed(network, rule, timings, inputs, batch, given_way, progress)
    settings = {"model": type(model).__name__, "heads": heads, "trunk": "as given", "batch": batch}
    return EarlyExit(
        network=network,
        family=family,
        rule=rule,
        asked=asked,
        certificate=certificate,
        certify=traces.get("certify"),
        test=traces.get("test"),
        clock=timed,
        timings=timings,
        heads=right,
        layout=layout,
        example=example,
        made=Provenance(["od.fit(...)"], _versions(), {"fit": seed}, settings),
    )


def _parts(
    data: Splits | None, train: Given | None, calibration: Given | None, test: Given | None
) -> dict[str, Labelled]:
    """The samples by what they are for: `train`, `fit`, and where there are any `certify` and `test`."""
    named = {"train": train, "calibration": calibration, "test": test}
    there = [f"{name}=" for name, given in named.items() if given is not None]
    if data is not None:
        if there:
            raise InputError(f"data= holds all samples, and {' and '.join(there)} more: give the one or the others")
        return {name: Labelled.of_split(name, data, name) for name in ("train", "fit", "certify", "test")}
    if train is None or calibration is None:
        lacking = " and ".join(f"{name}=" for name in ("train", "calibration") if named[name] is None)
        raise InputError(f"{lacking} is missing: give train= and calibration=, or all samples as data=")
    parts = {"train": Labelled.of("train", train), "fit": Labelled.of("calibration", calibration)}
    return parts if test is None else parts | {"test": Labelled.of("test", test)}


def _check_enough(given: Mapping[str, Labelled], asked: Asked) -> None:
    """Refuses fewer samples than a promise takes, where their number is known."""
    if asked.lose is None:
        return
    half = "certify" not in given
    held = given["fit" if half else "certify"]
    if held.samples is None:
        return
    samples = held.samples // 2 if half else held.samples
    test = RiskTest("excess", asked.lose, 1 - asked.confidence, False)
    if (least := test.least(samples)) <= asked.lose:
        return
    takes = test.takes(np.zeros(1))
    where = f"half of {held.name}=" if half else "of the split certify"
    more = "" if takes is None else f"{asked.lose:g} takes about {takes * (2 if half else 1):,} of them; "
    raise InputError(
        f"lose={asked.lose:g}: {samples:,} samples, {where}, can show a loss of {percent(round(least, 4))} at the "
        f"least with {percent(asked.confidence)} confidence; {more}give more, or a larger lose="
    )


def _recorded(
    network: StagedNetwork, given: Mapping[str, Labelled], costs: Costs, asked: Asked, seed: int, progress: bool
) -> dict[str, Trace]:
    """What the samples meet, but for those that were learned from; `fit` halved where nothing else can certify."""
    traces = {}
    for name, each in given.items():
        if name != "train":
            feed = shown_steps(each, f"recording {each.name}", total=each.batches, shown=progress)
            source, rows = ("", None) if each.split is None else (each.split.source, each.split.rows)
            traces[name] = record(network, feed, costs, source=source, rows=rows if source else None)
    if asked.lose is not None and "certify" not in traces:
        traces["fit"], traces["certify"] = traces["fit"].split(0.5, 0.5, seed=seed)
    return traces


@torch.inference_mode()
def _pays(model: nn.Module, inputs: Inputs) -> bool:
    """Whether images are answered faster with their channels last in memory."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return False
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    with ThreadChoice().running("layouts", inputs, model):
        before, after = times([model, other], [inputs], _TURNS)
    return after < _WORTH * before


def _timed(
    network: StagedNetwork,
    rule: Rule,
    timings: Timings,
    inputs: Inputs,
    batch: int,
    given: Serve | None,
    progress: bool,
) -> tuple[Clocked, ...]:
    """The rule on the clock, beside the network without exits, and the model as given where that runs otherwise."""
    sizes = [size for size in sorted({*_SIZES, batch}) if size <= len(hidden(inputs))]
    rules = {"fit": rule}
    rows = clock(network, rules, inputs, batches=sizes, repeats=5, timings=timings, given=given, progress=progress)
    return tuple(replace(row, method="fit") for row in rows)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("optdepth", "torch", "numpy")}
