"""What a user could install or write instead of the engine: the same weights, exits and thresholds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from optdepth.batch import Inputs, hidden
from optdepth.networks import StagedNetwork
from optdepth.stopping.placed import Placed

Serve = Callable[[Any], object]


def everything(network: StagedNetwork, cuts: dict[int, float]) -> Serve:
    """Every kept exit is run on every sample, and the first that is sure enough answers."""

    @torch.inference_mode()
    def serve(inputs: Inputs) -> Tensor:
        state, last = network.start(inputs), len(network.exits) - 1
        answers, open_ = None, None
        for k in range(last + 1):
            state = network.advance(state, k)
            if k not in cuts and k != last:
                continue
            logits = network.answer(state, k)
            if answers is None:
                answers, open_ = logits.clone(), torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            else:
                answers[open_] = logits[open_]
            if k != last:
                open_ = open_ & (logits.softmax(-1).amax(-1) < cuts[k])
        return answers

    return serve


def loop(network: StagedNetwork, cuts: dict[int, float]) -> Serve:
    """`x = x[~mask]`, as it is written by hand."""

    @torch.inference_mode()
    def serve(inputs: Inputs) -> Tensor:
        x, last = network.start(inputs), len(network.exits) - 1
        rows = torch.arange(len(hidden(inputs)), device=hidden(inputs).device)
        answers = None
        for k in range(last):
            x = network.advance(x, k)
            if k in cuts:
                logits = network.answer(x, k)
                if answers is None:
                    answers = torch.empty_like(logits)
                mask = logits.softmax(-1).amax(-1) >= cuts[k]
                answers[rows[mask]] = logits[mask]
                x, rows = tree_map(lambda tensor, mask=mask: tensor[~mask], x), rows[~mask]
                if len(rows) == 0:
                    return answers
        logits = network.answer(network.advance(x, last), last)
        if answers is None:
            return logits
        answers[rows] = logits
        return answers

    return serve


class _Backbone(nn.Module):
    """The network as earlyon wants it: one module with named layers, and no exits."""

    def __init__(self, network: StagedNetwork) -> None:
        super().__init__()
        self.stem, self.stages, self.head = network.stem, network.stages, network.heads[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.stem(inputs)
        for stage in self.stages:
            state = stage(state)
        return self.head(state)


def earlyon(network: StagedNetwork, cuts: dict[int, float], example: Tensor, *, batched: bool) -> Serve | None:
    """The package `earlyon` 0.3.0: single samples, or its batched mode, where the hardest sample decides; or None.

    It imports torchvision, which does not load beside a torch that lacks its operators; their schemas are enough.
    """
    with contextlib.suppress(RuntimeError):
        schemas = torch.library.Library("torchvision", "DEF")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        from earlyon import EarlyExitConfig, EarlyExitWrapper, ExitPoint
    except ImportError:
        return None
    points = [ExitPoint(f"exit{k}", f"stages.{k}", 1) for k in cuts]
    config = EarlyExitConfig(
        backbone="resnet",
        num_classes=10,
        exit_points=points,
        confidence_thresholds=[min(c, 1.0) for c in cuts.values()],
    )
    heads = {f"exit{k}": network.heads[k] for k in cuts}
    wrapper = EarlyExitWrapper(_Backbone(network), heads, nn.Identity(), config, input_shape=(1, *example.shape[1:]))
    wrapper.eval()
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper.forward_inference_batched(example[:2])
    return wrapper.forward_inference_batched if batched else lambda inputs: wrapper(inputs, mode="inference")


def cuts_of(rule: Placed) -> dict[int, float]:
    """The thresholds of a placed confidence rule, by exit."""
    return dict(zip(rule.kept[:-1], rule.inner.thresholds.tolist(), strict=True))


def plain_onnx(network: StagedNetwork, example: Inputs, path: Path) -> Callable[[Any], object]:
    """A session of the network without exits, one graph with a dynamic batch: inputs in numpy -> its outputs."""
    import onnxruntime

    leaves, form = tree_flatten(example)

    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Tensor) -> Tensor:
            return self.network.full(tree_unflatten(given, form))

    if not path.is_file():
        shapes = (tuple({0: torch.export.Dim.DYNAMIC} for _ in leaves),)
        names = [f"in{i}" for i in range(len(leaves))]
        program = torch.onnx.export(
            Full().eval(), tuple(leaves), dynamo=True, dynamic_shapes=shapes, input_names=names, verbose=False
        )
        program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {f"in{i}": leaf for i, leaf in enumerate(tree_leaves(inputs))})
