"""The same exits through onnxruntime: a bundle beside one plain graph of the network without exits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine_networks import Subject
from engine_rivals import plain_onnx
from optdepth.batch import Inputs
from optdepth.exit_costs import Costs
from optdepth.export.bundle import export
from optdepth.export.runtime import Runtime
from optdepth.inference.clock import times
from optdepth.stopping.placed import placed

LOOK = 0.01
"""Of a full pass, what a look is put down as for the rule of a bundle: its clock is not measured."""


def served(subject: Subject, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Milliseconds a sample of the plain graph and of the bundle; and what serving without torch takes.

    Not beside torch: onnxruntime's threads spin, and would be timed with torch's.
    """
    runtime, plain, about = _exported(subject)
    rows = []
    for size in batches:
        chunks = subject.chunks(size)
        spent = times([lambda x: plain(numpy(x)), lambda x: runtime(numpy(x))], chunks, repeats)
        exits = np.concatenate([runtime(numpy(chunk)).exit for chunk in chunks])
        paid = float(subject.fit.costs.paid()[exits].mean())
        rows.append({"batch": size, "ms": dict(zip(("plain graph", "bundle"), spent, strict=True)), "flops": paid})
    return {"onnx": rows, "export": about}


def numpy(inputs: Inputs) -> Any:
    """Inputs as a bundle takes them."""
    return tree_map(lambda tensor: tensor.numpy(), inputs)


def _exported(subject: Subject) -> tuple[Runtime, Callable[[Any], object], dict[str, Any]]:
    """A bundle, the plain graph, and what they take; graphs are kept between runs."""
    folder, fit, examples = subject.folder / "engine-onnx", subject.fit, subject.chunks(64)[0]
    folder.mkdir(exist_ok=True)
    looks = Costs(fit.costs.reach, np.full(fit.n_exits, LOOK), fit.costs.answer, fit.costs.unit)
    rule = placed(replace(fit, costs=looks), price=max(subject.prices))
    if not (folder / "bundle").is_dir():
        export(subject.network, rule, examples, folder / "bundle")
        rule.save(folder / "rule")
    about: dict[str, Any] = {
        "bundle, MB": sum(path.stat().st_size for path in (folder / "bundle").iterdir()) / 1e6,
        "installed, MB": {name: _installed(name) for name in ("onnxruntime", "numpy", "torch")},
    }
    if isinstance(examples, Tensor):
        about["cold start, s"] = _cold_starts(subject, folder, examples[:1])
    runtime = Runtime(folder / "bundle", threads=torch.get_num_threads())
    return runtime, plain_onnx(subject.network, examples, folder / "plain.onnx"), about


def _cold_starts(subject: Subject, folder: Path, example: Tensor) -> dict[str, float]:
    """Seconds of a process that loads everything and answers one sample."""
    np.save(folder / "inputs.npy", example.numpy())
    read = f"import numpy as np; x = np.load({str(folder / 'inputs.npy')!r}); "
    serve = f"from optdepth.export.runtime import Runtime; Runtime({str(folder / 'bundle')!r})(x)"
    torch_serve = (
        f"import torch, optdepth as od; n = od.load_network({str(subject.folder / 'network')!r}); "
        f"od.Engine(n, od.Rule.load({str(folder / 'rule')!r}))(torch.from_numpy(x))"
    )
    return {"bundle": _cold(read + serve), "torch": _cold(read + torch_serve), "python": _cold("pass")}


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
