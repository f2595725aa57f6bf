"""Serving a bundle without torch, with onnxruntime and numpy alone: batched, compacting, and really skipping.

    from optdepth.export.runtime import Runtime

    answer = Runtime("bundle")(inputs)

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import read_json, reading, rebuilding
from ..interrupts import interrupts
from .backend import Graph, backend_of
from .inputs import Array, Inputs, Takes, TakesAbout

FORMAT, VERSION = "optdepth.bundle", 4
MANIFEST = "manifest.json"
_AGAIN = "export it again"


@dataclass(frozen=True, eq=False)
class RuntimeAnswer:
    """What a runtime answers; as `optdepth.Answer`, in numpy.

    Attributes:
        logits: (n, C) of the exit each sample stopped at.
        exit: (n,) that exit, 0-based.
        cost: (n,) what the sample paid, in `unit`.
    """

    logits: Array
    exit: Array
    cost: Array
    unit: str


class Runtime:
    """A bundle, loaded: `runtime(inputs) -> RuntimeAnswer`.

    One graph runs from one exit looked at to the next, with the head and the rule in it. Samples that stop are
    answered; the others are gathered and go on; when none is left no further graph is run.

    Args:
        folder: what `optdepth export` wrote.
        threads: of what runs the graphs; its own choice when not given.
        providers: to run them on, the first that can, such as "CUDAExecutionProvider"; the processor when not given.

    Attributes:
        takes: the inputs, such as "a dict of input_ids int64 (n, m1), attention_mask int64 (n, m1)".

    Raises:
        InputError: onnxruntime is missing, or has no such provider; a bundle that is damaged, of another format or
            another version.
    """

    def __init__(
        self, folder: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None
    ) -> None:
        path = Path(folder) / MANIFEST
        manifest = read_json(path, format=FORMAT, version=VERSION, make_it=_AGAIN)
        self.manifest, self.unit = manifest.held, manifest.take("unit", str)
        self._paid = np.asarray(manifest.take("paid", list[float], least=0))
        takes, graphs = manifest.take("inputs", TakesAbout), manifest.take("graphs", list[GraphAbout], least=0)
        with rebuilding(path, _AGAIN):
            self._takes = Takes(takes)
        load = _loader(manifest.take("backend", str), threads, providers)
        self.graphs = [_Part(Path(folder), about, load) for about in graphs]
        with rebuilding(path, _AGAIN):
            self._check_graphs()
        self.takes = str(self._takes)

    def __call__(self, inputs: Inputs) -> RuntimeAnswer:
        """Answers a batch; the answers do not depend on who else is in it.

        Args:
            inputs: an array (n, ...), or a tuple or dict of such, n >= 1, finite; form, names, types and shapes as
                `takes` says. Sizes of one name are equal.

        Raises:
            InputError: other inputs, or such as the network cannot run, a token number out of range for one.
        """
        carried = self._takes.flat(inputs)
        place = np.arange(len(carried[0]))
        exit = np.full(len(place), self.graphs[-1].exit)
        answers: Array | None = None
        for graph in self.graphs:
            carried, logits, stops = graph(carried)
            if answers is None:
                if stops.all():
                    exit[:] = graph.exit
                    return self._answered(logits, exit)
                answers = np.empty((len(exit), *logits.shape[1:]), dtype=logits.dtype)
            if not stops.any():
                continue
            left = place[stops]
            answers[left], exit[left] = logits[stops], graph.exit
            if len(left) == len(place):
                break
            staying = np.flatnonzero(~stops)
            place, carried = place[staying], [part[staying] for part in carried]
        assert answers is not None
        return self._answered(answers, exit)

    def _answered(self, logits: Array, exit: Array) -> RuntimeAnswer:
        return RuntimeAnswer(logits, exit, self._paid[exit], self.unit)

    def _check_graphs(self) -> None:
        """Raises ValueError where the manifest's graphs cannot follow each other."""
        if not self.graphs or any(graph.last for graph in self.graphs[:-1]) or not self.graphs[-1].last:
            raise ValueError("its graphs do not end where all samples stop")
        exits = [graph.exit for graph in self.graphs]
        if any(a >= b for a, b in pairwise(exits)) or not 0 <= exits[0] <= exits[-1] < len(self._paid):
            raise ValueError(f"its graphs are of the exits {exits}")
        takes = [len(self._takes.leaves), *(graph.carries for graph in self.graphs[:-1])]
        if takes != [graph.takes for graph in self.graphs]:
            raise ValueError("its graphs do not take what is handed on")


def _loader(name: str, threads: int | None, providers: Sequence[str] | None) -> Callable[[bytes, str], Graph]:
    """Loads content that comes from somewhere, by the backend of that name."""
    backend = backend_of(name)
    if providers is not None and (unknown := [each for each in providers if each not in backend.providers()]):
        there = ", ".join(backend.providers())
        raise InputError(f"no provider {unknown[0]!r} here for graphs of {name}: give some of {there}")
    return lambda content, where: backend.load(content, where=where, threads=threads, providers=providers)


@dataclass(frozen=True)
class GraphAbout:
    """What a manifest says of a graph: its file and that file's checksum, the exit it ends at, how many arrays it takes
    and hands on, and whether some stop there and others go on.
    """

    file: str
    sha256: str
    exit: int
    takes: int
    carried: int
    stops: bool


class _Part:
    """From one exit looked at to the next."""

    def __init__(self, folder: Path, about: GraphAbout, load: Callable[[bytes, str], Graph]) -> None:
        self.exit, self.carries, self.last, self.takes = about.exit, about.carried, not about.stops, about.takes
        path = folder / about.file
        if Path(about.file).name != about.file or not path.is_file():
            raise InputError(f"{folder} lacks its graph {about.file!r:.100}; {_AGAIN}")
        with reading(path, _AGAIN):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != about.sha256:
            raise InputError(f"{path} is damaged (its checksum is not the manifest's); {_AGAIN}")
        self._run = load(content, str(path))

    def __call__(self, carried: list[Array]) -> tuple[list[Array], Array, Array]:
        """What is carried on, the logits, and who stops."""
        try:
            found = self._run(carried)
        except Exception as error:  # the errors of libraries that serve share no base class
            if interrupts(error):
                raise
            raise InputError(f"the graph of exit {self.exit} cannot run on these inputs ({_line(error)})") from None
        if len(found) != self.carries + (1 if self.last else 2):
            raise InputError(f"the graph of exit {self.exit} returns {len(found)} arrays, not what the manifest says")
        logits = found[self.carries]
        stops = np.ones(len(logits), dtype=bool) if self.last else found[self.carries + 1]
        return found[: self.carries], logits, stops


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.150}"
