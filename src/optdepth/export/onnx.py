"""Writing a network and its rule as a bundle: one ONNX graph from each exit looked at to the next, and a manifest.

A data-dependent exit inside one graph needs an `If`, which onnxruntime runs for a whole batch or not at all. So the
decision is cut out: a graph ends where a sample may leave, and `runtime.py` gathers those that stay.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import InputError
from ..files import write_atomically, write_json
from ..inference.engine import Engine
from ..inference.look import Look
from ..networks import StagedNetwork
from ..stopping.rule import Rule
from .runtime import FORMAT, MANIFEST, VERSION, Runtime

_RTOL, _ATOL = 1e-3, 1e-4
"""What graphs may differ by from torch: float32 through tens of layers, summed in another order."""


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        folder: where.
        graphs: how many.    bytes: of all files.
        samples: on which parity was checked.    difference: largest difference of a logit there.
    """

    folder: Path
    graphs: int
    bytes: int
    samples: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.graphs} graphs, {self.bytes / 1e6:.2f} MB, in {self.folder}; the same exits as torch on "
            f"{self.samples} samples, logits within {self.difference:.1e}"
        )


def export(network: StagedNetwork, rule: Rule, examples: Tensor | Sequence[Tensor], folder: str | Path) -> Bundle:
    """Writes a bundle that `optdepth.export.runtime` serves without torch, and checks it against the engine.

    Args:
        network, rule: as for an engine. Any pytree of tensors may be the state.
        examples: (n, ...) inputs, n >= 2; what they are like decides nothing, but the graphs are checked on them.
            Several batches of unlike shape: the dimensions that differ between them are dynamic, such as the length of
            a sequence. The batch is always dynamic.
        folder: to make, or to write into where it holds a bundle.

    Raises:
        InputError: onnx or onnxscript is missing, a state that is not all tensors, fewer than two samples, a network
            that torch cannot export, a rule with recall, or graphs that do not agree with torch; no bundle is left.
    """
    batches = [examples] if isinstance(examples, Tensor) else list(examples)
    if not batches or min(len(batch) for batch in batches) < 2:
        raise InputError("give at least two samples to export with: a batch of one hides which dimension is the batch")
    if rule.origin.recall:
        raise InputError("a rule that recalls earlier exits cannot be exported; solve it on a trace without recall")
    for package in ("onnx", "onnxscript"):
        _need(package)
    engine, folder = Engine(network, rule), Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds something else than a bundle; give an empty folder")
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        parts = _parts(network, rule)
        graphs = _write(parts, batches, fresh)
        write_json(fresh / MANIFEST, _manifest(network, rule, batches, graphs))
        difference = _checked(parts, engine, batches, fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Bundle(folder, len(graphs), size, sum(map(len, batches)), difference)


class _Part(nn.Module):
    """The stages up to the next exit looked at, its head and the rule there, on flat lists of tensors.

    Args:
        ks: numbers of the stages; the exit is the last of them.
    """

    def __init__(self, network: StagedNetwork, look: Look, ks: Sequence[int]) -> None:
        super().__init__()
        self.network, self.ks, self.look, self.rule = network, tuple(ks), look, look.rule
        self.exit, self.stops = ks[-1], ks[-1] < len(network.exits) - 1
        self.spec: TreeSpec | None = None  # of (state, memory) on the way in; None: the inputs themselves
        self.after: TreeSpec | None = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        if self.spec is None:
            state, memory = self.network.start(leaves[0]), {}
        else:
            state, memory = tree_unflatten(list(leaves), self.spec)
        before = state
        for k in self.ks:
            before, state = state, self.network.advance(state, k)
        logits = self.network.answer(state, self.exit)
        if not self.stops:
            return (logits,)
        stops, memory = self.look.batch(self.exit, logits, before, state, memory)
        carried, self.after = tree_flatten((state, memory))
        if not all(isinstance(leaf, Tensor) for leaf in carried):
            raise InputError("a state to export must hold tensors alone; keep plain numbers in the modules")
        # A part of the state that a stage hands on untouched needs a name of its own among the outputs.
        return (*(leaf.clone() if any(leaf is given for given in leaves) else leaf for leaf in carried), logits, stops)


def _parts(network: StagedNetwork, rule: Rule) -> list[_Part]:
    looks, last = [*rule.looks[:-1], True], len(network.exits) - 1
    ends = [k for k in range(last + 1) if looks[k]]
    starts = [0, *(k + 1 for k in ends[:-1])]
    look = Look(rule)
    return [_Part(network, look, range(a, b + 1)).eval() for a, b in zip(starts, ends, strict=True)]


@torch.inference_mode()
def _through(parts: Sequence[_Part], inputs: Tensor) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """What goes into and comes out of each part when all samples go all the way."""
    passed: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    leaves: tuple[Tensor, ...] = (inputs,)
    spec: TreeSpec | None = None
    for part in parts:
        part.spec = spec
        found = part(*leaves)
        passed.append((leaves, found))
        leaves, spec = found[:-2], part.after
    return passed


def _write(parts: Sequence[_Part], batches: Sequence[Tensor], folder: Path) -> list[dict[str, Any]]:
    """One file a part; what the manifest says of it."""
    shapes = [[[leaf.shape for leaf in given] for given, _ in _through(parts, batch)] for batch in batches]
    about = []
    for i, (part, (leaves, found)) in enumerate(zip(parts, _through(parts, batches[0]), strict=True)):
        dynamic = [
            {d: torch.export.Dim.DYNAMIC for d in range(leaf.dim()) if d == 0 or len({s[i][j][d] for s in shapes}) > 1}
            for j, leaf in enumerate(leaves)
        ]
        content = _graph(part, tuple(leaf.clone() for leaf in leaves), dynamic, len(found))
        name = f"exit{part.exit}.onnx"
        write_atomically(folder / name, content)
        about.append(
            {
                "file": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "exit": part.exit,
                "inputs": _names(content, len(leaves)),
                "carried": len(found) - 2 if part.stops else 0,
                "stops": part.stops,
            }
        )
    return about


def _graph(part: _Part, leaves: tuple[Tensor, ...], dynamic: list[dict[int, Any]], outputs: int) -> bytes:
    """The part as ONNX."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part,
                leaves,
                dynamo=True,
                dynamic_shapes=(tuple(dynamic),),
                input_names=[f"in{j}" for j in range(len(leaves))],
                output_names=[f"out{j}" for j in range(outputs)],
                verbose=False,
            )
            assert program is not None
            content: bytes = program.model_proto.SerializeToString()
    except InputError:
        raise
    except Exception as error:  # the exporter's errors share no base class
        said = " ".join(str(error).split())
        raise InputError(f"torch cannot export the network up to exit {part.exit} ({said:.200})") from error
    return content


def _names(content: bytes, leaves: int) -> list[str | None]:
    """The input of each leaf; None for one that the graph does not read."""
    import onnx

    there = {value.name for value in onnx.load_from_string(content).graph.input}
    return [name if name in there else None for name in (f"in{j}" for j in range(leaves))]


def _manifest(
    network: StagedNetwork, rule: Rule, batches: Sequence[Tensor], graphs: list[dict[str, Any]]
) -> dict[str, Any]:
    sizes = [{batch.shape[d] for batch in batches} for d in range(batches[0].dim())]
    shape = [None if d == 0 or len(size) > 1 else size.pop() for d, size in enumerate(sizes)]
    costs = rule.origin.costs
    return {
        "format": FORMAT,
        "version": VERSION,
        "network": network.fingerprint(),
        "exits": [exit.name for exit in network.exits],
        "rule": {"kind": type(rule).__name__, "features": list(rule.features), "looks": list(rule.looks)},
        "price": rule.origin.price,
        "unit": costs.unit,
        "paid": costs.paid(rule.looks).tolist(),
        "input": {"dtype": str(batches[0].numpy().dtype), "shape": shape},
        "graphs": graphs,
        "made with": {name: version(name) for name in ("optdepth", "torch", "onnx", "onnxscript")},
    }


def _checked(parts: Sequence[_Part], engine: Engine, batches: Sequence[Tensor], folder: Path) -> float:
    """Every graph against its part on all samples, and the bundle against the engine; the largest difference."""
    runtime = Runtime(folder)
    largest = 0.0
    for batch in [*batches, *(batch[1:] for batch in batches)]:  # a number frozen while tracing fits one batch only
        for graph, (given, found) in zip(runtime.graphs, _through(parts, batch), strict=True):
            logits = graph([leaf.numpy() for leaf in given])[1]
            expected = found[len(found) - (2 if len(found) > 1 else 1)].numpy()
            largest = max(largest, float(np.abs(logits - expected).max()))
            if not np.allclose(logits, expected, rtol=_RTOL, atol=_ATOL):
                raise InputError(f"the graph of exit {graph.exit} does not agree with torch; not exported")
        mine, its = runtime(batch.numpy()).exit, engine(batch).exit.numpy()
        if (mine != its).any():
            i = int(np.flatnonzero(mine != its)[0])
            raise InputError(f"the bundle stops sample {i} at exit {mine[i]}, torch at exit {its[i]}; not exported")
    return largest


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        raise InputError(f"exporting needs {package}; pip install 'optdepth[onnx]'") from None
