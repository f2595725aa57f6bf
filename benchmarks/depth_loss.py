"""Whether training for depth pays: arms of L_depth and kinds of heads, each judged by its solved rule.

    python benchmarks/depth_loss.py --data ../shared/data/cifar10
    python benchmarks/depth_loss.py --short

Trains every arm that has no figures yet, records, solves on the fit split, judges, and writes its figures to
`benchmarks/results/depth_loss/DATA/ARM-SEED.json`; then the tables and pictures of all that are there. Interrupted, the
same command goes on where it stopped. Weights and traces stay under `runs/`. Nothing is chosen on the test split: the
figures of the certify split, beside those of test, are there to choose by. `--short` is the same on the digits, in
seconds; `--screen` the same on the real data with a network half as wide and a few epochs, to compare many arms, apart
under DATA-screen. `--layers 56 --epochs 30` is the study of a deeper network that is trained for longer, apart under
DATA-56-30.
`--judge` trains nothing and judges again what has weights. `--pages` only draws what is there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from depth_loss_arms import ARMS, Arm
from depth_loss_judge import Recording, judge, made
from depth_loss_pages import write_pages
from figures import RESULTS, load, save
from optdepth.costs import flops
from optdepth.data import Data, load_data, normalise
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.networks import StagedNetwork, resnet, transplant
from optdepth.record import record
from optdepth.runs import SPLITS, Run
from optdepth.trace import Trace
from optdepth.training import train
from optdepth.training.loop import NETWORK, RECORD

_load = cache(lambda name, seed: load_data(name, seed=seed))
HERE = RESULTS / "depth_loss"
SIZES = {"full": (20, 16, (15, 2, 1)), "screen": (20, 8, (4, 1, 1)), "short": (14, 4, (2, 1, 1))}
"""By study: layers and width of the network, epochs from scratch, of heads alone, of a late fine-tuning."""


@dataclass(frozen=True)
class Study:
    """What all arms share.

    Attributes:
        name: out of `SIZES`.
        data: as for `optdepth train`.
        depth, width: of the network; an arm may be shallower.
        epochs: of a training from scratch, of heads alone, of a late fine-tuning.
        precision: of training.
        runs, out: folders of weights and traces, and of figures.
    """

    name: str
    data: str
    depth: int
    width: int
    epochs: tuple[int, int, int]
    precision: Literal["fp32", "bf16", "auto"]
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
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--short", action="store_true", help="a small network, a few epochs, the digits by default")
    sizes.add_argument("--screen", action="store_true", help="half the width, a few epochs, to compare arms")
    parser.add_argument("--layers", type=int, help="of the network; the study's own by default")
    parser.add_argument("--epochs", type=int, help="from scratch, and of heads trained for as long")
    parser.add_argument("--arms", default=",".join(ARMS), help="by name, separated by commas; all by default")
    parser.add_argument("--seeds", help="separated by commas; 0 by default, and all that are there with --judge")
    parser.add_argument("--precision", default="auto", choices=("fp32", "bf16", "auto"))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the figures")
    parser.add_argument("--runs", type=Path, default=Path("runs/depth_loss"), help="folder of weights and traces")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--judge", action="store_true", help="train nothing; judge again the arms that have weights")
    again.add_argument("--pages", action="store_true", help="train nothing; write tables and pictures")
    given = parser.parse_args(arguments)
    name = "short" if given.short else "screen" if given.screen else "full"
    depth, width, epochs = SIZES[name]
    layers = depth if given.layers is None else given.layers
    longest = epochs[0] if given.epochs is None else given.epochs
    folder = Path(given.data).name + ("" if name == "full" else f"-{name}")
    if (layers, longest) != (depth, epochs[0]):
        folder += f"-{layers}-{longest}"
    study = Study(
        name=name,
        data=given.data,
        depth=layers,
        width=width,
        epochs=(longest, *epochs[1:]),
        precision="fp32" if given.short else given.precision,
        runs=given.runs / folder,
        out=given.out / folder,
    )
    wanted = given.arms.split(",")
    if unknown := [arm for arm in wanted if arm not in ARMS]:
        raise InputError(f"no arm {unknown[0]!r}; the arms are {', '.join(ARMS)}")
    seeds = None if given.seeds is None else [int(seed) for seed in given.seeds.split(",")]
    if given.judge:
        for arm, seed in with_weights(study, wanted, seeds):
            write_figures(study, arm, seed)
    elif not given.pages:
        for seed in seeds or [0]:
            for arm in wanted:
                finish(study, arm, seed)
    write_pages(study.out)


def finish(study: Study, name: str, seed: int) -> None:
    """The figures of one arm at one seed, and of the arms it starts from, unless they are there."""
    if not study.figures(name, seed).is_file():
        ready(study, name, seed)
        write_figures(study, name, seed)


def ready(study: Study, name: str, seed: int) -> None:
    """The weights of an arm; where they are missing, first those that it needs, which a fresh clone has figures of."""
    arm, run = ARMS[name], study.run(name, seed)
    if (run.folder / RECORD).is_file():
        return
    for other in arm.needs:
        ready(study, other, seed)
        finish(study, other, seed)
    if arm.kind != "cascade":
        trained(study, arm, run, seed)


def with_weights(study: Study, wanted: list[str], seeds: list[int] | None) -> list[tuple[str, int]]:
    """Arms that are trained, and cascades whose members are, each with its seed; all seeds there by default."""
    names = {path.parent.name for path in study.runs.glob(f"*/{RECORD}")}
    there = {(arm, int(seed)) for arm, _, seed in (name.rpartition("-") for name in names) if seed.isdigit()}
    every = sorted({seed for _, seed in there}) if seeds is None else seeds
    found = [
        (arm, seed) for arm in wanted for seed in every if {(one, seed) for one in ARMS[arm].members or (arm,)} <= there
    ]
    if not found:
        raise InputError(f"no weights of {', '.join(wanted)} in {study.runs}; train first, or give --runs")
    return found


def write_figures(study: Study, name: str, seed: int) -> None:
    """Judges a trained arm and writes its figures; what those that are there say of the training is kept."""
    path, arm = study.figures(name, seed), ARMS[name]
    before = load(path) if path.is_file() else {}
    found = judged(study, name, seed)
    origin = made(study.run(name, seed), before)
    save(path, {"arm": name, "what": arm.what, "seed": seed, "study": study.name, **found, **origin})
    print(f"{name}, seed {seed}: {path}", flush=True)


def judged(study: Study, name: str, seed: int) -> dict[str, Any]:
    """What an arm is worth."""
    arm, run, data = ARMS[name], study.run(name, seed), study.load(seed)
    if arm.kind == "cascade":
        members = [study.run(other, seed).network() for other in arm.members]
        costs = in_turn([costs_of(study, member, seed) for member in members])
        return judge({split: cascaded(members, data, split, costs) for split in SPLITS})
    network = run.network()
    costs = costs_of(study, network, seed)
    if arm.heads == "none":
        return alone(network, data, costs)
    traces = traces_of(run, network, data, costs)
    return judge(
        {
            split: Recording(trace, answers(network, data, split), data.splits[split].labels)
            for split, trace in traces.items()
        }
    )


def trained(study: Study, arm: Arm, run: Run, seed: int) -> None:
    """Trains the arm, or goes on with it."""
    data = study.load(seed)
    network = resnet(
        arm.depth or study.depth,
        classes=len(data.classes),
        channels=data.channels,
        width=study.width,
        exits="last" if arm.heads == "none" else arm.exits,
        heads="linear" if arm.heads == "none" else arm.heads,
        seed=seed,
    )
    if arm.start:
        transplant(network, study.run(arm.start, seed).network())
    if arm.kind == "trunk":
        network.save(run.folder / NETWORK)
        shutil.copy(study.run(arm.start, seed).folder / RECORD, run.folder / RECORD)
        return
    costs = flops(network, example(data)).relative().paid().tolist()
    train(
        network,
        data,
        loss=arm.loss,
        costs=costs,
        epochs=study.epochs[{"frozen": 1, "late": 2}.get(arm.kind, 0)],
        lr=0.02 if arm.kind == "late" else 0.1,
        schedule="cosine" if arm.kind == "late" else "one-cycle",
        precision=study.precision,
        backbone="frozen" if arm.kind in ("frozen", "long") else "joint",
        seed=seed,
        out=run.folder,
    )


def example(data: Data) -> Tensor:
    """One image, to count work on."""
    return normalise(data.splits["fit"][0][0][None], data.mean, data.std)


def costs_of(study: Study, network: StagedNetwork, seed: int) -> Costs:
    """What the exits of a network cost, in full passes of the study's network without exits: the unit of all prices."""
    data = study.load(seed)
    size: dict[str, Any] = {"classes": len(data.classes), "channels": data.channels, "width": study.width}
    unit = flops(resnet(study.depth, **size, exits="last", seed=0), example(data)).full
    own = flops(network, example(data))
    return Costs(own.reach / unit, own.look / unit, own.answer / unit, f"full passes of {unit:.4g} FLOPs")


def traces_of(run: Run, network: StagedNetwork, data: Data, costs: Costs) -> dict[str, Trace]:
    """The traces of the three splits, recorded where there is none of this network, data, costs and format."""
    traces, wanted = {}, costs.paid().tolist()
    for split in SPLITS:
        held, path = data.splits[split], run.folder / "traces" / f"{split}.safetensors"
        try:
            trace = Trace.load(path)
            fits = (trace.network, trace.source) == (network.fingerprint(), held.source)
            fits = fits and np.array_equal(trace.rows, held.rows)
            fits = fits and trace.costs.paid().tolist() == wanted
        except InputError:  # none, or of another version of the format
            fits = False
        if not fits:
            trace = record(network, data.batches(split), costs)
            trace.save(path)
        traces[split] = trace
    return traces


@torch.inference_mode()
def answers(network: StagedNetwork, data: Data, split: str) -> Tensor:
    """Logits (N, K, C) of every exit."""
    device = next(network.parameters()).device
    return torch.cat([torch.stack(network(images.to(device)), dim=1).cpu() for images, _ in data.batches(split)])


def alone(network: StagedNetwork, data: Data, costs: Costs) -> dict[str, Any]:
    """Accuracy and cost of a network with one exit."""
    accuracy = {}
    for split in SPLITS:
        wrong = answers(network, data, split)[:, -1].argmax(1).numpy() != data.splits[split].labels
        accuracy[split] = [1 - float(wrong.mean())]
    return {"accuracy": accuracy, "costs": {"paid": [costs.full]}}


def in_turn(members: list[Costs]) -> Costs:
    """What the exits of networks run one after another cost.

    No network but the last one is trunk of the next: each of them is one look, which costs nothing if it is not taken.
    """
    *before, last = members
    reach = [0.0] * len(before) + last.reach.tolist()
    look = [member.full for member in before] + last.look.tolist()
    return Costs.of(reach, look, unit=last.unit)


def cascaded(members: list[StagedNetwork], data: Data, split: str, costs: Costs) -> Recording:
    """The recording of networks run one after another: the last answer of each, and every exit's of the last one."""
    held = data.splits[split]
    *before, last = [answers(member, data, split) for member in members]
    logits = torch.cat([*(each[:, -1:] for each in before), last], dim=1)
    trace = Trace.from_logits(logits, held.labels, costs, source=held.source, rows=held.rows)
    return Recording(trace, logits, held.labels)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"depth_loss: {error}")
