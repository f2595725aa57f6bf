"""Weights that serve several stages: one module owns them, the others call it."""

from typing import Any, final

from torch import nn


@final
class SharedModule(nn.Module):
    """Calls a module that another part of the network owns: its weights are listed, moved and saved once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._owned_elsewhere = (module,)  # a tuple: torch registers modules that are attributes themselves

    @property
    def owned_elsewhere(self) -> nn.Module:
        """The module that is called."""
        return self._owned_elsewhere[0]

    def forward(self, *inputs: Any) -> Any:
        return self._owned_elsewhere[0](*inputs)
