"""The engine on the clock: time saved beside cost saved, and beside what else could serve the same exits.

    python benchmarks/engine.py --data ../shared/data/cifar10
    python benchmarks/engine.py --data ../shared/data/cifar10 --soak 600

Takes the network that `benchmarks/spine.py` trains, or trains it. Rules are solved on the fit split at costs measured
at each batch size; times are of test images. `--soak SECONDS` runs the streaming engine instead. Writes a table and its
figures to `benchmarks/engine/`.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine_rivals import cuts_of, earlyon, everything, loop, plain_onnx
from optdepth.cli import record, train
from optdepth.costs import latency
from optdepth.errors import InputError
from optdepth.export.onnx import export
from optdepth.export.runtime import Runtime
from optdepth.files import write_json
from optdepth.inference.clock import times
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from optdepth.inference.timings import Timings
from optdepth.networks import StagedNetwork
from optdepth.stopping.baselines import confidence
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.placement import keep
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.trace import Costs, Trace
from optdepth.workflow import Run
from provenance import commit, processor, table_row

HERE = Path(__file__).parent / "engine"
BATCHES = (1, 8, 64, 256)


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10", help="as for `optdepth train`")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prices", default="0.1,0.5,1", help="loss that one full pass is worth")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="turns of each batch; the median counts")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds to run the streaming engine for instead")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU here: the GPU table has not run")
    torch.set_num_threads(given.threads)
    run = Run(Path("runs") / Path(given.data).name)
    if not (run.folder / "traces" / "test.safetensors").is_file():
        train(out=run.folder, data=given.data, epochs=15, precision="bf16")
        record(run.folder)
    network = run.network().to(given.device)
    images = torch.cat([x for x, _ in itertools.islice(run.data().batches("test", 256), 8)]).to(given.device)
    provenance = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads, {given.device}",
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if given.soak:
        rule = placed(run.trace("fit"), price=0.5)
        found = soak(Engine(network, rule), images, seconds=given.soak, seed=0)
        write_json(HERE / "soak.json", provenance | found)
        print(found)
        return
    result = _measured(run, network, images, [float(p) for p in given.prices.split(",")], given.repeats)
    write_json(HERE / f"{given.device}.json", provenance | result)
    (HERE / f"{given.device}.md").write_text(_page(provenance, result))
    print(_page(provenance, result))


def _measured(run: Run, network: StagedNetwork, images: Tensor, prices: list[float], repeats: int) -> dict[str, Any]:
    fit, test = run.trace("fit"), run.trace("test")
    result: dict[str, Any] = {"ideal": [], "rivals": [], "onnx": [], "export": {}}
    runtime, plain = None, None
    if not images.is_cuda:
        runtime, plain, result["export"] = _exported(run, network, images, fit)
    timings = Timings.measure(network, images, sizes=(1, 4, 16, 64))
    for size in BATCHES:
        count = max(2, min(128, 512 // size))
        chunks = list(images.split(size))[:count]
        costs = latency(network, images[:size], features=("margin",), repeats=max(5, 40 // max(1, size // 8)))
        measured = replace(fit, costs=costs.relative())
        for price in prices:
            rule, rival = placed(measured, price=price), _threshold(measured, price)
            serves: dict[str, Callable[[Tensor], object]] = {
                "network without exits": network.full,
                "engine, full depth": Engine(network, FixedDepth(Origin.of(fit), fit.exits - 1)),
                "engine, solved rule": Engine(network, rule, timings=timings),
                "engine": Engine(network, rival, timings=timings),
                "everything, choose afterwards": everything(network, cuts_of(rival)),
                "loop by hand": loop(network, cuts_of(rival)),
            }
            for batched in (False, True) if size == 1 else (True,):
                rivals = earlyon(network, cuts_of(rival), images, batched=batched)
                if rivals is not None:
                    serves["earlyon, batched" if batched else "earlyon, single"] = rivals
            spent = dict(zip(serves, times(list(serves.values()), chunks, repeats), strict=True))
            row = {"batch": size, "price": price}
            result["ideal"].append(
                row | _saved(serves["engine, solved rule"], rule, measured, fit, test, chunks, spent)
            )
            result["rivals"].append(row | {"looks": list(rival.kept[:-1]), "ms": spent})
        if runtime is not None and plain is not None:
            # Not beside torch: onnxruntime's threads spin, and would be timed with torch's.
            both = [lambda x: plain.run(None, {"in0": x.numpy()}), lambda x: runtime(x.numpy())]
            names = ("plain graph", "bundle")
            spent = dict(zip(names, times(both, chunks, repeats), strict=True))
            exits = np.concatenate([runtime(chunk.numpy()).exit for chunk in chunks])
            result["onnx"].append({"batch": size, "ms": spent, "flops": float(fit.costs.paid()[exits].mean())})
    return result


def _saved(
    engine: Any, rule: Rule, measured: Trace, fit: Trace, test: Trace, chunks: list[Tensor], spent: dict[str, float]
) -> dict[str, Any]:
    """Shares of the full network saved: on the clock, and by costs of the stages that were not run."""
    exits = torch.cat([engine(chunk).exit for chunk in chunks]).cpu().numpy()
    costs, full = measured.costs, spent["network without exits"]
    clock = 1 - spent["engine, solved rule"] / full
    ideal = 1 - float((costs.reach[exits] + costs.probe[-1]).mean())
    return {
        "looks": [k for k, looks in enumerate(rule.looks[:-1]) if looks],
        "ms": [full, spent["engine, solved rule"]],
        "accuracy": 1 - float(test.losses[np.arange(len(test)), rule.exits(test)].mean()),
        "overhead": spent["engine, full depth"] / full - 1,
        "clock": clock,
        "ideal": ideal,
        "with looks": 1 - float(costs.paid(rule.looks)[exits].mean()),
        "flops": 1 - float(fit.costs.reach[exits].mean()),
        "realised": clock / ideal if ideal > 0 else float("nan"),
    }


def _threshold(trace: Trace, price: float) -> Placed:
    """One tuned confidence threshold on the exits that are worth their look."""
    narrow = replace(trace, observations=trace.columns(["confidence"]), features=("confidence",))
    found = placed(narrow, price=price, features=("confidence",))
    exits = found.kept if isinstance(found, Placed) else (trace.exits - 2, trace.exits - 1)
    return Placed(Origin.of(trace, price), confidence(keep(narrow, exits), price=price), exits)


def _exported(run: Run, network: StagedNetwork, images: Tensor, fit: Trace) -> tuple[Runtime, Any, dict[str, Any]]:
    """A bundle, the plain graph, and what serving without torch takes; graphs are kept between runs."""
    folder = run.folder / "engine-onnx"
    folder.mkdir(exist_ok=True)
    costs = Costs(fit.costs.reach, np.full(fit.exits, 0.01), fit.costs.answer, fit.costs.unit)
    rule = placed(replace(fit, costs=costs), price=0.5)
    if not (folder / "bundle").is_dir():
        export(network, rule, images[:64], folder / "bundle")
        rule.save(folder / "rule")
    plain = plain_onnx(network, images[:4], folder / "plain.onnx")
    np.save(folder / "inputs.npy", images[:1].numpy())
    read = f"import numpy as np; x = np.load({str(folder / 'inputs.npy')!r}); "
    serve = f"from optdepth.export.runtime import Runtime; Runtime({str(folder / 'bundle')!r})(x)"
    torch_serve = (
        f"import torch, optdepth as od; n = od.load_network({str(run.folder / 'network')!r}); "
        f"od.Engine(n, od.Rule.load({str(folder / 'rule')!r}))(torch.from_numpy(x))"
    )
    about = {
        "cold start, s": {"bundle": _cold(read + serve), "torch": _cold(read + torch_serve), "python": _cold("pass")},
        "installed, MB": {name: _installed(name) for name in ("onnxruntime", "numpy", "torch")},
        "bundle, MB": sum(path.stat().st_size for path in (folder / "bundle").iterdir()) / 1e6,
    }
    return Runtime(folder / "bundle", threads=torch.get_num_threads()), plain, about


def _cold(code: str) -> float:
    """Seconds of a fresh process, the median of three."""
    spent = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent))


def _installed(name: str) -> float:
    """MB of a package's files."""
    files = distribution(name).files or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file()) / 1e6


def soak(engine: Engine, images: Tensor, *, seconds: float, seed: int) -> dict[str, Any]:
    """Mixed batches through the streaming engine: counts answers, checks each, and watches the memory.

    Memory is the resident set at each tenth of the time.
    """
    expected = torch.cat([engine(chunk).exit for chunk in images.split(256)])
    choose, drawn, end = random.Random(seed), [0], time.perf_counter() + seconds
    asked: dict[int, int] = {}

    def source() -> Any:
        while time.perf_counter() < end:
            for _ in range(choose.choice((1, 3, 8, 50, 256))):
                image = choose.randrange(len(images))
                asked[drawn[0]] = image
                drawn[0] += 1
                yield images[image]

    unlike, memory, most, answers = 0, [], 0, 0
    for answer in stream(engine, source(), batch=64, max_delay=200.0):
        answers += 1
        most = max(most, len(asked))
        unlike += int(answer.exit != int(expected[asked.pop(answer.index)]))  # a second answer would find nothing
        if time.perf_counter() >= end - seconds * (1 - len(memory) / 10) and len(memory) < 10:
            memory.append(_resident())
    return {
        "seconds": seconds,
        "answers": answers,
        "lost": len(asked),
        "exits unlike the engine's": unlike,
        "in flight at most": most,
        "memory, MB": memory,
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * resource.getpagesize() / 1e6


def _page(provenance: dict[str, Any], result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# The engine on the clock",
        "",
        f"`{provenance['command']}`, commit {provenance['commit']}, {provenance['machine']}, "
        + ", ".join(f"{key} {value}" for key, value in provenance["versions"].items())
        + ". Times are medians over the turns of every batch, all ways to serve side by side.",
        "",
        "Saved, as shares of the network without exits: on the clock; ideally, which is the measured time of the "
        "stages that were not run at this batch size with looks and gathering free; with looks paid; by FLOPs.",
        "",
        table_row(
            [
                "price",
                "batch",
                "looks at exits",
                "right",
                "clock",
                "ideal",
                "with looks",
                "FLOPs",
                "realised / ideal",
                "at full depth",
            ]
        ),
        table_row(["---:"] * 10),
    ]
    for row in result["ideal"]:
        shares = [f"{100 * row[key]:.1f}%" for key in ("clock", "ideal", "with looks", "flops")]
        looks = ", ".join(map(str, row["looks"])) or "none"
        lines.append(
            table_row(
                [
                    f"{row['price']:g}",
                    str(row["batch"]),
                    looks,
                    f"{100 * row['accuracy']:.1f}%",
                    *shares,
                    f"{row['realised']:.2f}",
                    f"{100 * row['overhead']:+.1f}%",
                ]
            )
        )
    names = [name for name in result["rivals"][0]["ms"] if not name.startswith("engine,")]
    lines += ["", "Throughput over the network without exits, one confidence threshold, the same exits:", ""]
    lines += [table_row(["price", "batch", *names]), table_row(["---:"] * (2 + len(names)))]
    for row in result["rivals"]:
        full = row["ms"]["network without exits"]
        cells = [f"{full / row['ms'][name]:.2f}" if name in row["ms"] else "" for name in names]
        lines.append(table_row([f"{row['price']:g}", str(row["batch"]), *cells]))
    if result["onnx"]:
        lines += ["", "onnxruntime, milliseconds a sample; saved by FLOPs and on the clock:", ""]
        lines += [
            table_row(["batch", "plain graph", "bundle", "FLOPs", "clock"]),
            table_row(["---:"] * 5),
        ]
    for row in result["onnx"]:
        spent = row["ms"]
        saved = [f"{100 * (1 - row['flops']):.1f}%", f"{100 * (1 - spent['bundle'] / spent['plain graph']):.1f}%"]
        lines.append(table_row([str(row["batch"]), *(f"{value:.3f}" for value in spent.values()), *saved]))
    for name, values in result["export"].items():
        shown = ", ".join(f"{k} {v:.2f}" for k, v in values.items()) if isinstance(values, dict) else f"{values:.2f}"
        lines += ["", f"{name}: {shown}"]
    return "\n".join([*lines, "", "On a GPU this has not run." if "cuda" not in provenance["machine"] else ""]) + "\n"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("optdepth", "torch", "numpy", "onnxruntime", "earlyon"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"engine: {error}")
