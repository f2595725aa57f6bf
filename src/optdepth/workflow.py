"""The steps from data to report. Each reads files and writes files in one run folder, so each can be run alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .costs import flops
from .errors import InputError
from .export.bundle import Bundle, export
from .features import frugal_features
from .files import read_json
from .inference.clock import Clocked, clock
from .inference.engine import Engine
from .inference.timings import latency
from .networks import load_network, resnet, transplant
from .progress import shown_steps
from .record import record
from .report import Provenance, write_report
from .runs import CERTIFIED, SPLITS, Run
from .stopping.bounds import prophet
from .stopping.certify import Certificate
from .stopping.evaluate import Evaluation, evaluate
from .stopping.methods import METHODS, SOLVED, method_of
from .stopping.risks import Measure
from .stopping.rule import FixedDepth, Origin, Rule
from .threads import ThreadChoice, said
from .trace import Trace
from .training.depth_loss import depth_loss
from .training.loop import RECORD, RECORD_FORMAT, RECORD_VERSION, train
from .training.settings import Epoch, Settings


def train_run(
    run: Run,
    *,
    data: str,
    image_size: int | None,
    network: dict[str, Any],
    start: Path | None,
    loss: str,
    price: float,
    seed: int,
    progress: bool,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a residual network with exits, or goes on with the training in the run folder.

    Args:
        data, image_size: as for `load_data`.
        network: arguments of `resnet`: depth, width, heads, and exits as "all", "ends", "last" or names separated by
            commas.
        start: run folder of a trained network to take the trunk from.
        loss, price: as for `depth_loss`.
        settings: other arguments of `train`.

    Returns:
        How many epochs there were, on how many threads, and the accuracy of each exit on the fit split.
    """
    objective = depth_loss(loss, price)
    loaded = run.opened(data, seed, image_size)
    names = network["exits"]
    chosen = {**network, "exits": names if names in ("all", "ends", "last") else names.split(",")}
    built = resnet(classes=len(loaded.classes), channels=loaded.channels, seed=seed, **chosen)
    if start is not None:
        transplant(built, load_network(start / "network"))
    costs = flops(built, next(loaded.batches("fit", 1))[0]).relative().paid()
    run.begin(loaded, seed, image_size)
    history = train(
        built, loaded, loss=objective, costs=costs.tolist(), seed=seed, out=run.folder, progress=progress, **settings
    )
    accuracy = dict(zip((exit.name for exit in built.exits), history.epochs[-1].accuracy, strict=True))
    return {"epochs": len(history.epochs), "threads": history.epochs[-1].threads, "fit accuracy": accuracy}


def record_run(run: Run, *, measure: str, batch: int, progress: bool) -> tuple[dict[str, Trace], int]:
    """Records the traces of the fit, certify and test splits; costs are multiples of the full network's.

    Args:
        measure: "flops", or "latency" at the batch size given.

    Returns:
        The traces by split, and the number of threads that the network ran on.
    """
    data, network = run.data(), run.network()
    device = next(network.parameters()).device
    example = next(data.batches("fit", batch))[0].to(device)
    costs = flops(network, example[:1]) if measure == "flops" else latency(network, example, features=frugal_features())
    costs = costs.relative()
    traces = {}
    images = next(data.batches("fit"))[0].to(device)
    with torch.inference_mode(), ThreadChoice().running("recording", images, network) as threads:
        for split in SPLITS:
            held = data.splits[split]
            steps, label = -(-len(held) // 256), f"recording {split} on {said(threads)}"
            feed = shown_steps(data.batches(split), label, total=steps, shown=progress)
            traces[split] = record(network, feed, costs, source=held.source, rows=held.rows)
    run.record(traces)
    return traces, threads


def solve_run(
    run: Run, methods: list[str], *, price: float | None, budget: float | None, progress: bool
) -> dict[str, Rule]:
    """Solves rules on the fit split and saves each in the run folder."""
    fit, solvers = run.traces()["fit"], {name: method_of(name).solve for name in methods}
    rules = {}
    for name in shown_steps(methods, "solving", shown=progress):
        rules[name] = solvers[name](fit).chosen(price=price, budget=budget)
        rules[name].save(run.folder / "rules" / name.replace(" ", "-"))
    return rules


def certify_run(run: Run, *, risks: Mapping[Measure, float], confidence: float) -> Certificate:
    """Certifies the cheapest solved rule on the certify split and saves it in the run folder as `CERTIFIED`.

    Args:
        risks: the bound on each measure; all are to hold at once.
    """
    traces = run.traces()
    found = METHODS[SOLVED].solve(traces["fit"]).certified(traces["certify"], risk=risks, confidence=confidence)
    found.rule.save(run.folder / "rules" / CERTIFIED)
    return found


def evaluate_run(run: Run, *, clocked: list[int], repeats: int, progress: bool) -> dict[str, Any]:
    """Judges the rules on the test split, from the trace and by running the engine, and writes `evaluation.json`.

    Args:
        clocked: batch sizes at which engines are timed; none leaves the clock out.
    """
    data, network, traces = run.data(), run.network(), run.traces()
    rules, test = run.rules(), traces["test"]
    names = [exit.name for exit in network.exits]
    origin = Origin.of(traces["fit"])
    fixed = {f"fixed {name}": FixedDepth(origin, k) for k, name in enumerate(names[:-1])}
    everything = {"full network": FixedDepth(origin, len(names) - 1), **fixed, **rules}
    device = next(network.parameters()).device
    inputs = torch.cat([images for images, _ in data.batches("test", 1024)]).to(device)
    rows = []
    with torch.inference_mode(), ThreadChoice().running("judging", inputs[:256], network.full) as threads:
        for name, rule in everything.items():
            found = evaluate(rule, test)
            row = {"method": name, "price": rule.origin.price, **_summary(found), "shares": found.shares.tolist()}
            if name in rules:
                row["engine exits unlike the trace's"] = _differences(Engine(network, rule), inputs, found)
            rows.append(row)
    result: dict[str, Any] = {
        "samples": len(test),
        "duplicates": test.samples.duplicates(traces["fit"].samples),
        "unit": test.costs.unit,
        "exits": names,
        "threads": threads,
        "rows": rows,
    }
    prices = sorted({rule.origin.price for rule in rules.values() if rule.origin.price is not None})
    result["prophet"] = [{"price": price, **asdict(prophet(test, price=price))} for price in prices]
    result["clock"] = []
    if clocked:
        timed = clock(
            network,
            everything,
            inputs[: max(512, max(clocked) * 4)],
            batches=clocked,
            repeats=repeats,
            progress=progress,
        )
        result["clock"] = [asdict(row) for row in timed]
    result["versions"] = versions()
    run.judge(result, test)
    return result


def export_run(run: Run, *, rule: str, out: Path, progress: bool) -> Bundle:
    """Writes network and rule as a bundle, checked on 64 samples of the certify split.

    Tuned thresholds are scores of samples of the fit split: there rounding decides who stops, and the check would fail.

    Args:
        rule: name of one that was solved, such as "placed".
    """
    data, solved = run.data(), run.rules()
    if rule not in solved:
        raise InputError(f"no rule {rule!r} in {run.folder}; it has {', '.join(solved)}")
    network = run.network().cpu()
    return export(network, solved[rule].to("cpu"), next(data.batches("certify", 64))[0], out, progress=progress)


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    return {name: version(name) for name in ("optdepth", "torch", "numpy", "scikit-learn", "datasets")}


def _summary(found: Evaluation) -> dict[str, float]:
    return {
        "accuracy": 1 - found.loss,
        "accuracy_error": found.loss_error,
        "cost": found.cost,
        "cost_error": found.cost_error,
    }


def _differences(engine: Engine, inputs: Tensor, found: Evaluation) -> int:
    """How many samples the engine stops elsewhere than the trace says; float rounding alone may cause any."""
    exits = np.concatenate([engine(chunk).exit.cpu().numpy() for chunk in inputs.split(256)])
    return int((exits != found.stopped_at).sum())


def clocked_of(run: Run, test: Trace) -> list[Clocked]:
    """What the clock said of the rules on the test split; nothing where they were not timed."""
    judged = run.judged(test)
    clocked: list[Clocked] = judged.take("clock", list[Clocked], least=0) if judged else []
    return clocked


def training_of(run: Run) -> dict[str, Any]:
    """How the network was trained, for people."""
    path = run.folder / RECORD
    if not path.is_file():
        return {}
    again = "delete it, and the page says less of the training"
    history = read_json(path, format=RECORD_FORMAT, version=RECORD_VERSION, make_it=again)
    threads = dict.fromkeys(epoch.threads for epoch in history.take("epochs", tuple[Epoch, ...]))
    return {**asdict(history.take("settings", Settings)), "threads": ", then ".join(map(str, threads))}


def report_run(run: Run, *, price: float | None, command: str) -> Path:
    """Writes `report.html`, with every method solved at one price.

    Args:
        price: that one; without it, the price of the solved rule in the run folder.
        command: that writes the page, which names it after those that made the run.
    """
    data, network, traces = run.data(), run.network(), run.traces()
    fit, test = traces["fit"], traces["test"]
    if price is None:
        solved = run.rules().get(SOLVED)
        if solved is None or solved.origin.price is None:
            raise InputError(f"{run.folder} holds no rule {SOLVED!r} to take a price from; solve it, or give --price")
        price = solved.origin.price
        if price == 0:
            raise InputError(
                f"the rule {SOLVED!r} in {run.folder} keeps within its budget at price 0, which is no price for depth: "
                "solve it for a smaller budget or at a price, or give --price"
            )
    held = data.splits["test"]
    settings = run.settings
    path = run.folder / "report.html"
    write_report(
        path,
        title=f"How deep is deep enough? {data.name} with {len(network.exits)} exits",
        names=[exit.name for exit in network.exits],
        fit=fit,
        test=test,
        rules={name: method.solve(fit).at(price) for name, method in METHODS.items()},
        price=price,
        certify=traces["certify"],
        made=Provenance(
            list(dict.fromkeys([*settings["commands"], command])),
            versions(),
            {"run": settings["seed"]},
            training_of(run),
        ),
        show=held.image,
        labels=[data.classes[label] for label in held.labels],
        clock=clocked_of(run, test),
    )
    return path
