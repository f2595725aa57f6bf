"""One of every kind of file that the library reads, small, and what it answers: what mutations are judged by."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import optdepth as od
from fuzz_mutations import nonsense_json, nonsense_tensors
from optdepth.carving import Carving
from optdepth.cli import main
from optdepth.data import reload_data
from optdepth.errors import InputError
from optdepth.export.bundle import export
from optdepth.export.runtime import Runtime
from optdepth.inference.clock import Clocked
from optdepth.networks import looped, neural_ode
from optdepth.runs import SPLITS, Run
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.gain import GainRule
from optdepth.stopping.money import InTheMoney
from optdepth.stopping.placed import Placed
from optdepth.stopping.regression import Additive, Hinged
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.stopping.stationary import Stationary
from optdepth.training.depth_loss import depth_loss
from optdepth.workflow import clocked_of, training_of

COSTS = (1.0, 2.0, 3.0)
FEATURES = ("margin", "entropy")


@dataclass(frozen=True)
class Subject:
    """A file, and what the library makes of it.

    Attributes:
        kind: of file, for the table.
        path: where it lies.
        answers: reads it, and gives all that its content decides.
        nonsense: puts nonsense into it with a right checksum; None where it has none of its own.
    """

    kind: str
    path: Path
    answers: Callable[[], Any]
    nonsense: Callable[[Path, np.random.Generator], str] | None


def subjects(folder: Path) -> list[Subject]:
    """All kinds, written below a folder."""
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(40, 3, 3)), random.integers(0, 3, 40)
    trace = od.Trace.from_logits(logits, labels, od.Costs.of(COSTS, look=0.01))
    trace.save(folder / "trace.safetensors")
    path = folder / "trace.safetensors"
    found = [Subject("trace", path, lambda: parts(od.Trace.load(path)), nonsense_tensors)]
    found += _rules(folder, trace) + _networks(folder)
    found += [*_training(folder / "training"), *_bundle(folder), *_run(folder / "run"), *_data(folder)]
    found.append(_fitted(folder / "fitted"))
    return found


def parts(held: Any) -> Any:
    """What a dataclass holds, and arrays as lists, so that two can be compared."""
    if dataclasses.is_dataclass(held) and not isinstance(held, type):
        return {field.name: parts(getattr(held, field.name)) for field in dataclasses.fields(held)}
    if isinstance(held, dict):
        return {name: parts(value) for name, value in held.items()}
    return held.tolist() if isinstance(held, Tensor | np.ndarray) else held


def _rules(folder: Path, trace: od.Trace) -> list[Subject]:
    """One of every kind, made by hand: nothing here hangs on a fit."""

    def additive(slope: float) -> Additive:
        numbers = {"low": [[0.0], [0.0]], "scale": [[1.0], [1.0]], "weight": [[slope], [0.1]]}
        return Additive(**{name: torch.tensor(value) for name, value in numbers.items()}, intercept=torch.tensor(0.3))

    hinged = {"weight": torch.eye(2), "bias": torch.tensor([-0.3, -0.5]), "last": torch.tensor([-2.0, 1.0])}
    hinge = Hinged(least=torch.zeros(2), most=torch.ones(2), **hinged, intercept=torch.tensor(0.1))
    origin = Origin.of(trace, 0.05)
    few = dataclasses.replace(origin, costs=trace.costs.keep([0, 2]), recall=())
    cut = Threshold(origin, "entropy", torch.tensor([0.8, 0.9]), below=True)
    rules = {
        "threshold": cut,
        "gain": GainRule(origin, FEATURES, [additive(-1.0), additive(-0.5)]),
        "hinged": GainRule(origin, FEATURES, [hinge, hinge]),
        "placed": Placed(origin, GainRule(few, FEATURES, [additive(-1.0)]), [0, 2]),
        "money": InTheMoney(origin, cut, "confidence", [True, False]),
        "stationary": Stationary(origin, FEATURES, additive(-1.0), additive(0.2), 1.0),
        "fixed": FixedDepth(origin, 1),
    }
    made = []
    for name, rule in rules.items():
        rule.save(folder / name)

        def answers(where: Path = folder / name) -> Any:
            read = od.Rule.load(where)
            return parts(read.origin), read.stopped_at(trace).tolist(), parts(read.arguments())

        made.append(Subject("rule", folder / name / "rule.safetensors", answers, nonsense_tensors))
    return made


def _networks(folder: Path) -> list[Subject]:
    networks = {
        "resnet": od.resnet(8, classes=3, channels=1, width=2, seed=0),
        "looped": looped(3, classes=3, channels=1, width=4, seed=0),
        "ode": neural_ode(2, classes=3, channels=1, width=2, method="euler", seed=0),
    }
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = []
    for name, network in networks.items():
        network.save(folder / name)

        def answers(where: Path = folder / name) -> Any:
            read = od.load_network(where)
            with torch.inference_mode():
                return read.exits, [logits.tolist() for logits in read(images)]

        made.append(Subject("network", folder / name / "weights.safetensors", answers, nonsense_tensors))
    return made


def _training(folder: Path) -> list[Subject]:
    """A checkpoint, which the training goes on from, and the record of the training."""
    inputs = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    table = inputs, torch.arange(120) % 3
    data = od.TensorData.of("noise", table, table, seed=0)

    def trained() -> Any:
        network = od.resnet(8, classes=3, channels=1, width=2, exits="last", seed=0)
        given = {"epochs": 1, "batch_size": 16, "seed": 0, "out": folder, "progress": False}
        history = od.train(network, data, loss=depth_loss("deep-supervision", 0.0), **given)
        return parts(history), network.fingerprint()

    trained()
    record = Subject("training record", folder / "training.json", lambda: training_of(Run(folder)), nonsense_json)
    return [Subject("checkpoint", folder / "checkpoint.safetensors", trained, nonsense_tensors), record]


def _fitted(folder: Path) -> Subject:
    """What `od.fit` keeps, beside the network, the rule and the traces, which are files of their own kinds."""

    def model() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0) for _ in range(3)]
            return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(24, 3)).eval()

    generator = torch.Generator().manual_seed(0)
    tables = [(torch.randn(60, 3, 8, generator=generator), torch.arange(60) % 3) for _ in range(3)]
    train, calibration, test = tables
    given = {"train": train, "calibration": calibration, "test": test, "costs": "flops", "progress": False}
    od.fit(model(), lose=0.5, heads="linear", **given).save(folder)

    def answers() -> Any:
        read = od.load(folder, model=model())
        found, timings = read(test[0]), read.timings
        numbers = [getattr(timings, name).tolist() for name in ("sizes", "stages", "looks", "gathers")]
        told = parts(read.asked), parts(read.clock), dict(read.heads), read.layout, dict(read.made.seeds)
        return str(read), str(read.certificate), told, numbers, found.logits.tolist(), found.exit.tolist()

    return Subject("fit", folder / "early.safetensors", answers, nonsense_tensors)


def _bundle(folder: Path) -> list[Subject]:
    network = od.resnet(8, classes=3, channels=1, width=2, exits=["stage1.block1", "stage3.block1"], seed=0)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rule = Threshold(Origin(od.Costs.of([1.0, 2.0])), "margin", torch.tensor([0.4]))
    export(network, rule, images, folder / "bundle")

    def answers() -> Any:
        read = Runtime(folder / "bundle")
        return str(read.takes), parts(read(images.numpy()))

    graph = sorted((folder / "bundle").glob("*.onnx"))[0]
    manifest = Subject("bundle, manifest", folder / "bundle" / "manifest.json", answers, nonsense_json)
    return [manifest, Subject("bundle, graph", graph, answers, None)]


def _run(folder: Path) -> list[Subject]:
    """A run on the digits: its own files through the library, and those of all kinds through the command line."""
    run = Run(folder)
    data = run.opened("digits", 0, None)
    run.begin(data, 0, None)
    network = od.resnet(8, classes=10, channels=1, width=2, exits=["stage1.block1", "stage3.block1"], seed=0)
    network.save(folder / "network")
    costs = od.flops(network, next(data.batches("fit", 1))[0]).relative()
    held = {split: data.splits[split] for split in SPLITS}
    traces = {
        split: od.record(network, data.batches(split), costs, source=one.source, rows=one.rows)
        for split, one in held.items()
    }
    run.record(traces)
    clock = Clocked("placed", 1, full=2.0, engine=1.0, speedup=2.0, saving=2.1, threads=1)
    run.judge({"unit": costs.unit, "clock": [dataclasses.asdict(clock)]}, traces["test"])

    def solved() -> Any:
        return _called(["solve", str(folder), "--method", "confidence", "--price", "0.1", "--json"])

    def judged() -> Any:
        return clocked_of(run, traces["test"])

    def carved() -> Any:
        return parts(Carving.load(folder / "splits.safetensors", make_it="train anew"))

    files = ("run.json", "splits.safetensors", "traces/fit.safetensors", "network/weights.safetensors")
    kinds = {".json": nonsense_json, ".safetensors": nonsense_tensors}
    through = [Subject("run, by command", folder / file, solved, kinds[Path(file).suffix]) for file in files]
    return [
        Subject("run.json", folder / "run.json", lambda: run.settings, nonsense_json),
        Subject("splits", folder / "splits.safetensors", carved, nonsense_tensors),
        Subject("evaluation", folder / "evaluation.json", judged, nonsense_json),
        *through,
    ]


def _called(arguments: list[str]) -> str:
    """What a command prints, less what it wrote to the run; an InputError where it refuses in one line.

    Raises:
        RuntimeError: it refuses otherwise.
    """
    out, err, was = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["optdepth", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        said = err.getvalue().strip()
        if end.code == 2 and said.startswith("optdepth: ") and "\n" not in said:
            raise InputError(said) from None
        if end.code not in (0, None):
            raise RuntimeError(f"exit status {end.code}: {said:.200}") from None
    finally:
        sys.argv = was
    return out.getvalue()


def _data(folder: Path) -> list[Subject]:
    """A table and a folder of images, read again as a run reads its data: in the splits that were carved."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(40)]
    table, files = folder / "table", folder / "files"
    table.mkdir()
    cells = {"image": images, "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(cells).cast_column("image", datasets.Image()).to_parquet(table / "data.parquet")
    for i, image in enumerate(images):
        (files / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        image.save(files / f"class{i % 2}" / f"{i}.png")
    (table / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data.parquet\n---\n")
    carved = {where: od.load_data(str(where), seed=0).carving() for where in (table, files)}

    def answers(where: Path) -> Any:
        shutil.rmtree(datasets.config.HF_DATASETS_CACHE, ignore_errors=True)  # else the table as it was is taken
        again = reload_data(str(where), carved[where])
        return {name: hashlib.sha256(_pixels(split)).hexdigest() for name, split in again.splits.items()}

    inside = files / "class0" / "0.png"
    return [
        Subject("data, table", table / "data.parquet", lambda: answers(table), None),
        Subject("data, README", table / "README.md", lambda: answers(table), None),
        Subject("data, image", inside, lambda: answers(files), None),
    ]


def _pixels(split: Any) -> bytes:
    return b"".join(split[i][0].numpy().tobytes() + bytes([split[i][1]]) for i in range(len(split)))
