"""Batches: what a network takes and hands on, some of its samples, which those are, and whether they can be used."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from xxhash import xxh3_64_intdigest

from .errors import InputError

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
"""What a network takes: one tensor, or a tuple or mapping of tensors, the batch first in each. A list stands for a
tuple, of which a `DataLoader` makes one."""

State = Inputs | tuple["State", ...] | list["State"] | dict[str, "State"]
"""A pytree of tensors whose first dimension is the batch; for our residual networks, one tensor."""

Tree = TypeVar("Tree")
"""Any pytree of tensors, a `State` or what goes beside one: what goes in comes out."""


def plain(inputs: Tree) -> Tree:
    """A mapping that is no dict, such as the `BatchEncoding` of a tokenizer, as one; other inputs as they are."""
    found: Any = dict(inputs) if isinstance(inputs, Mapping) and not isinstance(inputs, dict) else inputs
    return found


def hidden(state: object) -> Tensor:
    """The main tensor of a state, or of a tree that begins with one: itself, or its first tensor leaf."""
    if isinstance(state, Tensor):
        return state
    leaf = next((leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)), None)
    if leaf is None:
        raise InputError(f"a state of type {type(state).__name__} holds no tensor: return one from the stage")
    return leaf


def select(state: Tree, index: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> Tree:
    """The state of some samples: row numbers, or a mask over the batch."""
    rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
    # The usual state is one tensor, and `tree_map` takes as long as gathering a few samples of it.
    if isinstance(state, Tensor):
        chosen: Any = _gather(state, rows)
        return chosen
    return tree_map(lambda tensor: _gather(tensor, rows), state)


def front(state: Tree, rows: int) -> Tree:
    """The state of the first samples."""
    return tree_map(lambda tensor: tensor[:rows], state)


def _gather(tensor: Tensor, rows: Int[Tensor, " m"]) -> Tensor:
    """`tensor[rows]` in the layout that the tensor has, each row copied as one piece: several times faster on a CPU."""
    if tensor.is_contiguous() or tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.index_select(0, rows)
    return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def check_finite(inputs: State, first: int = 0) -> None:
    """Refuses a batch with NaN or infinity, naming the sample; `first` is the number of the batch's first one."""
    for tensor in [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs):
        # One cheap pass in the usual case; `torch.isfinite` is four more operations.
        if not tensor.is_floating_point() or math.isfinite(tensor.sum().item()):
            continue
        bad = torch.nonzero(~torch.isfinite(tensor.flatten(1)).all(dim=1))
        if len(bad):
            raise InputError(f"sample {first + int(bad[0])} of the batch holds NaN or infinity; clean or drop it")


def check_batch(inputs: object) -> int:
    """How many samples there are; refuses what is no batch of tensors, before anything is run on it."""
    if isinstance(inputs, Tensor) and inputs.dim():
        return len(inputs)
    if not isinstance(inputs, Tensor | tuple | list | dict):
        raise InputError(f"inputs are a {type(inputs).__name__}: give {_instead(inputs)}")
    if isinstance(inputs, Tensor):
        raise InputError("inputs are a single number: give a tensor with the samples first")
    rows: dict[str, int] = {}
    for path, leaf in tree_flatten_with_path(inputs)[0]:
        name = f"inputs{keystr(path)}"
        if not isinstance(leaf, Tensor):
            raise InputError(f"{name} is a {type(leaf).__name__}: give {_instead(leaf)}")
        if leaf.dim() == 0:
            raise InputError(f"{name} is a single number: give a tensor with the samples first")
        rows[name] = len(leaf)
    if len(set(rows.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in rows.items()) or "no tensors"
        raise InputError(f"rows of the batch: {said}; give each tensor one row a sample")
    return len(hidden(inputs))


def _instead(given: object) -> str:
    """What to give in place of something that is no tensor."""
    if isinstance(given, np.ndarray):
        return "torch.from_numpy(...) of it"
    numbers = isinstance(given, int | float | list)
    return "torch.tensor(...) of it" if numbers else "a tensor, or a tuple or dict of tensors"


def check_answers(logits: Float[Tensor, "n ..."], first: int = 0, inputs: State | None = None) -> None:
    """Refuses answers with NaN or plus infinity, naming the sample; minus infinity rules a class out, and may stand.

    Args:
        first: the number of the batch's first sample.
        inputs: that were answered, to say how large the sample's numbers are.
    """
    bad = overflown(logits)
    if bad is None:
        return
    floats = [
        leaf[bad].abs().max().item() for leaf in tree_leaves(inputs) if leaf is not None and leaf.is_floating_point()
    ]
    large = f", whose inputs go up to {max(floats):.2g}," if floats else ""
    raise InputError(
        f"sample {first + bad} of the batch{large} is answered with NaN or infinity: scale inputs as those it was "
        f"trained on; if they are, the network's own numbers overflow {str(logits.dtype).removeprefix('torch.')}"
    )


def overflown(logits: Float[Tensor, "n ..."]) -> int | None:
    """The first sample answered with NaN or plus infinity."""
    # NaN is larger than all else to `amax`, so one cheap pass tells in the usual case.
    if not logits.is_floating_point() or logits.numel() == 0 or logits.amax().item() < math.inf:
        return None
    return int(torch.nonzero(~(logits.flatten(1) < math.inf).all(dim=1))[0])


def identities(inputs: Inputs) -> Int64[np.ndarray, " n"]:
    """What tells samples apart: 64 bits of each one's own content, (n,).

    XXH3 over name, dtype, shape and bytes of every leaf, leaves in the order of their names, numbers little-endian.
    So it is the same in any batch, at any place in it, in any memory format, on any device, in any process, on any
    machine. Among a million different samples two are taken for one with a chance of 3e-8.

    Padding is no content. Where the inputs are a dict with an `attention_mask` (n, t), the columns of a sample are
    those from the first to the last that its mask does not leave out. Of leaves (n, t, ...) they alone count, and what
    is masked between them counts too. So a sentence is the same sample however far, and on whichever side, it is
    padded. Without such a mask nothing is known to be padding and all is content: the same numbers, padded otherwise,
    are then another sample.
    """
    mask = _mask(inputs)
    spans = None if mask is None else _spans(mask)
    leaves = sorted((keystr(path), leaf) for path, leaf in tree_flatten_with_path(inputs)[0])
    digests = np.empty((len(leaves[0][1]), len(leaves)), dtype="<u8")
    for j, (name, leaf) in enumerate(leaves):
        padded = mask is not None and leaf.shape[:2] == mask.shape
        shape = tuple(leaf.shape[2 if padded else 1 :])
        seed = xxh3_64_intdigest(f"{name} {leaf.dtype} {'columns of ' if padded else ''}{shape}".encode())
        size = leaf.dtype.itemsize * math.prod(leaf.shape[1:])
        first, end = (0, size) if spans is None or not padded else spans * (size // max(1, leaf.shape[1]))
        begin = np.arange(len(leaf)) * size
        content = _bytes(leaf)
        places = zip((begin + first).tolist(), (begin + end).tolist(), strict=True)
        digests[:, j] = [xxh3_64_intdigest(content[a:b], seed) for a, b in places]
    return np.array([xxh3_64_intdigest(row.data) for row in digests], dtype=np.uint64).view(np.int64)


def token_identities(inputs: Inputs, chosen: Bool[Tensor, "n t"]) -> Int64[np.ndarray, " m"]:
    """What tells tokens apart, of those chosen, sequence after sequence, (m,).

    Hash of the sequence's identity and of the token's place, counted from the first one that is no padding.
    """
    rows, columns = chosen.cpu().numpy().nonzero()
    mask = _mask(inputs)
    first = 0 if mask is None or mask.shape != chosen.shape else _spans(mask)[0, rows]
    return identities(torch.from_numpy(np.stack([identities(inputs)[rows], columns - first], axis=1)))


def _mask(inputs: Inputs) -> Tensor | None:
    """Which columns of each sample are no padding, (n, t); none where nothing says so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return None if mask is None or mask.dim() != 2 else mask


def _spans(mask: Shaped[Tensor, "n t"]) -> Int64[np.ndarray, "2 n"]:
    """Each sample's first column that is no padding, and the column after its last."""
    kept = (mask != 0).cpu().numpy()
    end = np.where(kept.any(axis=1), kept.shape[1] - kept[:, ::-1].argmax(axis=1), 0)
    return np.stack([kept.argmax(axis=1), end])


def _bytes(leaf: Tensor) -> memoryview:
    """Sample after sample, numbers little-endian."""
    content = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big":
        content = content.reshape(-1, leaf.dtype.itemsize)[:, ::-1].ravel()
    return content.data


def now(device: torch.device) -> float:
    """Seconds on the clock, with all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
