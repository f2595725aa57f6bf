"""Some of the layers of a causal language model of transformers, run by the model's own forward.

A copy of the modules, without weights of its own, in which the layers outside the span hand on what they are given: so
masks, positions and whatever else a model does around its layers are its own.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from .modes import served


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a model and where they are in its base.

    Raises:
        InputError: a model that is no causal language model of transformers, or has no one list of its layers.
    """
    base, config = getattr(model, "base_model", None), getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(base, nn.Module) or count is None or head_of(model) is None:
        raise InputError(
            f"{type(model).__name__} is no causal language model of transformers: give one, AutoModelForCausalLM"
        )
    lists = [(name, each) for name, each in base.named_modules() if isinstance(each, nn.ModuleList)]
    found = [(name, each) for name, each in lists if len(each) == count]
    if len(found) != 1 or count < 2:
        raise InputError(
            f"{type(model).__name__} has {len(found)} lists of {count} layers: give a model whose decoder layers are "
            "one list, of two or more"
        )
    return found[0]


def head_of(model: nn.Module) -> nn.Module | None:
    """What makes logits of the last states: the unembedding, shared by all who read it here."""
    get = getattr(model, "get_output_embeddings", None)
    head = None if get is None else get()
    return head if isinstance(getattr(head, "weight", None), Tensor) else None


class Span:
    """Layers `first` to `last` of a model, the last not among them.

    Args:
        model: a causal language model of transformers.
        first: 0, or the layer that enters with the states that are given.
        last: the layer in front of which they leave, or the number of layers.

    Raises:
        InputError: as `layers_of`.
    """

    def __init__(self, model: nn.Module, first: int, last: int) -> None:
        name, _ = layers_of(model)
        self.model = served(model)
        base: Any = self.model.base_model
        self.base = base
        container: nn.ModuleList = base.get_submodule(name)
        kept = list(container)
        self._put, self._keep = _Put(), _Keep()
        single = _returns_states(self.model, container)
        slots: list[nn.Module] = [
            _Through(layer, single, self._put if i == 0 else None) for i, layer in enumerate(kept)
        ]
        slots[first:last] = kept[first:last]
        if last < len(kept):
            slots[last:] = [_Through(kept[last], single, self._keep)]
        container._modules = {str(i): slot for i, slot in enumerate(slots)}
        self._head = _tapped(self.model)

    @torch.inference_mode()
    def states(
        self, tokens: Int[Tensor, "n t"], *, states: Float[Tensor, "n t d"] | None = None, **call: Any
    ) -> tuple[Float[Tensor, "n t d"] | None, Float[Tensor, "n t d"]]:
        """The states that leave, where there are layers behind them, and what the final norm makes of them.

        Args:
            tokens: what the states are of; looked up only where the span begins at the first layer.
            states: that enter, where it does not.
            call: `past_key_values`, `attention_mask`, `position_ids`, as the model takes them.
        """
        self._put.states = states
        normed = self.base(input_ids=tokens, use_cache="past_key_values" in call, **call).last_hidden_state
        return self._keep.states, normed

    @torch.inference_mode()
    def answers(
        self, tokens: Int[Tensor, "n t"], *, states: Float[Tensor, "n t d"] | None = None, keep: int = 0, **call: Any
    ) -> tuple[Float[Tensor, "n k V"], Float[Tensor, "n k d"]]:
        """Logits, and the final states that they are made of, of the last `keep` tokens; of all where it is 0."""
        self._put.states = states
        logits = self.model(input_ids=tokens, use_cache="past_key_values" in call, logits_to_keep=keep, **call).logits
        assert self._head.states is not None
        return logits, self._head.states


class _Slot(nn.Module):
    """What a span leaves in, or takes out of, the model's forward."""

    states: Tensor | None = None


class _Put(_Slot):
    def take(self, x: Tensor) -> Tensor:
        return x if self.states is None else self.states


class _Keep(_Slot):
    def take(self, x: Tensor) -> Tensor:
        self.states = x
        return x


class _Through(nn.Module):
    """Stands where a layer is that does not run; whatever a model asks of the layer is the layer's."""

    def __init__(self, layer: nn.Module, single: bool, slot: _Put | _Keep | None) -> None:
        super().__init__()
        self.training = False
        self.__dict__.update(layer_=layer, single_=single, slot_=slot)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer_"], name)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        x = x if self.slot_ is None else self.slot_.take(x)
        return x if self.single_ else (x, None)


class _Head(nn.Module):
    """The unembedding; remembers what it was given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.__dict__.update(head_=head, states=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["head_"], name)

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["states"] = x
        logits: Tensor = self.head_(x)
        return logits


def _tapped(model: nn.Module) -> _Head:
    """Puts a tap in front of a copy's unembedding."""
    head = head_of(model)
    name = next(name for name, each in model.named_modules() if each is head)
    parent = model.get_submodule(name.rpartition(".")[0])
    parent._modules[name.rpartition(".")[2]] = tap = _Head(head)  # type: ignore[arg-type]
    return tap


@torch.inference_mode()
def _returns_states(model: nn.Module, container: nn.ModuleList) -> bool:
    """Whether the layers of a copy return their states alone."""
    found: list[bool] = []

    class Watch(_Through):
        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            returned = self.layer_(*arguments, **keywords)
            found.append(isinstance(returned, Tensor))
            return returned

    kept = container._modules
    container._modules = {**kept, "0": Watch(container[0], True, None)}
    base: Any = model.base_model
    base(input_ids=torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device))
    container._modules = kept
    return found[0]
