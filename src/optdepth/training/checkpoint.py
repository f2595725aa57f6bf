"""Checkpoint: what a training needs to go on, as tensors and JSON with a checksum; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ..files import damaged
from ..tensor_files import read_tensors, write_tensors
from .settings import Epoch, Settings

_FORMAT, _VERSION = "optdepth.checkpoint", 3
_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training after some epochs.

    Attributes:
        settings: that it began with.
        epochs: those done.
        model: state dict of the objective, the network in it.
        optimizer: by number of the parameter, what the optimizer remembers of it; the settings say all else.
        scaler: state dict of the scaler of gradients in half precision; None in others.
    """

    settings: Settings
    epochs: tuple[Epoch, ...]
    model: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    scaler: Mapping[str, float] | None

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {f"{_MODEL}{name}": value for name, value in self.model.items()}
        for number, held in self.optimizer.items():
            tensors |= {f"{_OPTIMIZER}{number}.{name}": value for name, value in held.items()}
        about = {"format": _FORMAT, "version": _VERSION, "settings": asdict(self.settings)}
        about |= {"epochs": [asdict(epoch) for epoch in self.epochs], "scaler": self.scaler}
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: Path, make_it: str) -> Checkpoint:
        """Reads what `save` wrote.

        Args:
            make_it: what the user can do where the file is damaged.

        Raises:
            InputError: the file is anything else.
        """
        held, about = read_tensors(path, format=_FORMAT, version=_VERSION, make_it=make_it)
        model: dict[str, Tensor] = {}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in held.held.items():
            if name.startswith(_MODEL):
                model[name.removeprefix(_MODEL)] = value
                continue
            number, _, part = name.removeprefix(_OPTIMIZER).partition(".")
            if not (name.startswith(_OPTIMIZER) and number.isdecimal() and part):
                raise damaged(path, ValueError(f"nothing of a training is called {name!r:.40}"), make_it)
            state.setdefault(int(number), {})[part] = value
        settings, epochs = about.take("settings", Settings), about.take("epochs", tuple[Epoch, ...])
        return cls(settings, epochs, model, state, about.take("scaler", dict[str, int | float] | None))
