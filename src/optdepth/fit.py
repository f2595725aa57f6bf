"""fit: a model that somebody has, and data, to an `EarlyExit`. The one place that knows the whole way.

    stage -> teach -> Timings -> record -> placed -> at(price) | within(budget) | certified(...) -> clock

Each step is a function of the library that can be called by hand with the same objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batch import Inputs, hidden, select
from .costs import flops
from .early import Asked, EarlyExit
from .errors import InputError
from .inference.clock import Clocked, clock
from .inference.timings import Timings
from .networks import StagedNetwork, stage
from .record import record
from .report import Provenance
from .stopping.certify import percent
from .stopping.placed import placed
from .stopping.risks import RiskTest
from .stopping.rule import Rule
from .tensors import TensorData, TensorSplit
from .trace import Trace
from .training.teach import check_labels, teach

Labelled = tuple[Inputs, Tensor] | Iterable[Any]
"""Inputs and labels, samples first; or batches of such, as a `DataLoader` makes them: pairs, or dicts with the labels
under "labels" or "label". They are gone through more than once."""

_ROWS = 64
"""Samples a batch, where inputs and labels are given whole."""
_SIZES = (1, 8, 32)
"""Batch sizes that are timed beside the one asked for."""
_TIMED = 512


def fit(
    model: nn.Module,
    *,
    train: Labelled,
    calibration: Labelled,
    test: Labelled | None = None,
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

    The model's own weights stay as they are, and its last answer is the model's, bit for bit. Say one of `lose`,
    `budget` and `price`.

    Args:
        model: a classifier that `stage` can cut: of torchvision, timm, transformers, or your own.
        train: labelled samples that the heads learn from; see `Labelled`. What the model was trained on will do.
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
        >>> table = images, labels
        >>> early = od.fit(
        ...     classifier, train=table, calibration=(more, their_labels), budget=0.9, blocks="blocks",
        ...     costs="flops", progress=False)
        >>> early(images).logits.shape
        torch.Size([64, 10])
    """
    asked = Asked(price, budget, lose, confidence)
    given = {"train": train, "calibration": calibration} | ({} if test is None else {"test": test})
    data = {name: _Data(name, each) for name, each in given.items()}
    example = select(data["calibration"].first[0], torch.arange(min(4, len(data["calibration"].first[1]))))
    network = stage(model, example=example, exits=exits, head=heads, blocks=blocks, seed=seed).eval()
    if len(network.exits) < 2:
        raise InputError(f"the model has one exit, {network.exits[0].name}: name more blocks to stop after")
    for each in data.values():
        with torch.inference_mode():
            answer = network.full(each.first[0])
        check_labels(each.first[1], answer)
    data["calibration"].enough(asked)
    right = teach(network, data["train"], seed=seed, total=data["train"].batches, progress=progress)
    timings = Timings.measure(network, data["calibration"].rows(batch), sizes=sorted({*_SIZES, batch}))
    spent = timings.costs(batch) if costs == "clock" else flops(network, example)
    traces = {name: record(network, each, spent.relative()) for name, each in data.items() if name != "train"}
    fitting, certifying = _halves(traces["calibration"], asked, seed)
    family = placed(fitting, seed=seed)
    if "test" in traces:
        family.check_unseen(traces["test"])
    rule: Rule
    certificate = None
    if asked.lose is not None and certifying is not None:
        certificate = family.certified(
            certifying, risk=asked.lose, confidence=asked.confidence, measure="excess", seed=seed
        )
        rule = certificate.rule
    else:
        rule = family.chosen(price=asked.price, budget=asked.budget)
    inputs = data["test" if "test" in data else "calibration"].rows(_TIMED)
    timed = _timed(network, rule, timings, inputs, batch, progress)
    settings = {"model": type(model).__name__, "heads": heads, "trunk": "as given", "batch": batch}
    made = Provenance(("od.fit(...)",), _versions(), {"fit": seed}, settings)
    return EarlyExit(
        network, family, rule, asked, certificate, certifying, traces.get("test"), timed, timings, right, example, made
    )


class _Data:
    """Labelled samples as the user gave them, gone through as often as they are asked for.

    Attributes:
        first: the first batch.
        batches: how many there are, where that is known.
    """

    def __init__(self, name: str, given: Labelled) -> None:
        self.name, self.given = name, given
        self.whole = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Tensor)
        if iter(given) is given:
            raise InputError(
                f"{name}= can be gone through only once; give a DataLoader, a list of batches, or (inputs, labels)"
            )
        found = next(iter(self), None)
        if found is None:
            raise InputError(f"{name}= holds no samples")
        self.first = found

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        if self.whole:
            inputs, labels = self.given
            held = TensorSplit(inputs, labels, source="", rows=torch.arange(len(labels)).numpy())
            return TensorData(self.name, {"all": held}).batches("all", _ROWS)
        return (_pair(self.name, part) for part in self.given)

    @property
    def batches(self) -> int | None:
        if self.whole:
            return -(-len(self.given[1]) // _ROWS)  # type: ignore[index]
        return len(self.given) if isinstance(self.given, Sized) else None

    def rows(self, most: int) -> Inputs:
        """The first samples, as many as there are up to `most`, of the width of the first batch or wider."""
        parts, count = [], 0
        for inputs, labels in islice(iter(self), most):
            parts.append(inputs)
            count += len(labels)
            if count >= most:
                break
        return _joined(parts, most)

    def enough(self, asked: Asked) -> None:
        """Refuses fewer samples than a promise takes, where their number is known."""
        if asked.lose is None or not self.whole:
            return
        samples = len(self.given[1]) // 2  # type: ignore[index]
        test = RiskTest("excess", asked.lose, 1 - asked.confidence, False)
        least = test.least(samples)
        if least > asked.lose:
            takes = test.takes(torch.zeros(1).numpy())
            raise InputError(
                f"{samples:,} samples, half of calibration=, can show a loss of {percent(round(least, 4))} at the "
                f"least with {percent(asked.confidence)} confidence; lose={asked.lose:g} takes about "
                f"{2 * (takes or 0):,} in calibration=: give more, or a larger lose="
            )


def _pair(name: str, part: Any) -> tuple[Inputs, Tensor]:
    """Inputs and labels of a batch as a loader made it."""
    if isinstance(part, Mapping):
        inputs = dict(part)
        key = next((key for key in ("labels", "label") if key in inputs), None)
        if key is None:
            raise InputError(f'{name}= has batches without labels: {", ".join(inputs)}; give them under "labels"')
        labels = inputs.pop(key)
    elif isinstance(part, Sequence) and len(part) == 2:
        inputs, labels = part
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    else:
        raise InputError(f"{name}= has batches of {type(part).__name__}; give pairs (inputs, labels), or dicts")
    if not isinstance(labels, Tensor):
        raise InputError(f"{name}= has labels of {type(labels).__name__}; give a tensor (n,)")
    return inputs, labels


def _joined(parts: Sequence[Inputs], most: int) -> Inputs:
    """Batches as one, padded with zeros to the widest, and cut to so many samples."""
    from torch.utils._pytree import tree_map

    def join(*tensors: Tensor) -> Tensor:
        widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        padded = []
        for tensor in tensors:
            room = tensor.new_zeros(len(tensor), *widest)
            room[(slice(None), *(slice(size) for size in tensor.shape[1:]))] = tensor
            padded.append(room)
        return torch.cat(padded)[:most]

    joined: Inputs = tree_map(join, parts[0], *parts[1:])
    return joined


def _halves(trace: Trace, asked: Asked, seed: int) -> tuple[Trace, Trace | None]:
    """The samples that fit the rule, and those that show the promise where one is asked for."""
    if asked.lose is None:
        return trace, None
    fitting, certifying = trace.split(0.5, 0.5, seed=seed)
    return fitting, certifying


def _timed(
    network: StagedNetwork, rule: Rule, timings: Timings, inputs: Inputs, batch: int, progress: bool
) -> tuple[Clocked, ...]:
    """The rule on the clock, beside the network without exits."""
    sizes = [size for size in sorted({*_SIZES, batch}) if size <= len(hidden(inputs))]
    rows = clock(network, {"fit": rule}, inputs, batches=sizes, repeats=5, timings=timings, progress=progress)
    return tuple(replace(row, method="fit") for row in rows)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("optdepth", "torch", "numpy")}
