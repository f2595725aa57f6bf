"""Kinds of exit heads: one registry for all networks, and heads that say nothing and can learn."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import optdepth as od
from optdepth.batch import State
from optdepth.errors import InputError
from optdepth.networks import HEADS, HeadKind, Place, PooledLinear, register
from optdepth.networks.silence import silence
from settings import Residual

EXTENDING = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def registry() -> Iterator[None]:
    """The kinds are as they were afterwards."""
    before = dict(HEADS)
    yield
    HEADS.clear()
    HEADS.update(before)


class Model(nn.Module):
    """Three residual blocks, and an end of one's own."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.blocks, self.end = nn.Sequential(*(Residual() for _ in range(3))), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.blocks(x))


def staged(end: nn.Module, **options: Any) -> od.StagedNetwork:
    torch.manual_seed(0)
    for parameter in end.parameters():
        nn.init.normal_(parameter)
    return od.stage(Model(end).eval(), example=X, exits="all", **options)


@pytest.mark.usefixtures("registry")
def test_the_page_on_extending_runs_as_printed_and_its_head_works_in_both(tmp_path: Path) -> None:
    section = EXTENDING.split("## A kind of exit head")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    given = {"nn": nn, "Tensor": Tensor, "State": State, "Place": Place, "HeadKind": HeadKind, "register": register}
    exec(code, scope := {**given, "od": od})
    network = scope["network"]
    assert [exit.name for exit in network.exits[:2]] == ["stage1.block1", "stage1.block1+normed"]
    assert isinstance(network.heads[1], scope["Normed"])
    network.save(tmp_path)
    assert od.load_network(tmp_path).fingerprint() == network.fingerprint()
    other = staged(nn.Linear(8, 3), head="normed")
    assert all(isinstance(head, scope["Normed"]) for head in other.heads[:-1])
    assert not any(logits.any() for logits in other(X)[:-1])
    with pytest.raises(InputError, match=r"there is a kind of head named 'normed' \(mean over places, a norm"):
        exec(code, scope)


def test_a_name_is_taken_once_and_is_a_word() -> None:
    for name in HEADS:
        with pytest.raises(InputError, match=f"there is a kind of head named '{name}'"):
            register(HeadKind(name, "another", lambda place: nn.Identity()))
    with pytest.raises(InputError, match=r"named 'conv\+tail': give letters, digits and underscores"):
        register(HeadKind("conv+tail", "both", lambda place: nn.Identity()))


class Ends(nn.Module):
    """A hidden layer, the layer that answers, and what is made of its answer."""

    def __init__(self, after: nn.Module | None = None, linear: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.linear = nn.Linear(8, 4) if linear is None else linear
        self.after = nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(self.inner(x).tanh()))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.exp() + self.bias


@pytest.mark.parametrize("after", [nn.LogSoftmax(-1), nn.Softmax(-1), nn.Sigmoid(), nn.Tanh(), Scaled()])
def test_only_the_layer_that_answers_is_zeroed_whatever_stands_behind_it(after: nn.Module) -> None:
    """The hidden layer stays as it was trained, the answers are alike for all classes, and the zeros can learn."""
    network = staged(Ends(after), head="own")
    for logits, head in zip(network(X)[:-1], network.heads, strict=False):
        assert float((logits.max() - logits.min()).detach()) < 1e-6
        assert torch.equal(head.end.inner.weight, network.heads[-1].end.inner.weight)
        assert not head.end.linear.weight.any()
    loss = F.cross_entropy(network(X)[0], torch.arange(6) % 4)
    loss.backward()
    assert network.heads[0].end.linear.weight.grad.abs().sum() > 0.01


@pytest.mark.parametrize(
    "norm",
    [weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
     parametrizations.orthogonal],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_norm_of_the_weights_that_answer_is_taken_off_the_copy_and_left_on_the_model(norm: Any) -> None:
    network = staged(Ends(linear=norm(nn.Linear(8, 4))), head="own")
    answers = network(X)
    assert not any(logits.any() for logits in answers[:-1])
    assert answers[-1].any()
    early, last = network.heads[0].end.linear, network.heads[-1].end.linear
    network.full(X).sum().backward()  # the model is as it was
    assert isinstance(early.weight, nn.Parameter)
    assert not isinstance(last.weight, nn.Parameter)
    answers[0].square().add(answers[0]).sum().backward()
    assert early.weight.grad.abs().sum() > 0


class Functional(nn.Module):
    """The weights that answer are no module's: a projection, as CLIP has one, averaged over two."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.one, self.other = nn.Parameter(torch.zeros(8, 4)), nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).relu()
        return (x @ self.one + F.linear(x, self.other)) / 2


def test_weights_that_are_no_layers_are_found() -> None:
    network = staged(Functional(), head="own")
    assert not any(logits.any() for logits in network(X)[:-1])
    early = network.heads[0]
    assert not any(parameter.any() for name, parameter in early.named_parameters() if "inner" not in name)
    assert all(parameter.any() for name, parameter in early.named_parameters() if "inner" in name)


class Cosine(nn.Module):
    """Divides by the size of its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Norm(nn.Module):
    """Has nothing learned behind the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Compared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return (y[:, None] @ y[:, :, None])[:, 0]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (Ends(nn.ReLU()), "with zeros in .*linear.weight it cannot learn: what stands behind passes on no sound"),
        (Ends(nn.LayerNorm(4)), "with zeros in .*linear.weight its answers are not alike"),
        (Cosine(), "the weights of its answering layer are computed from .*weight"),
        (Norm(), "its answer is made of the states with no linear layer between"),
        (Compared(), "its answer is a product of two states"),
    ],
)  # fmt: skip
def test_an_end_that_could_not_learn_from_zero_is_not_copied(end: nn.Module, reason: str) -> None:
    with pytest.raises(InputError, match=f"head='own' at blocks.0: of the model's own head, {reason}") as error:
        staged(end, head="own")
    assert str(error.value).endswith("give head='linear'")
    assert "\n" not in str(error.value)
    assert all(isinstance(head, PooledLinear) for head in staged(end).heads[:-1])


@pytest.mark.usefixtures("registry")
def test_a_head_of_ones_own_that_could_not_learn_is_refused() -> None:
    register(HeadKind("mute", "no weights", lambda place: nn.Flatten()))
    with pytest.raises(InputError, match=r"head='mute' at blocks\.0: its answer is made of the states with no linear"):
        staged(nn.Linear(8, 3), head="mute")


def test_an_example_of_zeros_says_nothing_of_what_can_learn() -> None:
    head = nn.Linear(8, 3, bias=False)
    silence(head, torch.zeros(2, 8))
    assert not head.weight.any()
