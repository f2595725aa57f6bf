"""What writes the parts of a network as files and serves them again: the contract, and the backends there are.

Nothing here imports torch, as serving does without it; only what writes may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ..errors import InputError
from .inputs import Array

Graph = Callable[[Sequence[Array]], list[Array]]
"""A part that was loaded: the arrays it takes, in order -> those it returns, in order."""


@runtime_checkable
class Backend(Protocol):
    """A way to write the parts of a network, and to run what was written.

    Attributes:
        name: in manifests, and by which it is asked for.
        suffix: of its files, such as ".onnx".
        packages: what writing needs, and whose versions a manifest notes.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]

    def write(self, part: Any, leaves: tuple[Any, ...], free: Sequence[dict[int, Any]], outputs: int) -> bytes:
        """The content of a part's file.

        Args:
            part: a torch module, which takes so many tensors and returns a tuple of `outputs` tensors.
            leaves: an example of them. What serves imports this file and no torch, so the types do not say it.
            free: of each, the dimensions whose size is free, as `torch.export` takes them.

        Raises:
            InputError: it cannot be written, with the reason.
        """
        ...

    def load(self, content: bytes, *, where: str, threads: int | None, providers: Sequence[str] | None) -> Graph:
        """What runs a file's content; the graph raises whatever its library raises.

        Args:
            where: the content comes from, for the message.
            threads: to run on; its own choice when not given.
            providers: to run on, the first that can; the processor when not given.

        Raises:
            InputError: the library that serves is missing, or content that it cannot run.
        """
        ...

    def providers(self) -> tuple[str, ...]:
        """What this machine can run graphs on, by the names that `load` takes."""
        ...


BACKENDS: dict[str, Backend] = {}
"""By name."""


def register(backend: Backend) -> None:
    """Makes a backend known by its name.

    Raises:
        InputError: the name is taken.
    """
    if backend.name in BACKENDS:
        raise InputError(f"there is an export backend named {backend.name!r}; give another name")
    BACKENDS[backend.name] = backend


def backend_of(name: str) -> Backend:
    """The backend of that name.

    Raises:
        InputError: there is none; those there are are listed.
    """
    if name not in BACKENDS:
        raise InputError(f"no export backend {name!r}: give one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
