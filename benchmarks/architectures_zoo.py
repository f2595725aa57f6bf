"""The models of `architectures.py`: constructors of torchvision, timm and transformers, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optdepth.libraries import library

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One model to try.

    Attributes:
        library, name: whose, and the constructor's name.
        make: builds it.
        example: n -> inputs of n samples, other ones for another n.
        options: of `stage`.
        note: what is special about it.
    """

    library: str
    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Example]
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.library} {self.name}{f' ({self.note})' if self.note else ''}"


def subjects() -> list[Subject]:
    """All of them."""
    return [*_torchvision(), *_timm(), *_texts(), *_decoders(), *_others()]


def images(size: int, channels: int = 3) -> Callable[[int], Tensor]:
    """Noise."""
    return lambda n: torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(n))


def sentences(n: int) -> dict[str, Tensor]:
    """Of unlike lengths, padded; another longest one for another n."""
    lengths = torch.arange(n) % 4 * 2 + 3
    ids = torch.randint(5, 60, (n, int(lengths.max())), generator=torch.Generator().manual_seed(n))
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def _torchvision() -> list[Subject]:
    small = ("alexnet", "vgg11", "vgg11_bn", "squeezenet1_1", "densenet121", "googlenet", "inception_v3")
    mobile = ("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0")
    more = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf", "regnet_x_400mf")
    others = ("convnext_tiny", "swin_t", "swin_v2_t")
    sizes = {"inception_v3": 96}
    without = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"aux_logits": False}}
    found = [
        Subject("torchvision", name, _from("models", name, num_classes=5, **without.get(name, {})),
                images(sizes.get(name, 64)))
        for name in (*small, *mobile, *more, *others)
    ]  # fmt: skip
    vit = _from("models", "VisionTransformer", 32, 8, 3, 4, 32, 48, num_classes=5)
    dense = {"weights": None, "weights_backbone": None, "num_classes": 5}
    return [
        *found,
        Subject("torchvision", "VisionTransformer", vit, images(32)),
        *(
            Subject("torchvision", name, _from("models.segmentation", name, **dense), images(64), {"output": "out"})
            for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
        ),
        Subject(
            "torchvision", "r3d_18", _from("models.video", "r3d_18", num_classes=5),
            lambda n: torch.randn(n, 3, 4, 32, 32, generator=torch.Generator().manual_seed(n)),
        ),
    ]  # fmt: skip


def _from(module: str, name: str, *sizes: Any, **named: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        found: Any = library("torchvision")
        for part in (*module.split("."), name):
            found = getattr(found, part)
        return found(*sizes, **named)

    return make


def _timm() -> list[Subject]:
    free = ("resnet10t", "resnetv2_50", "convnext_atto", "convnextv2_atto", "regnety_002", "mobilenetv3_small_050")
    free += ("efficientnet_lite0", "ghostnet_050", "hrnet_w18_small", "densenet121", "dla34", "repvgg_a0", "rexnet_100")
    free += ("tinynet_e", "poolformer_s12", "edgenext_xx_small", "mobilevit_xxs", "nf_resnet26", "inception_next_tiny")
    free += ("fastvit_t8", "mambaout_femto", "xcit_nano_12_p16_224", "cspresnet50", "vovnet39a", "selecsls42b")
    sized = ("deit_tiny_distilled_patch16_224", "mixer_s32_224", "resmlp_12_224", "cait_xxs24_224", "levit_128s")
    sized += ("swin_tiny_patch4_window7_224", "pit_ti_224", "twins_svt_small", "visformer_tiny", "coatnet_nano_rw_224")
    sized += ("tiny_vit_5m_224", "efficientformer_l1", "hiera_tiny_224", "crossvit_tiny_240", "volo_d1_224")
    vits = {
        "vit_tiny_patch16_224": {},
        "beit_base_patch16_224": {"embed_dim": 96, "num_heads": 3},
        "eva02_tiny_patch14_224": {},
    }
    pooled = {"global_pool": "map", "class_token": False}
    own = lambda name, **sizes: lambda: library("timm").create_model(name, num_classes=5, **sizes)  # noqa: E731
    return [
        *(Subject("timm", name, own(name), images(64)) for name in free),
        *(Subject("timm", name, own(name), images(240 if "240" in name else 224)) for name in sized),
        *(Subject("timm", name, own(name, img_size=56, depth=3, **more), images(56)) for name, more in vits.items()),
        Subject(
            "timm", "vit_tiny_patch16_224", own("vit_tiny_patch16_224", img_size=32, depth=3, **pooled), images(32),
            note="attention pooling, as in SigLIP",
        ),
    ]  # fmt: skip


BODY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 60, "max_position_embeddings": 32}
NO_TOKENS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def _built(config: str, model: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = library("transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


def _texts() -> list[Subject]:
    both = {**BODY, **TEXT, "num_labels": 5}
    kinds: dict[str, dict[str, Any]] = {
        "Bert": {},
        "Roberta": {"pad_token_id": 1},
        "Albert": {"embedding_size": 16},
        "Electra": {"embedding_size": 16},
        "DebertaV2": {
            "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
        },
        "Deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "MPNet": {},
        "RoFormer": {"embedding_size": 32},
        "ConvBert": {"embedding_size": 32},
        "MobileBert": {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
        "SqueezeBert": {"embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1,
                        "intermediate_groups": 1, "output_groups": 1},
        "Nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
        "BigBird": {"attention_type": "original_full"},
        "ModernBert": {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
        "XLMRoberta": {"pad_token_id": 1},
        "Camembert": {"pad_token_id": 1},
        "Ernie": {},
        "LayoutLM": {},
        "FNet": {},
    }  # fmt: skip
    ids_alone = lambda n: {"input_ids": sentences(n)["input_ids"]}  # noqa: E731
    found = [
        Subject(
            "transformers", f"{kind}ForSequenceClassification",
            _built(f"{kind}Config", f"{kind}ForSequenceClassification", **{**both, **more}),
            ids_alone if kind == "FNet" else sentences,
        )
        for kind, more in kinds.items()
    ]  # fmt: skip
    distil = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "num_labels": 5, **TEXT}
    xlnet = {"vocab_size": 60, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "num_labels": 5}
    bart = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "num_labels": 5,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, **TEXT}  # fmt: skip
    named = {
        "DistilBert": ("SequenceClassification", distil),
        "XLNet": ("SequenceClassification", xlnet),
        "Bart": ("SequenceClassification", bart),
    }
    return [
        *found,
        *(
            Subject("transformers", f"{kind}For{task}", _built(f"{kind}Config", f"{kind}For{task}", **sizes), _ended)
            for kind, (task, sizes) in named.items()
        ),
        *(
            Subject("transformers", name, _built("BertConfig", name, **both), sentences)
            for name in ("BertForTokenClassification", "BertForMaskedLM")
        ),
    ]


def _ended(n: int) -> dict[str, Tensor]:
    """Sentences of one length that end in the token 2."""
    ids = torch.randint(5, 60, (n, 5 + n % 3), generator=torch.Generator().manual_seed(n))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _decoders() -> list[Subject]:
    old = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32}
    grouped = {**BODY, "num_key_value_heads": 2, "max_position_embeddings": 32}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "GPT2LMHeadModel": ("GPT2Config", old),
        "GPTJForCausalLM": ("GPTJConfig", {**old, "rotary_dim": 4}),
        "CodeGenForCausalLM": ("CodeGenConfig", {**old, "rotary_dim": 4}),
        "GPTNeoForCausalLM": (
            "GPTNeoConfig",
            {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 32,
             "attention_types": [[["global", "local"], 2]], "window_size": 4},
        ),
        "GPTNeoXForCausalLM": ("GPTNeoXConfig", {**BODY, "max_position_embeddings": 32}),
        "OPTForCausalLM": (
            "OPTConfig",
            {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48,
             "max_position_embeddings": 32, "word_embed_proj_dim": 32},
        ),
        "BloomForCausalLM": ("BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
        "FalconForCausalLM": ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
        "MptForCausalLM": ("MptConfig", {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 32}),
        "LlamaForCausalLM": ("LlamaConfig", grouped),
        "MistralForCausalLM": ("MistralConfig", {**grouped, "sliding_window": 4}),
        "Qwen2ForCausalLM": ("Qwen2Config", grouped),
        "Qwen3ForCausalLM": ("Qwen3Config", {**grouped, "head_dim": 8}),
        "GemmaForCausalLM": ("GemmaConfig", {**grouped, "head_dim": 8}),
        "PhiForCausalLM": ("PhiConfig", grouped),
        "StableLmForCausalLM": ("StableLmConfig", grouped),
        "MixtralForCausalLM": ("MixtralConfig", {**grouped, "num_local_experts": 2, "num_experts_per_tok": 1}),
        "MambaForCausalLM": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    }  # fmt: skip
    return [
        Subject("transformers", model, _built(config, model, vocab_size=60, **NO_TOKENS, **sizes), sentences)
        for model, (config, sizes) in kinds.items()
    ]


def _others() -> list[Subject]:
    vision = {**BODY, "image_size": 32, "patch_size": 8, "num_labels": 5}
    pairs = lambda n: {**sentences(n), "decoder_input_ids": _ended(n)["input_ids"]}  # noqa: E731
    seq = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3,
           "num_heads": 4, "decoder_start_token_id": 0}  # fmt: skip
    wave = {**BODY, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": 4,
            "feat_extract_norm": "layer"}  # fmt: skip
    waves = lambda n: torch.randn(n, 400, generator=torch.Generator().manual_seed(n))  # noqa: E731
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    seg = {"hidden_sizes": [16, 32], "depths": [1, 2], "num_encoder_blocks": 2, "num_attention_heads": [1, 2],
           "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "num_labels": 5,
           "decoder_hidden_size": 16}  # fmt: skip
    clip = {
        "text_config": {**BODY, **TEXT, "projection_dim": 16, "eos_token_id": 3},
        "vision_config": {**BODY, "projection_dim": 16, "image_size": 32, "patch_size": 8},
        "projection_dim": 16,
    }
    two = lambda n: {**sentences(n), "pixel_values": images(32)(n)}  # noqa: E731
    made = {
        "ViTForImageClassification": ("ViTConfig", vision),
        "DeiTForImageClassification": ("DeiTConfig", vision),
        "BeitForImageClassification": ("BeitConfig", vision),
        "Dinov2ForImageClassification": ("Dinov2Config", vision),
        "SwinForImageClassification": ("SwinConfig", {**swin, "num_labels": 5}),
        "ConvNextForImageClassification": (
            "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "num_labels": 5}),
        "ResNetForImageClassification": (
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic", "num_labels": 5},
        ),
        "SegformerForImageClassification": ("SegformerConfig", seg),
        "SegformerForSemanticSegmentation": ("SegformerConfig", seg),
        "SiglipForImageClassification": (
            "SiglipConfig", {"vision_config": {**BODY, "image_size": 32, "patch_size": 8}, "num_labels": 5}),
    }  # fmt: skip
    return [
        *(
            Subject("transformers", name, _built(config, name, **sizes), images(32))
            for name, (config, sizes) in made.items()
        ),
        *(
            Subject("transformers", f"{kind}ForConditionalGeneration",
                    _built(f"{kind}Config", f"{kind}ForConditionalGeneration", **seq), pairs)
            for kind in ("T5", "MT5")
        ),
        *(
            Subject("transformers", f"{kind}ForSequenceClassification",
                    _built(f"{kind}Config", f"{kind}ForSequenceClassification", vocab_size=20, **wave), waves)
            for kind in ("Wav2Vec2", "Hubert")
        ),
        Subject("transformers", "CLIPModel", _built("CLIPConfig", "CLIPModel", **clip), two,
                {"output": "logits_per_image"}),
        Subject("transformers", "CLIPModel", _built("CLIPConfig", "CLIPModel", **clip), two,
                {"output": "image_embeds", "head": "linear", "mask": None}, "images alone"),
        Subject(
            "transformers", "LlavaForConditionalGeneration",
            _built("LlavaConfig", "LlavaForConditionalGeneration", image_token_id=59), sentences, note="text alone",
        ),
    ]  # fmt: skip
