"""Batches: what a network takes and hands on, some of its samples, which those are, and whether they can be used."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from xxhash import xxh3_64_intdigest

from .errors import InputError

State = Any
"""A pytree of tensors whose first dimension is the batch; for our residual networks, one tensor."""

Inputs = Any
"""What a network takes: one tensor, or a tuple or mapping of tensors, the batch first in each."""


def plain(inputs: Inputs) -> Inputs:
    """A mapping that is no dict, such as the `BatchEncoding` of a tokenizer, as one; other inputs as they are."""
    return dict(inputs) if isinstance(inputs, Mapping) and not isinstance(inputs, dict) else inputs


def hidden(state: State) -> Tensor:
    """The main tensor of a state: the state itself, or its first tensor leaf."""
    if isinstance(state, Tensor):
        return state
    leaf = next((leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)), None)
    if leaf is None:
        raise InputError(f"a state of type {type(state).__name__} holds no tensor: return one from the stage")
    return leaf


def select(state: State, index: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> State:
    """The state of some samples: row numbers, or a mask over the batch."""
    rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
    # The usual state is one tensor, and `tree_map` takes as long as gathering a few samples of it.
    return _gather(state, rows) if isinstance(state, Tensor) else tree_map(lambda tensor: _gather(tensor, rows), state)


def front(state: State, rows: int) -> State:
    """The state of the first samples."""
    return tree_map(lambda tensor: tensor[:rows], state)


def _gather(tensor: Tensor, rows: Int[Tensor, " m"]) -> Tensor:
    """`tensor[rows]` in the layout that the tensor has, each row copied as one piece: several times faster on a CPU."""
    if tensor.is_contiguous() or tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.index_select(0, rows)
    return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def check_finite(inputs: Inputs, first: int = 0) -> None:
    """Refuses a batch with NaN or infinity, naming the sample; `first` is the number of the batch's first one."""
    for tensor in [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs):
        # One cheap pass in the usual case; `torch.isfinite` is four more operations.
        if not tensor.is_floating_point() or math.isfinite(tensor.sum().item()):
            continue
        bad = torch.nonzero(~torch.isfinite(tensor.flatten(1)).all(dim=1))
        if len(bad):
            raise InputError(f"sample {first + int(bad[0])} of the batch holds NaN or infinity; clean or drop it")


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
    spans = _spans(inputs)
    leaves = sorted((keystr(path), leaf) for path, leaf in tree_flatten_with_path(inputs)[0])
    digests = np.empty((len(leaves[0][1]), len(leaves)), dtype="<u8")
    for j, (name, leaf) in enumerate(leaves):
        padded = spans is not None and leaf.shape[:2] == inputs["attention_mask"].shape
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
    spans = _spans(inputs)
    first = 0 if spans is None or inputs["attention_mask"].shape != chosen.shape else spans[0, rows]
    return identities(torch.from_numpy(np.stack([identities(inputs)[rows], columns - first], axis=1)))


def _spans(inputs: Inputs) -> Int64[np.ndarray, "2 n"] | None:
    """Each sample's first column that is no padding, and the column after its last; none where nothing says so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if mask is None or mask.dim() != 2:
        return None
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
