"""The decoder layers of a language model of transformers, called for all sequences, for some, or in part.

The model's own forward runs: its masks, positions and cache are what they are without exits. While `standing_in`
lasts, the forward of each layer has a stand-in that is handed the model's call of it, to make as it sees fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..batch import Inputs
from ..errors import InputError
from ..networks import StagedNetwork
from ..networks.graph import replaced_forward
from ..networks.heads import RealTokens
from ..networks.signature import Stem


class _Caught(Exception):
    """A layer has given its keys and values to the cache; the rest of it is not wanted."""


class _Slot:
    """Stands for the cache in a call of one layer for some rows: the newest column.

    Args:
        cache: of transformers, of n sequences; `length` columns were there before this token.
        rows: (m,) out of the n.
    """

    def __init__(self, cache: Any, n: int, length: int, rows: Int[Tensor, " m"]) -> None:
        self.cache, self.n, self.length, self.rows = cache, n, length, rows

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer calls: stores the rows' keys and values, (m, heads, 1, d), and returns all of those rows."""
        held = _grown(self.cache, self.n, self.length + 1, keys, values, layer)
        held.keys[self.rows, :, self.length :], held.values[self.rows, :, self.length :] = keys, values
        return held.keys[self.rows], held.values[self.rows]

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns before this token."""
        return self.length


class _Catch:
    """Stands for the cache in a call of one layer that ends once it has given keys and values.

    Args:
        cache: of transformers, of n sequences; it is to have `length` columns.
        rows, columns: (m,) where in the cache those belong, of which there is one a row of the call.
    """

    def __init__(self, cache: Any, n: int, length: int, rows: Int[Tensor, " m"], columns: Int[Tensor, " m"]) -> None:
        self.cache, self.n, self.length, self.rows, self.columns = cache, n, length, rows, columns

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a layer calls: stores keys and values, (m, heads, 1, d)."""
        held = _grown(self.cache, self.n, self.length, keys, values, layer)
        held.keys[self.rows, :, self.columns], held.values[self.rows, :, self.columns] = keys[:, :, 0], values[:, :, 0]
        raise _Caught

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns before the newest of the tokens."""
        return self.length - 1


def _grown(cache: Any, n: int, length: int, keys: Tensor, values: Tensor, layer: int) -> Any:
    """What the cache holds of a layer, with so many columns at least."""
    if (missing := length - cache.get_seq_length(layer)) > 0:
        room = (one.new_zeros(n, one.shape[1], missing, one.shape[3]) for one in (keys, values))
        cache.update(*room, layer)
    return cache.layers[layer]


@dataclass(frozen=True)
class Form:
    """How a model calls one of its layers.

    Attributes:
        rows: of the leaves of the arguments, whether each may have a row a sequence.
        further: how much a layer returns behind its states, nothing of which a decoder needs; None where it returns the
            states alone.
    """

    rows: tuple[bool, ...]
    further: int | None


@dataclass(frozen=True)
class Call:
    """The model's call of one of its layers, to be made for all sequences, or for some."""

    forward: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    cache: Any
    length: int
    form: Form

    def whole(self) -> Tensor:
        """As the model makes it."""
        return _states(self.forward(*self.arguments, **self.keywords))

    def rows(self, rows: Int[Tensor, " m"]) -> Tensor:
        """For some sequences, as if they were the batch."""
        leaves, spec = self.leaves()
        slot = _Slot(self.cache, len(self.arguments[0]), self.length, rows)
        narrowed = [
            slot if leaf is self.cache else leaf[rows] if by_row else leaf
            for leaf, by_row in zip(leaves, self.by_row(), strict=True)
        ]
        arguments, keywords = tree_unflatten(narrowed, spec)
        return _states(self.forward(*arguments, **keywords))

    def leaves(self) -> tuple[list[Any], Any]:
        """What it is called with, flat; the cache is one leaf."""
        return tree_flatten((self.arguments, self.keywords), is_leaf=lambda leaf: leaf is self.cache)

    def by_row(self) -> list[bool]:
        """Whether each leaf has a row a sequence. One that may have need not: positions, say, without padding."""
        n = self.arguments[0].shape[:1]
        found = zip(self.leaves()[0], self.form.rows, strict=True)
        return [may and isinstance(leaf, Tensor) and leaf.shape[:1] == n for leaf, may in found]


def _states(returned: Any) -> Tensor:
    """What a layer returns, or the first of it."""
    states: Tensor = returned if isinstance(returned, Tensor) else returned[0]
    return states


@dataclass(frozen=True)
class Owed:
    """Keys and values that a layer has still to make, for some rows of one call of it that was not made for them."""

    call: Call
    rows: Int[Tensor, " m"]


def hand_on(owed: Sequence[Owed]) -> None:
    """Makes and stores the keys and values that one layer owes, of however many tokens, oldest first, in one call.

    Raises:
        InputError: a layer that gives none to the cache.
    """
    calls = [one.call for one in owed]
    cache, forward, n = calls[0].cache, calls[0].forward, len(calls[0].arguments[0])
    rows = torch.cat([one.rows for one in owed])
    columns = torch.cat([torch.full_like(one.rows, one.call.length) for one in owed])
    catch = _Catch(cache, n, calls[-1].length + 1, rows, columns)

    def joined(by_row: bool, *leaves: Any) -> Any:
        if leaves[0] is cache:
            return catch
        if not isinstance(leaves[0], Tensor) or not (by_row or leaves[0].shape[:1] == (1,)):
            return leaves[0]
        each = [
            leaf[one.rows] if by_row else leaf.expand(len(one.rows), *leaf.shape[1:])
            for leaf, one in zip(leaves, owed, strict=True)
        ]
        # What has another shape at every token is the mask, which no layer reads before it has keys and values.
        return torch.cat(each) if len({part.shape[1:] for part in each}) == 1 else None

    spec = calls[0].leaves()[1]
    flat = zip(calls[0].by_row(), *(call.leaves()[0] for call in calls), strict=True)
    arguments, keywords = tree_unflatten([joined(*leaves) for leaves in flat], spec)
    try:
        forward(*arguments, **keywords)
    except _Caught:
        return
    raise InputError(f"{forward} gave no keys and values to the cache, so its states cannot be handed on")


Way = Callable[[int, Tensor, Call], Tensor]
"""What stands for layer i: its number, the states (n, t, d) that enter, and the call -> the states that leave."""


class DecoderLayers:
    """The decoder layers of a model, and the exits of a network behind them."""

    def __init__(self, model: nn.Module, network: StagedNetwork) -> None:
        places = [exit.name.rpartition(".") for exit in network.exits]
        container = places[-1][0]
        layers = dict(model.named_modules()).get(container)
        owned = set(network.modules())
        if not isinstance(layers, nn.ModuleList) or not set(layers) <= owned or not hasattr(model, "base_model"):
            raise InputError(
                f"the exits {', '.join(exit.name for exit in network.exits)} are not behind the decoder layers of "
                f"{type(model).__name__}: give a causal language model of transformers and stage(model, example=...)"
            )
        if not isinstance(network.stem, Stem) or set(network.stem.signature.names) - {"input_ids", "attention_mask"}:
            raise InputError("stage the model on a dict of input_ids, with or without an attention_mask")
        self.names, self.network = network.stem.signature.names, network
        self.base: Callable[..., Any] = model.base_model  # type: ignore[assignment]
        self.modules = list(layers)
        exits = {name: k for k, (_, _, name) in enumerate(places)}
        self.exit_behind = [exits.get(str(i)) for i in range(len(layers))]
        self.bare = self._bare()
        self.forms = self._forms()

    def inputs(self, tokens: Int[Tensor, "n t"]) -> Inputs:
        """What the network takes: these tokens, none of them padding."""
        return {name: tokens if name == "input_ids" else torch.ones_like(tokens) for name in self.names}

    @torch.inference_mode()
    def _forms(self) -> list[Form]:
        """How each layer is called. Two padded batches tell what has a row a sequence."""
        met: list[list[tuple[list[Any], Any]]] = [[] for _ in self.modules]

        def watched(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def watch(*arguments: Any, **keywords: Any) -> Any:
                returned = forward(*arguments, **keywords)
                leaves, _ = tree_flatten((arguments, keywords), is_leaf=lambda leaf: leaf is self._cache)
                met[i].append((leaves, returned))
                return returned

            return watch

        device = next(self.network.parameters()).device
        with ExitStack() as undo:
            for i, module in enumerate(self.modules):
                undo.enter_context(replaced_forward(module, watched(i, module.forward)))
            for n in (2, 3):
                tokens = torch.zeros(n, 2, dtype=torch.long, device=device)
                mask = torch.ones_like(tokens)
                mask[0, 0] = 0  # without padding some models make no mask
                self.run(tokens, mask, self.cache())
        forms = []
        for (two, returned), (three, _) in met:
            sizes = [
                [leaf.shape[:1] for leaf in pair if isinstance(leaf, Tensor)] for pair in zip(two, three, strict=True)
            ]
            rows = tuple(found == [(2,), (3,)] for found in sizes)
            forms.append(Form(rows, None if isinstance(returned, Tensor) else len(returned) - 1))
        return forms

    @torch.inference_mode()
    def _bare(self) -> list[bool]:
        """Whether the state at each exit is the hidden states alone."""
        device = next(self.network.parameters()).device
        state = self.network.start(self.inputs(torch.zeros(1, 2, dtype=torch.long, device=device)))
        bare = []
        for stage in self.network.stages:
            state = stage(state)
            bare.append(isinstance(state, Tensor))
        return bare

    def head(self, k: int, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t V"]:
        """The logits of exit k. A head reads the hidden states alone, whatever else the state holds: no token that is
        written is padding.
        """
        head = self.network.heads[k]
        logits: Tensor = (head.head if isinstance(head, RealTokens) else head)(x if self.bare[k] else (x,))
        return logits

    @staticmethod
    def cache() -> Any:
        """An empty one, that grows."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache()

    def run(self, tokens: Int[Tensor, "n t"], mask: Int[Tensor, "n all"] | None, cache: Any) -> None:
        """The model without its head on the tokens behind those in the cache."""
        self._cache, self._length = cache, cache.get_seq_length()
        masked = {}
        if mask is not None:
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            masked = {"attention_mask": mask, "position_ids": places}
        self.base(input_ids=tokens, past_key_values=cache, use_cache=True, **masked)

    @contextmanager
    def standing_in(self, way: Way) -> Iterator[None]:
        """While it lasts, calling a layer goes through `way`."""
        with ExitStack() as undo:
            for i, module in enumerate(self.modules):
                undo.enter_context(replaced_forward(module, self._stand_in(i, module.forward, way)))
            yield

    def _stand_in(self, i: int, forward: Callable[..., Any], way: Way) -> Callable[..., Any]:
        form = self.forms[i]

        def stand_in(x: Tensor, *arguments: Any, **keywords: Any) -> Any:
            states = way(i, x, Call(forward, (x, *arguments), keywords, self._cache, self._length, form))
            return states if form.further is None else (states, *[None] * form.further)

        return stand_in
