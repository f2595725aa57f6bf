"""Models of other people, small and with random weights, and inputs for them."""

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optdepth.batch import Inputs
from optdepth.costs import flops
from optdepth.networks import StagedNetwork, stage
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import Origin
from settings import widest_gap


def library(name: str) -> ModuleType:
    """torchvision, timm or transformers; skips where it is not installed."""
    _torchvision()
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'optdepth[vision,text]'")


def _torchvision() -> None:
    """Makes torchvision importable beside a build of torch that its compiled operators were not made for.

    They are then missing, and the import fails on the schemas of two of them, which no model here calls.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _SCHEMAS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def some_slow(*names: str) -> list[Any]:
    """Parameters of a test that are run only with `-m slow`: more of a kind of which one is always run."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
DEEP = {"num_hidden_layers": 4}
TEXT = {"vocab_size": 60, "max_position_embeddings": 24}


def _torchvision_model(name: str, **sizes: Any) -> nn.Module:
    return getattr(library("torchvision").models, name)(num_classes=5, **sizes)


def _torchvision_resnet(block: str, **sizes: Any) -> nn.Module:
    resnet = library("torchvision").models.resnet
    return resnet.ResNet(getattr(resnet, block), [1, 2, 1, 1], num_classes=5, **sizes)


def _torchvision_vit() -> nn.Module:
    make = library("torchvision").models.VisionTransformer
    vit = make(32, 8, 3, 4, 32, 48, dropout=0.1, num_classes=5)
    nn.init.normal_(vit.heads.head.weight)  # it starts at zero, and then every answer is the same
    return vit


def _timm(name: str, **sizes: Any) -> nn.Module:
    return library("timm").create_model(name, num_classes=5, **sizes)


def _transformers(kind: str, task: str, **sizes: Any) -> nn.Module:
    transformers = library("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **sizes)
    return getattr(transformers, f"{kind}For{task}")(config)


def _decoder(kind: str, config: str, **sizes: Any) -> nn.Module:
    transformers = library("transformers")
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # no token ends a text by itself
    # Keys from a cache lie otherwise in memory, which in training moves the last bit of a product.
    made = getattr(transformers, config)(vocab_size=60, use_cache=False, **special, **sizes)
    return getattr(transformers, kind)(made)


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet": lambda: _torchvision_resnet("BasicBlock"),
    "torchvision resnext": lambda: _torchvision_resnet("Bottleneck", groups=4, width_per_group=4),
    "torchvision wide resnet": lambda: _torchvision_resnet("Bottleneck", width_per_group=128),
    "torchvision vit": _torchvision_vit,
    "timm resnet": lambda: _timm("resnet10t"),
    "timm convnext": lambda: _timm("convnext_atto", depths=(1, 1, 2, 1), drop_path_rate=0.2),
    "timm regnet": lambda: _timm("regnety_002"),
    "timm vit": lambda: _timm("vit_tiny_patch16_224", img_size=32, depth=3, drop_path_rate=0.2),
    "timm deit": lambda: _timm("deit_tiny_distilled_patch16_224", img_size=32, depth=3, drop_path_rate=0.2),
    "transformers resnet": lambda: _transformers(
        "ResNet", "ImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    ),
    "transformers vit": lambda: _transformers(
        "ViT", "ImageClassification", image_size=32, patch_size=8, hidden_dropout_prob=0.1, **SIZES
    ),
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: _decoder("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=4, n_head=4, n_positions=24),
    "llama": lambda: _decoder(
        "LlamaForCausalLM", "LlamaConfig", **SIZES | DEEP, num_key_value_heads=2, attention_dropout=0.1
    ),
    "qwen2": lambda: _decoder(
        "Qwen2ForCausalLM", "Qwen2Config", **SIZES | DEEP, num_key_value_heads=2, attention_dropout=0.1
    ),
}
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 24}
FALCON = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
TUPLES: dict[str, Callable[[], nn.Module]] = {
    "gptj": lambda: _decoder("GPTJForCausalLM", "GPTJConfig", rotary_dim=4, **OLD),
    "codegen": lambda: _decoder("CodeGenForCausalLM", "CodeGenConfig", rotary_dim=4, **OLD),
    "gpt_neo": lambda: _decoder(
        "GPTNeoForCausalLM", "GPTNeoConfig", hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=24,
        attention_types=[[["global", "local"], 2]], window_size=4,
    ),
    "falcon": lambda: _decoder("FalconForCausalLM", "FalconConfig", **FALCON),
    "falcon, alibi": lambda: _decoder("FalconForCausalLM", "FalconConfig", alibi=True, **FALCON),
    "mpt": lambda: _decoder("MptForCausalLM", "MptConfig", d_model=32, n_layers=4, n_heads=4, max_seq_len=24),
}  # fmt: skip
"""Causal language models whose layers return a tuple, the states first."""
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "transformers bert": lambda: _transformers("Bert", "SequenceClassification", **SIZES, **TEXT),
    "transformers bert, eager": lambda: _transformers(
        "Bert", "SequenceClassification", attn_implementation="eager", **SIZES, **TEXT
    ),
    "transformers distilbert": lambda: _transformers(
        "DistilBert", "SequenceClassification", dim=32, n_layers=3, n_heads=4, hidden_dim=48, **TEXT
    ),
    "transformers roberta": lambda: _transformers("Roberta", "SequenceClassification", **SIZES, **TEXT),
    "transformers bert, per token": lambda: _transformers("Bert", "TokenClassification", **SIZES, **TEXT),
    **{f"transformers {name}, per token": make for name, make in DECODERS.items()},
}


def images(n: int = 3, size: int = 32) -> Tensor:
    """(n, 3, size, size)."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(lengths: tuple[int, ...] = (9, 5, 7)) -> dict[str, Tensor]:
    """Sentences of the lengths given, padded to the longest."""
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}  # RoBERTa's padding is 1


def build(name: str) -> tuple[nn.Module, Any]:
    """The model of that name in evaluation mode, seeded, and an example."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {**IMAGES, **TOKENS, **TUPLES}[name]()
    return model.eval(), images() if name in IMAGES else tokens()


def speaking(name: str, exits: int = 3) -> StagedNetwork:
    """The model of that name with exits whose heads, zero as `stage` leaves them, have random weights."""
    model, example = build(name)
    network, generator = stage(model, example=example, exits=exits), torch.Generator().manual_seed(0)
    for head in network.heads[:-1]:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


@torch.inference_mode()
def deciding(network: StagedNetwork, batches: Sequence[Inputs]) -> Threshold:
    """A rule on the margin for classes, which stops some of these samples early and is near a tie for none."""
    answers = [network(batch) for batch in batches]
    thresholds = []
    for k in range(len(network.exits) - 1):
        best = torch.cat([answer[k] for answer in answers]).softmax(-1).topk(2).values
        thresholds.append(widest_gap(best[:, 0] - best[:, 1]))
    origin = Origin(flops(network, batches[0]).relative(), network.fingerprint())
    return Threshold(origin, "margin", torch.tensor(thresholds))
