"""The steps of the command line around `fit`: each opens or makes one folder that `EarlyExit.save` writes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .batch import hidden
from .data import ImageSplit, load_data
from .early import FILE, EarlyExit, load, made_of
from .errors import InputError
from .fit import fit
from .inference.clock import Clocked, clock
from .labelled import Labelled
from .progress import shown_steps
from .report import Provenance, Shown
from .sources import Pixels, Source, called, open_model
from .splits import Split, Splits
from .stopping.evaluate import evaluate
from .stopping.methods import METHODS
from .stopping.rule import FixedDepth, Origin
from .tensors import TensorSplit
from .texts import load_text
from .unlabelled import unlabelled


@runtime_checkable
class Lines(Protocol):
    """What text is written to: a file, or stdout."""

    def write(self, text: str, /) -> int: ...


def is_fit(folder: Path) -> bool:
    """Whether a run folder is one that `fit` made."""
    return (folder / FILE).is_file()


def fit_run(
    out: Path,
    *,
    model: str,
    data: str,
    text: str | None,
    label: str | None,
    image_size: int | None,
    seed: int,
    command: str,
    progress: bool,
    **asked: Any,
) -> EarlyExit:
    """Fits a named model on named data and saves it.

    Args:
        out: folder to make; refused where it holds anything.
        model, data: see `open_model` and `read_data`.
        text, label: columns of a table of sentences.
        image_size: pixels, instead of the model's own.
        command: that is kept with it.
        asked: further arguments of `fit`.

    Raises:
        InputError: the folder is not empty, or what the named functions refuse.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: give another folder with --out, or delete this one")
    source = open_model(model)
    table = read_data(data, source, text=text, label=label, image_size=image_size, seed=seed)
    early = fit(source.model, table, seed=seed, progress=progress, **asked)
    read = {"data": data, "text": text, "label": label, "image_size": image_size}
    settings = {**early.made.training, "source": model, **{key: value for key, value in read.items() if value}}
    early = replace(early, made=Provenance([command], early.made.versions, early.made.seeds, settings))
    early.save(out)
    return early


def read_data(
    name: str, source: Source, *, text: str | None, label: str | None, image_size: int | None, seed: int
) -> Splits:
    """All samples for a model, as the model reads them.

    Args:
        name: a table of sentences or images, file, folder or hub; or "my_code.py:make_data", a function that returns
            what `fit` takes as `data`.
        text, label: columns.
        image_size: pixels, instead of the model's own.

    Raises:
        InputError: as the loaders raise; options that the model's data do not have.
    """
    kind, _, which = name.partition(":")
    if kind.endswith(".py") and which:
        made = called(name)
        if not isinstance(made, Splits):
            raise InputError(f"{name} returned a {type(made).__name__}: return od.TensorData, or another od Splits")
        return made
    reads = source.reads
    if reads is None:
        raise InputError(
            f"{source.name} does not say how it reads data: give --data as FILE.py:FUNCTION, which returns an "
            "od.TensorData"
        )
    if not isinstance(reads, Pixels):
        if text is None:
            raise InputError(f"{source.name} reads sentences: name their column with --text, such as --text sentence")
        return load_text(name, reads, text=text, label=label or "label", seed=seed)
    if text is not None:
        raise InputError(f"{source.name} reads images, and --text {text} names a column of sentences: leave it out")
    reads = reads.of_size(image_size)
    form = {"image_size": reads.image_size, "resize": reads.resize}
    return load_data(name, seed=seed, mean=reads.mean, std=reads.std, label=label, **form)


def source_of(folder: Path, model: str | None) -> Source:
    """The model that a folder was fitted on, without its weights, and how it reads data."""
    name = model or made_of(folder).training.get("source")
    if name is None:
        raise InputError(f"{folder} does not say which model it is of: name it with --model")
    if model is None and name.partition(":")[0].endswith(".py"):
        raise InputError(f"{folder} was fitted on {name}: allow that code to run by naming it, --model {name}")
    return open_model(name, weights=False)


def opened(folder: Path, model: str | None) -> EarlyExit:
    """What `fit_run` saved.

    Args:
        model: by name; not needed where it is of a library, whose architectures are known by name.
    """
    return load(folder, model=source_of(folder, model).model)


def report_fit(folder: Path, model: str | None) -> Path:
    """Writes `report.html` into the folder, with test samples to look at where they can be shown."""
    source = source_of(folder, model)
    early = load(folder, model=source.model)
    if early.test is None or "data" not in early.made.training:
        return early.report(folder / "report.html")
    held = _same_data(folder, source).splits["test"]
    show = shown(held, source)
    names = getattr(getattr(source.model, "config", None), "id2label", None) or {}
    labels = (
        None
        if show is None
        else [str(names.get(label, label)) for label in (int(held[i][1]) for i in range(len(held)))]
    )
    return early.report(folder / "report.html", show=show, labels=labels)


def shown(held: Split, source: Source) -> Callable[[int], Shown] | None:
    """What shows a sample of a split: its picture, or the text that its tokens say; None where neither is known."""
    if isinstance(held, ImageSplit):
        return held.image
    decode = getattr(source.reads, "decode", None)
    if decode is None or not isinstance(held, TensorSplit) or not isinstance(held.inputs, dict):
        return None
    tokens = held.inputs["input_ids"]
    return lambda i: str(decode(tokens[i], skip_special_tokens=True))


def judged(early: EarlyExit) -> dict[str, Any]:
    """The rule beside others on the test samples, and on the clock as it was when it was fitted.

    The others are two tuned thresholds at the price of the rule, every exit alone, and the full network.

    Raises:
        InputError: there were no test samples.
    """
    if early.test is None:
        raise InputError("this was fitted without test samples, so there is nothing to judge it on; fit it with them")
    test, family, rules = early.test, early.family.trace, {"fitted": early.rule}
    price = early.rule.origin.price
    if price is not None:
        rules |= {name: METHODS[name].solve(family).at(price) for name in ("confidence per exit", "patience per exit")}
    origin = Origin.of(family)
    names = [exit.name for exit in early.network.exits]
    rules |= {f"fixed {name}": FixedDepth(origin, k) for k, name in enumerate(names[:-1])}
    rules["full network"] = FixedDepth(origin, len(names) - 1)
    rows = []
    for name, rule in rules.items():
        found = evaluate(rule, test)
        rows.append(
            {
                "method": name,
                "accuracy": 1 - found.loss,
                "accuracy_error": found.loss_error,
                "cost": found.cost,
                "shares": found.shares.tolist(),
            }
        )
    return {
        "said": str(early),
        "samples": len(test),
        "duplicates": test.samples.duplicates(family.samples),
        "unit": test.costs.unit,
        "exits": names,
        "rows": rows,
        "clock": [{**asdict(row), "method": "fitted"} for row in early.clock],
    }


def bench_run(folder: Path, *, model: str | None, batches: list[int], repeats: int, progress: bool) -> list[Clocked]:
    """The fitted rule on the clock of this machine, on test samples of the data that it was fitted on."""
    source = source_of(folder, model)
    early = load(folder, model=source.model)
    table = _same_data(folder, source)
    inputs = Labelled.of_split("test", table, "test").rows(max(512, 4 * max(batches, default=1)))
    return clock(
        early.network,
        {"fitted": early.rule},
        inputs,
        batches=batches,
        repeats=repeats,
        timings=early.timings,
        progress=progress,
    )


def _same_data(folder: Path, source: Source) -> Splits:
    made = made_of(folder)
    known = made.training
    if "data" not in known:
        raise InputError(f"{folder} does not say which data it was fitted on")
    where = {name: known.get(name) for name in ("text", "label", "image_size")}
    return read_data(known["data"], source, seed=made.seeds["fit"], **where)


def predict_run(
    folder: Path, out: Lines, *, model: str | None, data: str, text: str | None, batch: int, progress: bool
) -> int:
    """Writes a line for each input, as CSV: its number, the class, how sure it is, the exit and the cost.

    Args:
        data: a table of sentences or images, or a folder of images; labels, where there are any, are not read.
        text: column of the sentences; the one that was fitted on when not given.

    Returns:
        How many there were.
    """
    source = source_of(folder, model)
    early, known = load(folder, model=source.model), made_of(folder).training
    column, size = text or known.get("text"), known.get("image_size")
    names = [exit.name for exit in early.network.exits]
    lines, count = csv.writer(out), 0
    lines.writerow(["input", "class", "probability", "exit", "cost"])
    for inputs in shown_steps(unlabelled(data, source, column, size, batch), "answering", shown=progress):
        answer = early(inputs)
        sure, found = answer.logits.float().softmax(1).max(1)
        for i in range(len(hidden(inputs))):
            cells = (f"{float(sure[i]):.4f}", names[int(answer.exit[i])], f"{float(answer.cost[i]):.4f}")
            lines.writerow([count + i, int(found[i]), *cells])
        count += len(hidden(inputs))
    return count
