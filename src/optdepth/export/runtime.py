"""Serving a bundle with onnxruntime and numpy alone: batched, compacting, and really skipping.

    from optdepth.export.runtime import Runtime

    answer = Runtime("bundle")(inputs)

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import read_json

FORMAT, VERSION = "optdepth.bundle", 1
MANIFEST = "manifest.json"
_AGAIN = "export it again"
Array = np.ndarray[Any, Any]


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
        threads: of onnxruntime; its own choice when not given.

    Raises:
        InputError: onnxruntime is missing; a bundle that is damaged, of another format or of a newer version.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST, format=FORMAT, version=VERSION, make_it=_AGAIN)
        try:
            self.manifest, self.unit = manifest, str(manifest["unit"])
            self._paid = np.asarray(manifest["paid"], dtype=np.float64)
            self._dtype = np.dtype(manifest["input"]["dtype"])
            self._shape: list[int | None] = manifest["input"]["shape"]
            self.graphs = [_Graph(folder, about, threads) for about in manifest["graphs"]]
            damaged = not self.graphs or self.graphs[-1].exit != len(self._paid) - 1
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder / MANIFEST} is damaged ({error!r}); {_AGAIN}") from None
        if damaged:
            raise InputError(f"{folder / MANIFEST} is damaged (its graphs do not reach the last exit); {_AGAIN}")

    def __call__(self, inputs: Array) -> RuntimeAnswer:
        """Answers a batch; the answers do not depend on who else is in it.

        Args:
            inputs: (n, ...), n >= 1, of the type and shape in the manifest, finite.
        """
        self._check(inputs)
        exit = np.full(len(inputs), len(self._paid) - 1)
        place = np.arange(len(inputs))
        answers: Array | None = None
        carried = [inputs]
        for graph in self.graphs:
            carried, logits, stops = graph(carried)
            if answers is None:
                if stops.all():
                    exit[:] = graph.exit
                    return self._answered(logits, exit)
                answers = np.empty((len(inputs), logits.shape[1]), dtype=logits.dtype)
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

    def _check(self, inputs: Array) -> None:
        fits = inputs.ndim == len(self._shape) and all(
            want is None or want == got for want, got in zip(self._shape, inputs.shape, strict=True)
        )
        if not fits or inputs.dtype != self._dtype or len(inputs) == 0:
            want = ", ".join("any" if size is None else str(size) for size in self._shape)
            raise InputError(
                f"inputs of type {inputs.dtype} and shape {inputs.shape}: the bundle takes {self._dtype}, "
                f"({want}), and at least one sample"
            )
        if self._dtype.kind == "f" and not np.isfinite(inputs.sum()):
            bad = np.flatnonzero(~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1))
            if len(bad):
                raise InputError(f"sample {bad[0]} of the batch holds NaN or infinity; clean or drop it")


class _Graph:
    """From one exit looked at to the next."""

    def __init__(self, folder: Path, about: dict[str, Any], threads: int | None) -> None:
        self.exit, self._inputs, self._states = int(about["exit"]), list(about["inputs"]), int(about["carried"])
        self._stops = bool(about["stops"])
        name = str(about["file"])
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise InputError(f"{folder} lacks its graph {name!r}; {_AGAIN}")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise InputError(f"{path} is damaged (its checksum is not the manifest's); {_AGAIN}")
        self._session = _session(content, path, threads)

    def __call__(self, carried: list[Array]) -> tuple[list[Array], Array, Array]:
        """What is carried on, the logits, and who stops."""
        given = zip(self._inputs, carried, strict=True)
        # An exporter drops an input that the graph does not read, so the names say which are fed.
        found = self._session.run(None, {name: value for name, value in given if name is not None})
        logits = found[self._states]
        stops = found[self._states + 1] if self._stops else np.ones(len(logits), dtype=bool)
        return found[: self._states], logits, stops


def _session(content: bytes, path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("serving a bundle needs onnxruntime; pip install 'optdepth[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Graphs take turns, each with threads of its own: those of one that spin would hold up the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise InputError(
            f"{path} is no graph that this onnxruntime can run ({' '.join(str(error).split()):.150})"
        ) from None
