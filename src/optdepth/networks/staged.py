"""StagedNetwork: a network cut into stages, with a head that can answer after each of them."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..batch import Inputs, State
from ..errors import InputError
from ..files import damaged, rebuilding
from ..tensor_files import read_tensors, write_tensors
from .modes import in_mode_of

BUILDERS: dict[str, Callable[..., "StagedNetwork"]] = {}
"""Builders by family name. A family registers itself here, so that this file need not import it."""

FORMAT, VERSION = "optdepth.network", 2
WEIGHTS = "weights.safetensors"
"""The one file in a network's folder: weights, and in its head what rebuilds it; replaced whole or not at all."""


@dataclass(frozen=True)
class Exit:
    """A place where the network can answer.

    Attributes:
        name: of the block it stands behind.
        depth: how many blocks run up to it, counted from 1.
        shape: of one sample's hidden states there; None where nobody measured, as in the next two.
        trunk: FLOPs a sample from the inputs up to it, heads left out.
        head: FLOPs a sample of its head.
    """

    name: str
    depth: int
    shape: tuple[int, ...] | None = None
    trunk: float | None = None
    head: float | None = None


@final
class StagedNetwork(nn.Module):
    """`stem`, then K stages; after stage k, `heads[k]` can turn the state into logits.

    Args:
        stem: inputs (n, ...) -> state.
        stages: K modules, state -> state: the blocks between exit k-1 and exit k.
        heads: K modules, state -> logits (n, classes). The last one is the original network's own.
        exits: K records, in order of depth, with names that differ. Several may stand behind one block: a head that
            costs little, then one that answers better. Between them lies a stage that holds no block.
        config: `{"family": name, **arguments}` of the builder, without which the network cannot be saved.

    Raises:
        InputError: no stage, lengths that differ, names given twice, or depths that fall.

    Example:
        >>> [exit.name for exit in network.exits]
        ['stage1.block1', 'stage2.block1', 'stage3.block1']
        >>> [tuple(logits.shape) for logits in network(images)]
        [(64, 10), (64, 10), (64, 10)]
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module] | nn.ModuleList,
        heads: Sequence[nn.Module] | nn.ModuleList,
        exits: Sequence[Exit],
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not len(stages) == len(heads) == len(exits) >= 1:
            counts = f"{len(stages)} stages, {len(heads)} heads and {len(exits)} exits"
            raise InputError(f"got {counts}: give one head and one exit for each of at least one stage")
        depths, names = [exit.depth for exit in exits], [exit.name for exit in exits]
        if len(set(names)) < len(names) or any(a > b for a, b in itertools.pairwise(depths)):
            raise InputError(f"exits {names} at depths {depths}: names must differ and depths must not fall")
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.exits = tuple(exits)
        self.config = config

    def start(self, inputs: Inputs) -> State:
        """The state before the first stage."""
        return self.stem(inputs)

    def advance(self, state: State, k: int) -> State:
        """The state after stage k (0-based), from the state before it."""
        return self.stages[k](state)

    def answer(self, state: State, k: int) -> Float[Tensor, "n ..."]:
        """The logits of exit k (0-based), from the state after stage k."""
        logits: Tensor = self.heads[k](state)
        return logits

    def forward(self, inputs: Inputs) -> list[Float[Tensor, "n ..."]]:
        """The logits of every exit, first to last."""
        state, logits = self.start(inputs), []
        for k in range(len(self.exits)):
            state = self.advance(state, k)
            logits.append(self.answer(state, k))
        return logits

    def full(self, inputs: Inputs) -> Float[Tensor, "n ..."]:
        """The last exit's logits alone: what the network without exits computes."""
        state = self.start(inputs)
        for stage in self.stages:
            state = stage(state)
        return self.answer(state, len(self.exits) - 1)

    def keep(self, names: Sequence[str]) -> "StagedNetwork":
        """The same modules with the named exits only; stages between them are merged.

        Raises:
            InputError: a name that is not an exit, or a list without the last exit.
        """
        valid = [exit.name for exit in self.exits]
        if unknown := [name for name in names if name not in valid]:
            raise InputError(f"no exit {', '.join(unknown)}: the exits are {', '.join(valid)}")
        if valid[-1] not in names:
            raise InputError(f"exits {list(names)} lack the last one: add {valid[-1]!r}")
        kept = [k for k, name in enumerate(valid) if name in names]
        stages, bounds = list(self.stages), itertools.pairwise([-1, *kept])
        kept_only = StagedNetwork(
            self.stem,
            [_merge(stages[before + 1 : k + 1]) for before, k in bounds],
            [self.heads[k] for k in kept],
            [self.exits[k] for k in kept],
            None if self.config is None else {**self.config, "exits": [valid[k] for k in kept]},
        )
        return in_mode_of(kept_only, self)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the exits, the architecture and every bit of the weights.

        SHA-256 over exit names and, by sorted key, each tensor's name, type, shape and bytes: the same on
        every device and in every process. Of quantised weights it is over the tensors that they are made of.
        """
        digest = hashlib.sha256(json.dumps([exit.name for exit in self.exits]).encode())
        for key, tensor in (each for item in sorted(self.state_dict().items()) for each in _plain(*item)):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write `weights.safetensors`, what rebuilds the network in its head, into the folder: whole or not at all.

        Raises:
            InputError: the network has no config to be rebuilt from.
        """
        if self.config is None:
            raise InputError("a network without a config cannot be saved: build it with optdepth.resnet or stage")
        made = [tensor for tensor in self.state_dict().values() if hasattr(tensor, "__tensor_flatten__")]
        if made:
            raise InputError(
                f"weights of type {type(made[0]).__name__} cannot be saved: save the network before it is quantised, "
                "and quantise what load_network returns"
            )
        about = {"format": FORMAT, "version": VERSION, "config": self.config, "fingerprint": self.fingerprint()}
        write_tensors(Path(folder) / WEIGHTS, self.state_dict(), about)

    def extra_repr(self) -> str:
        return f"exits={[exit.name for exit in self.exits]}"


def load_network(folder: str | Path, *, model: nn.Module | None = None, example: Inputs | None = None) -> StagedNetwork:
    """The network that `StagedNetwork.save` wrote, in evaluation mode, on the CPU.

    The file is untrusted: safetensors with a checksum, whose sizes must be those of its weights before anything is
    built, and whose content must match the recorded fingerprint. It holds weights and how exits were attached, and no
    code: a network that was staged from a model is put together again from that model's code.

    Args:
        model: for a network made by `stage`, a model of the same architecture; it gets the weights that were saved.
        example: for such a network, inputs of the same form as those it was staged with.

    Raises:
        InputError: no such folder, another format or version, damaged or mixed-up files, or a model that is missing,
            not needed, or another one.

    Example:
        >>> network.save("network")
        >>> bool((od.load_network("network").full(images) == network.full(images)).all())
        True
    """
    path, again = Path(folder) / WEIGHTS, "train or save the network again"
    held, about = read_tensors(path, format=FORMAT, version=VERSION, make_it=again)
    arguments, weights = about.take("config", dict[str, Any]), held.held
    family, fingerprint = about.inner("config").take("family", str), about.take("fingerprint", str)
    if family not in BUILDERS:
        raise InputError(f"{path} is of family {family!r:.40}, none of {', '.join(sorted(BUILDERS))}; {again}")
    given = {} if model is None and example is None else {"model": model, "example": example}
    with rebuilding(path, again):
        _check_sizes(arguments, weights)
        network = BUILDERS[family](**{name: value for name, value in arguments.items() if name != "family"}, **given)
        network.load_state_dict(weights)
        if lacking := (arguments.keys() ^ (network.config or {}).keys()) - {"exits"}:
            raise InputError(f"{min(lacking)!r} is missing, or is nothing of such a network; {again}")
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise damaged(path, ValueError("a weight is NaN or infinite"), again)
    if network.fingerprint() != fingerprint:
        raise damaged(path, ValueError("its weights and what rebuilds them are not of the same network"), again)
    return network.eval()


def _check_sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuses sizes that no weight has before anything is built of them."""
    there = {size for weight in weights.values() if weight.numel() for size in weight.shape}
    for name in ("classes", "channels", "width"):
        if name in config and config[name] not in there:
            raise InputError(f"no weight has a side of {name} {config[name]!r:.40}")
    if "depth" in config and not 0 <= config["depth"] <= len(weights):
        raise InputError(f"{len(weights)} weights are too few for a depth of {config['depth']!r:.40}")


def _plain(key: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor of a type of its own as the plain ones that it holds, with their names."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [(key, tensor)]
    inner, _ = tensor.__tensor_flatten__()
    return [each for name in inner for each in _plain(f"{key}.{name}", getattr(tensor, name))]


def _merge(stages: Sequence[nn.Module]) -> nn.Module:
    """One module that runs the stages in turn; flat, so that keeping exits in two steps equals one."""
    held = [stage for stage in stages if not (isinstance(stage, nn.Sequential) and len(stage) == 0)] or stages[:1]
    if len(held) == 1:
        return held[0]
    flat = [part for stage in held for part in (stage if isinstance(stage, nn.Sequential) else [stage])]
    return nn.Sequential(*flat)
