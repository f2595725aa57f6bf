"""The engine on the clock: time saved beside cost saved, and beside what else could serve the same exits.

    python benchmarks/engine.py --data ../shared/data/cifar10 --text ../shared/data/sst2
    python benchmarks/engine.py --data ../shared/data/cifar10 --soak 600

Trains two residual networks, with linear and with conv heads, and takes those that `benchmarks/minilm.py` trains.
Rules are solved on the fit split at costs measured at each batch size; times are of samples of the test split. The
rival `earlyon` takes part where it is installed (pip install --no-deps earlyon==0.3.0); MiniLM needs what `minilm.py`
says. `--soak SECONDS` runs the streaming engine instead. Writes a table and figures to `benchmarks/results/engine/`;
`--pages` only writes the table of the figures that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from engine_networks import SUBJECTS, Subject
from engine_onnx import served
from engine_page import page
from engine_profile import by_size, where
from engine_rivals import cuts_of, earlyon, everything, loop
from engine_soak import soak
from figures import RESULTS, load, provenance, save
from optdepth.batch import Inputs
from optdepth.errors import InputError
from optdepth.inference.clock import times
from optdepth.inference.engine import Engine
from optdepth.inference.timings import Timings
from optdepth.stopping.baselines import confidence
from optdepth.stopping.placed import Placed, placed
from optdepth.stopping.placement import keep
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from optdepth.threads import on_threads
from optdepth.trace import Trace

HERE = RESULTS / "engine"
BATCHES = (1, 8, 64, 256)
COMPILED = {1: (1,), 64: (32, 48, 64)}
"""Batch sizes at which compiled code is timed, and the sizes it is compiled for."""


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10", help="images, as for `optdepth train`")
    parser.add_argument("--text", default="../shared/data/sst2", help="sentences, as for `benchmarks/minilm.py`")
    parser.add_argument("--networks", default=",".join(SUBJECTS), help="of these, separated by commas; all by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="turns of each batch; the median counts")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds to run the streaming engine for instead")
    parser.add_argument("--pages", action="store_true", help="time nothing; write the table again")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU here: the GPU table has not run")
    names = given.networks.split(",")
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise InputError(f"no network {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    with on_threads(given.threads):  # the same for the engine and its rivals
        run(given, names)


def run(given: argparse.Namespace, names: list[str]) -> None:
    """Times the networks named, and writes figures and table."""
    made = provenance(__file__, also=("onnxruntime", "earlyon", "transformers"), device=given.device)
    if given.soak:
        subject = SUBJECTS["linear"](given.data, given.text)
        rule = placed(subject.fit, price=0.5)
        found = soak(Engine(subject.network, rule), subject.inputs, seconds=given.soak, seed=0)
        save(HERE / "soak.json", made | found)
        print(found)
        return
    path = HERE / f"{given.device}.json"
    held: dict[str, Any] = load(path)["networks"] if path.is_file() else {}
    for name in [] if given.pages else names:
        held[name] = made | measured(SUBJECTS[name](given.data, given.text), given.device, given.repeats)
        save(path, {"networks": {key: held[key] for key in SUBJECTS if key in held}})
    (HERE / f"{given.device}.md").write_text(page(held))
    print(page(held))


def measured(subject: Subject, device: str, repeats: int) -> dict[str, Any]:
    """Everything about one network."""
    subject = replace(subject, network=subject.network.to(device))
    network, fit = subject.network, subject.fit
    timings = Timings.measure(network, subject.chunks(64)[0], sizes=subject.timed)
    result: dict[str, Any] = {"title": subject.title, "ideal": [], "rivals": [], "compiled": [], "where": []}
    for size in BATCHES:
        at_size = replace(fit, costs=timings.costs(size).relative())
        for price in subject.prices:
            rule, rival = placed(at_size, price=price), threshold(at_size, price)
            spent, saved = _served(subject, rule, rival, timings, at_size, size, repeats)
            row = {"batch": size, "price": price}
            result["ideal"].append(row | saved)
            result["rivals"].append(row | {"looks": list(rival.kept[:-1]), "ms": spent})
        middle = placed(at_size, price=subject.prices[len(subject.prices) // 2])
        parts = where(Engine(network, middle, timings=timings), subject.chunks(size), repeats)
        result["where"].append({"batch": size, "looks": _looks(middle), "ms": parts})
        if size in COMPILED:
            result["compiled"].append({"batch": size, **_compiled(subject, middle, size, repeats)})
    result["by size"] = by_size(network, subject.inputs, 1, (1, 2, 4, 8, 16, 32, 64, 128, 256))
    result["pieces"] = {str(size): timings.piece(size) for size in BATCHES}
    return result | (served(subject, BATCHES, repeats) if device == "cpu" else {})


def _served(
    subject: Subject, rule: Rule, rival: Placed, timings: Timings, at_size: Trace, size: int, repeats: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds a sample of every way to serve; and of the solved rule, what is saved."""
    network, fit, chunks = subject.network, subject.fit, subject.chunks(size)
    serves: dict[str, Callable[[Any], object]] = {
        "network without exits": network.full,
        "engine, full depth": Engine(network, FixedDepth(Origin.of(fit), fit.n_exits - 1), timings=timings),
        "engine, solved rule": Engine(network, rule, timings=timings),
        "engine": Engine(network, rival, timings=timings),
        "everything, choose afterwards": everything(network, cuts_of(rival)),
        "loop by hand": loop(network, cuts_of(rival)),
    }
    if isinstance(chunks[0], torch.Tensor):
        for batched in (False, True) if size == 1 else (True,):
            serve = earlyon(network, cuts_of(rival), chunks[0], batched=batched)
            if serve is not None:
                serves["earlyon, batched" if batched else "earlyon, single"] = serve
    spent = dict(zip(serves, times(list(serves.values()), chunks, repeats), strict=True))
    return spent, _saved(serves["engine, solved rule"], rule, at_size, subject, chunks, spent)


def _saved(
    engine: Any, rule: Rule, at_size: Trace, subject: Subject, chunks: list[Inputs], spent: dict[str, float]
) -> dict[str, Any]:
    """Shares of the full network saved: on the clock, by the costs that the rule was solved at, and with free looks."""
    exits = torch.cat([engine(chunk).exit for chunk in chunks]).cpu().numpy()
    costs, full, test = at_size.costs, spent["network without exits"], subject.test
    clock = 1 - spent["engine, solved rule"] / full
    cost = 1 - float(costs.paid(rule.looks)[exits].mean())
    return {
        "looks": _looks(rule),
        "ms": [full, spent["engine, solved rule"]],
        "right": 1 - float(test.losses[np.arange(len(test)), rule.stopped_at(test)].mean()),
        "at full depth": spent["engine, full depth"] / full - 1,
        "clock": clock,
        "cost": cost,
        "free looks": 1 - float((costs.reach[exits] + costs.look[-1]).mean()),
        "flops": 1 - float(subject.fit.costs.reach[exits].mean()),
        "realised": clock / cost if cost > 0 else float("nan"),
    }


def _compiled(subject: Subject, rule: Rule, size: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a sample of the compiled network without exits and of the compiled engine."""

    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = subject.network

        def forward(self, inputs: Inputs) -> torch.Tensor:
            return self.network.full(inputs)

    engine = Engine(subject.network, rule, sizes=COMPILED[size], compile=True)
    chunks = subject.chunks(size)
    engine.warm(chunks[0])
    plain = torch.compile(Full().eval(), dynamic=False, options={"freezing": True})
    names = ("network without exits", "engine", "network without exits, compiled", "engine, compiled")
    serves = [subject.network.full, Engine(subject.network, rule), plain, engine]
    spent = dict(zip(names, times(serves, chunks, repeats), strict=True))
    return {"looks": _looks(rule), "sizes": COMPILED[size], "ms": spent}


def threshold(trace: Trace, price: float) -> Placed:
    """One tuned confidence threshold on the exits that are worth their look."""
    narrow = replace(trace, observations=trace.columns(["confidence"]), features=("confidence",))
    found = placed(narrow, price=price, features=("confidence",))
    exits = found.kept if isinstance(found, Placed) else (trace.n_exits - 2, trace.n_exits - 1)
    return Placed(Origin.of(trace, price), confidence(keep(narrow, exits), price=price), exits)


def _looks(rule: Rule) -> list[int]:
    return [k for k, looks in enumerate(rule.looks[:-1]) if looks]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"engine: {error}")
