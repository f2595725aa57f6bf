"""Where a model is cut: behind its blocks, also where one runs again and again, and never inside an activation."""

import pytest
import torch
from torch import Tensor, nn

from optdepth.networks import stage
from zoo import SIZES, TEXT, images, library, tokens


def gelu(x: Tensor) -> Tensor:
    """By hand, as transformers has it: a sum of two parts of an activation."""
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x.pow(3))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.norm(x + weights @ self.value(x))


class Layer(nn.Module):
    """Two residual additions, one of them in a module inside, and a GELU by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attention(), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.norm(x + self.down(gelu(self.up(x))))


class Repeated(nn.Module):
    """One layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.last = nn.Embedding(60, 8), Layer(), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for _ in range(3):
            x = self.layer(x)
        return self.last((x * attention_mask[..., None]).sum(1))


class Once(nn.Module):
    """The same in one forward, with no module for a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.ups, self.downs = (nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.first(x))
        for i in range(3):
            x = x + self.downs[i](gelu(self.ups[i](x)))
        return self.last(x)


def test_a_layer_that_runs_again_and_again_without_a_sibling_is_the_block() -> None:
    torch.manual_seed(0)
    model = Repeated().eval()
    network = stage(model, example=tokens(), exits="all")
    assert [exit.name for exit in network.exits] == ["layer", "layer#2", "layer#3"]
    inputs = tokens((7, 3, 4, 6))
    assert torch.equal(network.full(inputs), model(**inputs))


def test_no_cut_lies_inside_an_activation() -> None:
    torch.manual_seed(0)
    network = stage(Once().eval(), example=torch.randn(3, 8), exits="all")
    assert [exit.depth for exit in network.exits] == [1, 2, 3]
    work = [exit.trunk for exit in network.exits]
    assert work == [2.0 * 64 * (1 + 2 * k) for k in (1, 2, 3)]  # behind each pair of linear layers


@pytest.mark.parametrize("sizes", [{}, {"inner_group_num": 2}, {"num_hidden_groups": 3}])
def test_albert(sizes: dict[str, int]) -> None:
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.AlbertConfig(num_labels=5, embedding_size=16, **SIZES, **TEXT, **sizes)
    model = transformers.AlbertForSequenceClassification(config).eval()
    network = stage(model, example=tokens(), exits="all")
    group = "albert.encoder.albert_layer_groups"
    expected = {
        "inner_group_num": [f"{group}.0.albert_layers.{i}{call}" for call in ("", "#2", "#3") for i in (0, 1)],
        "num_hidden_groups": [f"{group}.{i}" for i in range(3)],
        "": [f"{group}.0.albert_layers.0{call}" for call in ("", "#2", "#3")],
    }[next(iter(sizes), "")]
    assert [exit.name for exit in network.exits] == expected
    inputs = tokens((12, 4))
    with torch.no_grad():
        assert torch.equal(network.full(inputs), model(**inputs).logits)


def test_an_answer_at_every_token_has_exits_behind_the_layers_that_make_it() -> None:
    """Of an encoder and a decoder the decoder's layers have the tokens that are answered."""
    transformers = library("transformers")
    torch.manual_seed(0)
    for kind in ("T5", "MT5"):
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
        assert config.use_cache
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
        example = {**tokens(), "decoder_input_ids": torch.randint(2, 60, (3, 6))}
        network = stage(model, example=example, exits="all")
        assert [exit.name for exit in network.exits] == [f"decoder.block.{i}" for i in range(2)]
        assert model.config.use_cache
        assert model.decoder.config.use_cache
        inputs = {**tokens((12, 4)), "decoder_input_ids": torch.randint(2, 60, (2, 4))}
        with torch.no_grad():
            assert torch.equal(network.full(inputs), model(**inputs, use_cache=False).logits)


@pytest.mark.parametrize("blocks", [None, "model.decoder.layers"])
def test_an_encoder_and_a_decoder_that_answer_once_a_text(blocks: str | None) -> None:
    """BART answers from the token that ends a text, of which each has as many as the others."""
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=60, max_position_embeddings=24, d_model=32, encoder_layers=2, decoder_layers=2, num_labels=5,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
    )  # fmt: skip
    model = transformers.BartForSequenceClassification(config).eval()

    def ended(*lengths: int) -> dict[str, Tensor]:
        made = tokens(lengths)
        made["input_ids"][:, -1] = config.eos_token_id
        return made

    network = stage(model, example=ended(9, 9, 9), exits="all", blocks=blocks)
    decoder = [f"model.decoder.layers.{i}" for i in range(2)]
    encoder = [] if blocks else [f"model.encoder.layers.{i}" for i in range(2)]
    assert [exit.name for exit in network.exits] == encoder + decoder
    inputs = ended(7, 7, 7, 7)
    with torch.no_grad():
        assert torch.equal(network.full(inputs), model(**inputs).logits)


def test_a_language_model_inside_another_model() -> None:
    """Llava's own config says nothing of a cache; that of its language model does."""
    transformers = library("transformers")
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=8, **SIZES),
        text_config=transformers.LlamaConfig(vocab_size=60, **sizes),
        image_token_id=59,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    network = stage(model, example=tokens(), exits="all")
    assert [exit.name for exit in network.exits] == [f"model.language_model.layers.{i}" for i in range(3)]
    assert model.config.text_config.use_cache
    inputs = tokens((11, 4))
    with torch.no_grad():
        assert torch.equal(network.full(inputs), model(**inputs, use_cache=False).logits)


class Towers(nn.Module):
    """Two stacks; the answer of one of them, or a comparison of every sample with every other."""

    def __init__(self, compared: bool) -> None:
        super().__init__()
        self.compared = compared
        self.ones, self.others = (nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.others:
            other = layer(other)
        for layer in self.ones:
            one = layer(one)
        x, y = one.mean(1), other.mean(1)
        return (x @ y.T if self.compared else x), y


def test_a_tower_that_the_answer_does_not_come_from_has_no_exits() -> None:
    torch.manual_seed(0)
    example = (torch.randn(3, 5, 8), torch.randn(3, 5, 8))
    network = stage(Towers(False).eval(), example=example, output=0, exits="all", head="linear")
    assert [exit.name for exit in network.exits] == ["ones.0", "ones.1"]


def test_clip_images_alone() -> None:
    transformers = library("transformers")
    torch.manual_seed(0)
    sizes = {**SIZES, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**SIZES, **TEXT, "projection_dim": 16, "eos_token_id": 3},
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    example = {**tokens(), "pixel_values": images()}
    network = stage(model, example=example, output="image_embeds", exits="all", head="linear", mask=None)
    assert [exit.name for exit in network.exits] == [f"vision_model.encoder.layers.{i}" for i in range(3)]


class Reading(nn.Module):
    """A block that reads a number off its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * x.new_ones(3).count_nonzero().item()


def test_what_a_block_reads_off_its_tensors_is_its_own_affair() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Reading(), Reading(), nn.Linear(8, 3)).eval()
    network = stage(model, example=torch.randn(3, 8), exits="all", blocks=["0", "1"])
    x = torch.randn(5, 8)
    assert torch.equal(network.full(x), model(x))
