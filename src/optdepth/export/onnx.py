"""ONNX: graphs written by torch's exporter and served by onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

from ..errors import InputError
from ..interrupts import interrupts
from .backend import Graph
from .inputs import Array


@final
class OnnxBackend:
    """The default; it needs neither torch nor onnx to serve."""

    name: str = "onnx"
    suffix: str = ".onnx"
    packages: tuple[str, ...] = ("onnx", "onnxscript")

    def write(self, part: Any, leaves: tuple[Any, ...], free: Sequence[dict[int, Any]], outputs: int) -> bytes:
        """By `torch.onnx.export`; an input that the part does not read is not in the graph."""
        import torch

        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    part,
                    leaves,
                    dynamo=True,
                    dynamic_shapes=(tuple(free),),
                    input_names=[f"in{j}" for j in range(len(leaves))],
                    output_names=[f"out{j}" for j in range(outputs)],
                    verbose=False,
                )
                assert program is not None
                content: bytes = program.model_proto.SerializeToString()
        except InputError:
            raise
        except Exception as error:  # the exporter's errors share no base class
            if interrupts(error):
                raise
            # The exporter's own error says how to ask for help; what it came from says what is wrong.
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise InputError(_line(cause)) from error
        return content

    def load(self, content: bytes, *, where: str, threads: int | None, providers: Sequence[str] | None) -> Graph:
        """As an onnxruntime session of its own."""
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as well
        # Graphs take turns, each with threads of its own: those of one that spin would hold up the next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        asked = ["CPUExecutionProvider"] if providers is None else list(providers)
        try:
            session = runtime.InferenceSession(content, options, providers=asked)
        except Exception as error:  # onnxruntime's own errors share no base class
            if interrupts(error):
                raise
            raise InputError(f"{where} is no graph that this onnxruntime can run ({_line(error)})") from None
        read = {value.name for value in session.get_inputs()}

        def run(given: Sequence[Array]) -> list[Array]:
            named = ((f"in{j}", array) for j, array in enumerate(given))
            found: list[Array] = session.run(None, {name: array for name, array in named if name in read})
            return found

        return run

    def providers(self) -> tuple[str, ...]:
        """Those of the onnxruntime that is installed."""
        return tuple(_onnxruntime().get_available_providers())


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("serving a bundle needs onnxruntime; pip install 'optdepth[onnx]'") from None
    return onnxruntime


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"
