"""Whether training for depth pays: arms of L_depth and kinds of heads, each judged by its solved rule.

    python benchmarks/depth_loss.py --data ../shared/data/cifar10
    python benchmarks/depth_loss.py --short

Trains every arm that has no figures yet, records, solves on the fit split, judges, and writes its figures to
`benchmarks/depth_loss/DATA/ARM-SEED.json`; then the tables and pictures of all that are there. Interrupted, the same
command goes on where it stopped. Weights and traces stay under `runs/`. Nothing is chosen on the test split: the
figures of the certify split, beside those of test, are there to choose by. `--short` is the same on the digits, in
seconds. `--pages` only draws what is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depth_loss_arms import ARMS, Arm
from depth_loss_judge import judge, provenance
from depth_loss_pages import write_pages
from optdepth.costs import flops
from optdepth.data import Data, ImageSplit, load_data, normalise
from optdepth.errors import InputError
from optdepth.files import read_tensors, write_json, write_tensors
from optdepth.networks import StagedNetwork, resnet, transplant
from optdepth.record import record
from optdepth.trace import Costs, Trace
from optdepth.training import train
from optdepth.workflow import SPLITS, Run

_load = cache(lambda name, seed: load_data(name, seed=seed))
HERE = Path(__file__).parent / "depth_loss"
ANSWERS: dict[str, Any] = {"format": "optdepth.benchmark.answers", "version": 1}


@dataclass(frozen=True)
class Study:
    """What all arms share.

    Attributes:
        data: as for `optdepth train`.
        depth, width: of the network; an arm may be shallower.
        epochs: of a training from scratch, of heads alone, of a late fine-tuning.
        precision: of training.
        runs, out: folders of weights and traces, and of figures.
    """

    data: str
    depth: int
    width: int
    epochs: tuple[int, int, int]
    precision: str
    runs: Path
    out: Path

    def load(self, seed: int) -> Data:
        """The data, decoded once a process."""
        return _load(self.data, seed)

    def run(self, arm: str, seed: int) -> Run:
        return Run(self.runs / f"{arm}-{seed}")

    def figures(self, arm: str, seed: int) -> Path:
        return self.out / f"{arm}-{seed}.json"


def main(arguments: list[str] | None = None) -> None:
    """Reads the arguments and runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for `optdepth train`")
    parser.add_argument("--short", action="store_true", help="a small network, a few epochs")
    parser.add_argument("--arms", default=",".join(ARMS), help="by name, separated by commas; all by default")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the figures")
    parser.add_argument("--runs", type=Path, default=Path("runs/depth_loss"), help="folder of weights and traces")
    parser.add_argument("--pages", action="store_true", help="train nothing; write tables and pictures")
    given = parser.parse_args(arguments)
    name = Path(given.data).name + ("-short" if given.short else "")
    study = Study(
        data=given.data,
        depth=14 if given.short else 20,
        width=4 if given.short else 16,
        epochs=(2, 1, 1) if given.short else (15, 2, 1),
        precision="fp32" if given.short else given.precision,
        runs=given.runs / name,
        out=given.out / name,
    )
    wanted = given.arms.split(",")
    if unknown := [arm for arm in wanted if arm not in ARMS]:
        raise InputError(f"no arm {unknown[0]!r}; the arms are {', '.join(ARMS)}")
    for seed in [] if given.pages else map(int, given.seeds.split(",")):
        for arm in wanted:
            finish(study, arm, seed)
    write_pages(study.out)


def finish(study: Study, name: str, seed: int) -> None:
    """The figures of one arm at one seed, and of the arms it starts from, unless they are there."""
    path, arm = study.figures(name, seed), ARMS[name]
    if path.is_file():
        return
    for other in arm.needs:
        finish(study, other, seed)
    run = study.run(name, seed)
    if arm.kind == "cascade":
        members = [study.run(other, seed) for other in arm.members]
        found = judge(traces_of(run, lambda split: cascaded(members, study.load(seed).splits[split], split)))
    else:
        trained(study, arm, run, seed)
        costs = costs_of(study, run.network(), seed)
        if arm.heads == "none":
            found = alone(run, study.load(seed), costs)
        else:
            found = judge(traces_of(run, lambda split: recorded(run, study.load(seed), split, costs)))
    write_json(path, {"arm": name, "what": arm.what, "seed": seed, **found, **provenance(run)})
    print(f"{name}, seed {seed}: {path}", flush=True)


def trained(study: Study, arm: Arm, run: Run, seed: int) -> None:
    """Trains the arm, or goes on with it; a finished run is left as it is."""
    if (run.folder / "training.json").is_file():
        return
    data = study.load(seed)
    network = resnet(
        arm.depth or study.depth,
        classes=len(data.classes),
        channels=data.channels,
        width=study.width,
        exits="last" if arm.heads == "none" else "all",
        heads="conv" if arm.heads == "conv" else "linear",
        seed=seed,
    )
    costs = flops(network, example(data)).relative().paid().tolist()
    if arm.start:
        transplant(network, study.run(arm.start, seed).network())
    train(
        network,
        data,
        loss=arm.loss,
        costs=costs,
        epochs=study.epochs[("scratch", "frozen", "late").index(arm.kind)],
        lr=0.02 if arm.kind == "late" else 0.1,
        schedule="cosine" if arm.kind == "late" else "one-cycle",
        precision=study.precision,
        backbone="frozen" if arm.kind == "frozen" else "joint",
        seed=seed,
        out=run.folder,
    )


def example(data: Data) -> Tensor:
    """One image, to count work on."""
    return normalise(data.splits["fit"][0][0][None], data.mean, data.std)


def costs_of(study: Study, network: StagedNetwork, seed: int) -> Costs:
    """What the exits of a network cost, in full passes of the study's network without exits: the unit of all prices."""
    data = study.load(seed)
    size = {"classes": len(data.classes), "channels": data.channels, "width": study.width}
    unit = flops(resnet(study.depth, **size, exits="last", seed=0), example(data)).full
    own = flops(network, example(data))
    return Costs(own.reach / unit, own.probe / unit, own.answer / unit, f"full passes of {unit:.4g} FLOPs")


def traces_of(run: Run, make: Callable[[str], Trace]) -> dict[str, Trace]:
    """The traces of the three splits, made where they are not there."""
    for split in SPLITS:
        path = run.folder / "traces" / f"{split}.safetensors"
        if not path.is_file():
            make(split).save(path)
    return {split: run.trace(split) for split in SPLITS}


def recorded(run: Run, data: Data, split: str, costs: Costs) -> Trace:
    """The trace of a network on a split."""
    held = data.splits[split]
    return record(run.network(), data.batches(split), costs, source=held.source, rows=held.rows)


def alone(run: Run, data: Data, costs: Costs) -> dict[str, Any]:
    """Accuracy and cost of a network with one exit; its answers on every split stay in the run folder."""
    network, accuracy = run.network(), {}
    for split in SPLITS:
        with torch.inference_mode():
            answers, labels = zip(*((network.full(x), y) for x, y in data.batches(split)), strict=True)
        logits = torch.cat(answers)
        accuracy[split] = [float((logits.argmax(1) == torch.cat(labels)).double().mean())]
        held = {"logits": logits, "cost": torch.tensor(costs.full)}
        write_tensors(run.folder / "answers" / f"{split}.safetensors", held, ANSWERS)
    return {"accuracy": accuracy, "costs": {"paid": [costs.full]}}


def cascaded(members: list[Run], rows: ImageSplit, split: str) -> Trace:
    """The trace of whole networks run one after another, each able to answer."""
    paths = [run.folder / "answers" / f"{split}.safetensors" for run in members]
    held = [read_tensors(path, **ANSWERS, make_it="run the arms that the cascade is of")[0] for path in paths]
    costs = Costs.of(np.cumsum([float(one["cost"]) for one in held]), unit="full passes")
    logits = torch.stack([one["logits"] for one in held], dim=1)
    return Trace.from_logits(logits, rows.labels, costs, source=rows.source, rows=rows.rows)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"depth_loss: {error}")
