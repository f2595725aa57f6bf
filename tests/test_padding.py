"""Padding says nothing: masks are found by what the model does with them, and heads leave out what they mark."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.errors import InputError
from optdepth.networks import Pool, StagedNetwork, stage
from optdepth.networks.heads import Real, RealTokens
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import Origin
from zoo import build, tokens

LENGTHS = (9, 5, 7, 3)
IDS = torch.randint(2, 60, (4, 9), generator=torch.Generator().manual_seed(0))
PADDED = torch.arange(9) >= torch.tensor(LENGTHS)[:, None]


class Encoder(nn.Module):
    """torch's own layers, whose mask is true at padding; the first token answers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(60, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3))

    def forward(self, ids: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=src_key_padding_mask)
        return self.last(x[:, 0])


class Mean(nn.Module):
    """Features, and a mask of floating-point numbers that the mean at the end goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.last((x * real[..., None]).sum(1) / real.sum(1, keepdim=True))


def features() -> Tensor:
    return torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(1))


def spoken(network: StagedNetwork) -> StagedNetwork:
    """The network with heads of random weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.heads[:-1].parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def alone_as_among_others(network: StagedNetwork, inputs: Any, cut: Callable[[Any, int, int], Any]) -> None:
    with torch.no_grad():
        together = network(inputs)
        for row, length in enumerate(LENGTHS):
            for one, among in zip(network(cut(inputs, row, length)), together, strict=True):
                torch.testing.assert_close(one[0], among[row], rtol=1e-4, atol=1e-5)


def of_tuple(inputs: tuple[Tensor, ...], row: int, length: int) -> tuple[Tensor, ...]:
    return tuple(tensor[row : row + 1, :length] for tensor in inputs)


def of_dict(inputs: dict[str, Tensor], row: int, length: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}


def seeded(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model().eval()


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_mask_that_is_true_at_padding_by_position_and_by_another_name(head: str) -> None:
    seed = 0 if head == "mlp" else None
    inputs = (IDS, PADDED)
    network = spoken(stage(seeded(Encoder), example=inputs, exits="all", head=head, seed=seed))
    assert network.heads[0].pool == Pool(-1, Real(1, 1.0))
    alone_as_among_others(network, inputs, of_tuple)
    named = {"ids": IDS, "src_key_padding_mask": PADDED}
    network = spoken(stage(seeded(Encoder), example=named, exits="all", head=head, seed=seed))
    alone_as_among_others(network, named, of_dict)


def test_a_mask_of_numbers_that_a_mean_goes_by() -> None:
    inputs = (features(), (~PADDED).float())
    network = spoken(stage(seeded(Mean), example=inputs, exits="all", blocks="blocks", head="linear"))
    with torch.no_grad():
        moved = (torch.where(PADDED[..., None], 7.0, inputs[0]), inputs[1])
        for one, other in zip(network(inputs), network(moved), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "gpt2, per token", "llama, per token"])
def test_the_mask_of_every_library_family_is_found_where_token_types_are_none(name: str) -> None:
    model, example = build(f"transformers {name}")
    if name == "bert":
        example["token_type_ids"] = (example["input_ids"] > 30).long()
    per_token = "per token" in name
    network = stage(model, example=example, exits=2, head="token" if per_token else "linear")
    head = network.heads[0]
    assert (head.real if per_token else head.pool.real).padding == 0
    state = network.advance(network.start(example), 0)
    real = head.real if per_token else head.pool.real
    assert torch.equal(real(state), example["attention_mask"].bool())


class Unused(nn.Module):
    """Takes a mask of which it makes nothing that could be told: its contents are all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.table, self.last = nn.Parameter(torch.randn(9, 16)), nn.Linear(16, 4)

    def forward(self, real: Tensor, dates: Tensor) -> Tensor:
        x = self.table * real[..., None] + dates[:, None, None]
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.last(x.mean(1))


def test_what_cannot_be_told_is_asked() -> None:
    inputs = ((~PADDED).long(), torch.randn(4))
    with pytest.raises(InputError, match=r"whether the input 0 says what is padding cannot be told .*mask=\(0, 0\)"):
        stage(seeded(Unused), example=inputs, exits="all", head="linear")
    said = stage(seeded(Unused), example=inputs, exits="all", head="linear", mask=(0, 0))
    assert said.heads[0].pool == Pool(-1, Real(1, 0.0))
    none = stage(seeded(Unused), example=inputs, exits="all", head="linear", mask=None)
    assert none.heads[0].pool == Pool(-1)
    assert isinstance(stage(seeded(Unused), example=inputs, exits=1), StagedNetwork)


def test_a_said_mask_is_saved_and_a_wrong_one_refused(tmp_path: Any) -> None:
    inputs = {"real": (~PADDED).long(), "dates": torch.randn(4)}
    network = stage(seeded(Unused), example=inputs, exits="all", head="linear", mask=("real", 0))
    network.save(tmp_path)
    loaded = od.load_network(tmp_path, model=Unused(), example=inputs)
    assert loaded.heads[0].pool == network.heads[0].pool
    for wrong in ("real", ("other", 0), ("dates", 0), (0, 0), 1):
        with (
            unchecked(),
            pytest.raises(InputError, match=r"give 'auto', None, or an input \(n, tokens\).*'real', 'dates'"),
        ):
            stage(seeded(Unused), example=inputs, mask=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"mask=\('real', 1\) marks all of sample 0 of the example as padding"):
        stage(seeded(Unused), example=inputs, head="linear", mask=("real", 1))


class Waveform(nn.Module):
    """A convolution makes frames of a waveform; its mask is of the waveform, and frames are counted by it."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 16, 4, 4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, wave: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.frames(wave[:, None]).transpose(1, 2)
        none = torch.arange(x.shape[1]) >= attention_mask.sum(1, keepdim=True) // 4
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=none)
        real = (~none).to(x.dtype)[..., None]
        return self.last((x * real).sum(1) / real.sum(1))


def test_a_mask_of_another_axis_is_neither_used_nor_forgotten() -> None:
    wave = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    inputs = {"wave": wave, "attention_mask": (torch.arange(48) < torch.tensor([48, 32, 16])[:, None]).long()}
    message = (
        r"the states \(3, 12, 16\) do not go by the tokens of 'attention_mask'.*give mask=None to average over all"
    )
    with pytest.raises(InputError, match=message):
        stage(seeded(Waveform), example=inputs, exits="all", blocks="layers", head="linear")
    network = stage(seeded(Waveform), example=inputs, exits="all", blocks="layers", head="linear", mask=None)
    assert len(network(inputs)) == 3


def test_padded_sentences_stop_where_they_stop_alone_with_an_answer_at_every_token() -> None:
    """200 sentences: heads at every token are zero at padding, which observations leave out."""
    model, example = build("transformers bert, per token")
    network = spoken(stage(model, example=example, exits="all", head="own"))
    assert all(isinstance(head, RealTokens) for head in network.heads[:-1])
    lengths = tuple(3 + 7 * i % 10 for i in range(200))
    batch = tokens(lengths)
    with torch.no_grad():
        for logits in network(batch)[:-1]:
            assert not logits[batch["attention_mask"] == 0].any()
            assert logits[batch["attention_mask"] == 1].any(-1).all()
    short = {length: [i for i, each in enumerate(lengths) if each == length] for length in set(lengths)}
    parts = {length: {name: tensor[rows, :length] for name, tensor in batch.items()} for length, rows in short.items()}
    engine = od.Engine(network, by_the_least_sure_token(network, list(parts.values())))
    together = engine(batch)
    assert len(together.exit.unique()) > 1
    for length, rows in short.items():
        assert torch.equal(engine(parts[length]).exit, together.exit[rows])


@torch.inference_mode()
def by_the_least_sure_token(network: StagedNetwork, parts: list[dict[str, Tensor]]) -> od.Rule:
    """A rule whose thresholds lie in the widest gap of what some sentences without padding show."""
    margins = []
    for part in parts:
        best = torch.stack(network(part)[:-1]).softmax(-1).topk(2).values
        margins.append((best[..., 0] - best[..., 1]).amin(-1))
    thresholds = []
    for seen in torch.cat(margins, dim=1):
        middle = seen.sort().values[50:150]
        widest = int(middle.diff().argmax())
        thresholds.append(float(middle[widest : widest + 2].mean()))
    origin = Origin(od.flops(network, parts[0]).relative(), network.fingerprint())
    return Threshold(origin, "margin", torch.tensor(thresholds))
