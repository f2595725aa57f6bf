"""Writing a network and its rule as a bundle: one graph from each exit looked at to the next, and a manifest.

A data-dependent exit inside one graph needs an `If`, which a runtime runs for a whole batch or not at all. So the
decision is cut out: a graph ends where a sample may leave, and `runtime.py` gathers those that stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..batch import Inputs, hidden
from ..errors import InputError
from ..files import write_atomically, write_json
from ..inference.engine import Answer, Engine
from ..interrupts import interrupts
from ..networks import StagedNetwork
from ..networks.signature import Signature
from ..progress import shown_steps
from ..stopping.rule import Rule
from .backend import Backend, backend_of
from .folder import bundle_folder, graph_file
from .inputs import Array, described
from .parts import Part, parts_of, through
from .precision import Precision
from .runtime import FORMAT, MANIFEST, VERSION, Runtime


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        folder: where.
        takes: the inputs it is served with, such as "float32 (n, 3, 32, 32)".
        graphs: how many.    bytes: of all files.
        samples: on which parity was checked.    difference: largest difference of a logit there.
        precision: the network's, where that is a half one; else empty.
        elsewhere: how many of the samples stop where torch in float32 stops them, and not torch in the half precision.
    """

    folder: Path
    takes: str
    graphs: int
    bytes: int
    samples: int
    difference: float
    precision: str
    elsewhere: int

    def __str__(self) -> str:
        but = f" but {self.elsewhere}, where {self.precision} rounds" if self.elsewhere else ""
        return (
            f"{self.graphs} graph{'s' * (self.graphs > 1)}, {self.bytes / 1e6:.2f} MB, in {self.folder}, for "
            f"{self.takes}; the same exits as torch on {self.samples} samples{but}, logits within {self.difference:.1e}"
        )


def export(
    network: StagedNetwork,
    rule: Rule,
    examples: Inputs | list[Inputs],
    folder: str | Path,
    *,
    backend: str = "onnx",
    progress: bool = False,
) -> Bundle:
    """Writes a bundle that `optdepth.export.runtime` serves without torch, and checks it against the engine.

    Args:
        network, rule: as for an engine, on the CPU. Any pytree of tensors may be the state.
        examples: inputs as the engine takes them, a tensor or a tuple or dict of tensors, of two samples or more; or a
            list of such batches. A list always is several batches: inputs that are a tuple must be given as one. The
            number of samples is free; so are the sizes that differ between the batches of a list, such as the length of
            a sequence. Sizes that are equal in every batch while they change must be equal when served. What the
            samples are like decides nothing, but the graphs are checked on them.
        backend: that writes the graphs, by name.
        folder: to make, or to write into where it is empty or holds a bundle.
        progress: a bar on stderr.

    Raises:
        InputError: no such backend or a package that it needs, examples that are no such inputs or that the network
            cannot run, a state that is not all tensors, a network that torch cannot export, a folder with something
            else, or graphs that do not agree with torch; no bundle is left.
    """
    batches, signature = _batches(examples)
    written_by = backend_of(backend)
    for package in written_by.packages:
        _need(package, backend)
    tensors = [*network.parameters(), *tree_leaves(batches)]
    if {tensor.device.type for tensor in tensors} != {"cpu"}:
        raise InputError("export on the CPU: give network.cpu(), and examples that lie there")
    engine, folder, precision = Engine(network, rule), Path(folder), Precision(network, batches)
    checks = [part for batch in batches for part in (batch, _rows(batch, slice(1, None)), _rows(batch, slice(1)))]
    expected = [_answered(engine, batch) for batch in checks]
    batches = [precision.edge(batch) for batch in batches]
    with bundle_folder(folder) as fresh:
        parts = parts_of(precision.network, rule, batches[0])
        graphs = _write(parts, batches, fresh, written_by, progress)
        arrays = [[tensor.numpy() for tensor in tree_leaves(batch)] for batch in batches]
        takes = described(signature.form, signature.names, arrays)
        write_json(fresh / MANIFEST, _manifest(network, rule, takes, graphs, written_by))
        runtime = Runtime(fresh)
        agreed = zip(shown_steps(checks, "checking graphs", shown=progress), expected, strict=True)
        check = _Check(parts, runtime, precision, rule)
        found = [check(batch, answer) for batch, answer in agreed]
    size = sum(path.stat().st_size for path in folder.iterdir())
    whole = found[:: len(checks) // len(batches)]  # of the whole batches: their parts are the same samples again
    return Bundle(
        folder,
        runtime.takes,
        len(graphs),
        size,
        samples=sum(len(hidden(batch)) for batch in batches),
        difference=max(difference for difference, _ in found),
        precision=precision.name,
        elsewhere=sum(elsewhere for _, elsewhere in whole),
    )


def _batches(examples: Inputs | list[Inputs]) -> tuple[list[Inputs], Signature]:
    """The batches, all of one form and with their tensors in one order, and that form."""
    batches = examples if isinstance(examples, list) else [examples]
    if not batches:
        raise InputError("give a batch of examples to export with; got an empty list")
    signature = Signature.of(batches[0])
    alike = []
    for batch in batches:
        other = Signature.of(batch)
        if (other.form, set(other.names)) != (signature.form, set(signature.names)):
            raise InputError(
                f"the batches are a {signature.form} of {', '.join(signature.names)} and a {other.form} of "
                f"{', '.join(other.names)}; a list holds batches of one form, a tuple the tensors of one batch"
            )
        alike.append(signature.formed(signature.flat(batch)))
    for name, *tensors in zip(signature.names, *map(tree_leaves, alike), strict=True):
        kinds = sorted({f"{tensor.dtype} of {tensor.dim()} dimensions" for tensor in tensors})
        if len(kinds) > 1:
            raise InputError(f"{name} is {' and '.join(kinds)}: give batches of one type and as many dimensions")
    if min(len(hidden(batch)) for batch in alike) < 2:
        raise InputError("give at least two samples to export with: a batch of one hides which dimension is the batch")
    return alike, signature


def _answered(engine: Engine, batch: Inputs) -> Answer:
    try:
        return engine(batch)
    except InputError:
        raise
    except Exception as error:  # whatever the modules raise
        if interrupts(error):
            raise
        raise InputError(f"the network cannot run the examples ({_line(error)})") from error


def _write(
    parts: Sequence[Part], batches: Sequence[Inputs], folder: Path, backend: Backend, progress: bool
) -> list[dict[str, Any]]:
    """One file a part; what the manifest says of it."""
    passed = [through(parts, batch) for batch in batches]
    about = []
    for i, part in enumerate(shown_steps(parts, "writing graphs", shown=progress)):
        first = passed[0][i]
        free = [_free([each[i].given[j].shape for each in passed]) for j in range(len(first.given))]
        outputs = len(first.carried) + (1 if part.last else 2)
        try:
            content = backend.write(part, tuple(leaf.clone() for leaf in first.given), free, outputs)
        except InputError as error:
            raise InputError(f"torch cannot export the network up to exit {part.exit} ({error})") from error
        digest = hashlib.sha256(content).hexdigest()
        name = graph_file(part.exit, digest, backend.suffix)
        write_atomically(folder / name, content)
        about.append(
            {
                "file": name,
                "sha256": digest,
                "exit": part.exit,
                "takes": len(first.given),
                "carried": len(first.carried),
                "stops": not part.last,
            }
        )
    return about


def _free(shapes: Sequence[torch.Size]) -> dict[int, Any]:
    """The dimensions of a tensor to leave free: the batch, and those whose size is not the same in all shapes."""
    sizes = enumerate(zip(*shapes, strict=True))
    return {d: torch.export.Dim.DYNAMIC for d, found in sizes if d == 0 or len(set(found)) > 1}


def _manifest(
    network: StagedNetwork, rule: Rule, inputs: dict[str, Any], graphs: list[dict[str, Any]], backend: Backend
) -> dict[str, Any]:
    origin = rule.origin
    about = {"kind": type(rule).__name__, "features": rule.features, "looks": rule.looks, "recall": origin.recall}
    return {
        "format": FORMAT,
        "version": VERSION,
        "backend": backend.name,
        "network": network.fingerprint(),
        "exits": [exit.name for exit in network.exits],
        "rule": about,
        "price": origin.price,
        "unit": origin.costs.unit,
        "paid": origin.costs.paid(rule.looks).tolist(),
        "inputs": inputs,
        "graphs": graphs,
        "made with": {name: version(name) for name in ("optdepth", "torch", *backend.packages)},
    }


class _Check:
    """Holds a bundle against torch: every graph against its part, and the bundle against the engine."""

    def __init__(self, parts: Sequence[Part], runtime: Runtime, precision: Precision, rule: Rule) -> None:
        self.parts, self.runtime, self.precision, self.rule = parts, runtime, precision, rule

    def __call__(self, batch: Inputs, answer: Answer) -> tuple[float, int]:
        """The largest difference of a logit, and how many samples stop where torch in float32 stops them alone.

        Raises:
            InputError: they do not agree.
        """
        given, largest = self.precision.edge(batch), 0.0
        for graph, passed in zip(self.runtime.graphs, through(self.parts, given), strict=True):
            answers = graph([leaf.numpy() for leaf in passed.given])[1]
            largest = max(largest, self._apart(f"the graph of exit {graph.exit}", answers, passed.answers))
        found, exits = self.runtime(tree_map(lambda tensor: tensor.numpy(), given)), answer.exit.numpy()
        same = found.exit == exits
        wide = self.precision.stopped(self.rule, batch)
        if len(strays := np.flatnonzero(~same if wide is None else ~same & (found.exit != wide))):
            i = int(strays[0])
            raise InputError(
                f"the bundle stops sample {i} at exit {found.exit[i]}, torch at exit {exits[i]}; not exported. If the "
                "rule was tuned on that sample, rounding decides there: give samples that it was not solved on"
            )
        rows = torch.from_numpy(same)
        return max(largest, self._apart("the bundle", found.logits[same], answer.logits[rows])), int((~same).sum())

    def _apart(self, what: str, mine: Array, its: Tensor) -> float:
        if (difference := self.precision.alike(mine, its)) is None:
            raise InputError(f"{what} does not agree with torch; not exported")
        return difference


def _rows(batch: Inputs, rows: slice) -> Inputs:
    return tree_map(lambda tensor: tensor[rows], batch)


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _need(package: str, backend: str) -> None:
    try:
        __import__(package)
    except ImportError:
        raise InputError(f"exporting by backend={backend!r} needs {package}; pip install {package}") from None
