"""What cannot be staged, and what each refusal says to do instead."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.errors import InputError
from optdepth.networks import stage
from settings import Residual
from zoo import SIZES, TEXT, images, library, tokens


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.Sequential(Residual(), Residual()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x))


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def refused(model: nn.Module, example: object, message: str, **options: object) -> None:
    with pytest.raises(InputError, match=message) as error:
        stage(model.eval(), example=example, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


class ByValues(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x) if x.sum() > 0 else x)


class InsideABlock(Model):
    class Layer(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(self.Layer(), self.Layer())


class OneBatch(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(x) + torch.ones(4, 8))


class Foreign(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.from_numpy(self.blocks(x).detach().numpy()))


def test_code_that_decides_by_values_is_told_where_whether_blocks_are_named_or_not() -> None:
    message = r"{} decides by values at test_refused.py:\d+, which a graph cannot .*such as torch.where"
    refused(ByValues(), X, message.format("ByValues"))
    refused(ByValues(), X, message.format("ByValues"), blocks="blocks")
    refused(InsideABlock(), X, message.format("InsideABlock"), blocks="blocks")


def test_code_for_one_batch_size_alone() -> None:
    refused(OneBatch(), X, "OneBatch works at the batch size of the example alone .*make its code work for any")


def test_blocks_are_to_be_named_only_where_they_were_not() -> None:
    refused(Foreign(), X, r"cannot follow Foreign at test_refused.py:\d+ .*name its blocks with blocks=\[")
    refused(
        Foreign(), X, r"cannot follow Foreign outside of its blocks at .*put that code into a module of its own",
        blocks="blocks",
    )  # fmt: skip


def test_wrappers_ask_for_the_model_inside() -> None:
    model = Model().eval()
    inside = {
        "the model is wrapped in DataParallel: give the model inside, model.module": nn.DataParallel(model),
        "the model is compiled: give the model inside, model._orig_mod": torch.compile(model),
    }
    for message, wrapped in inside.items():
        refused(wrapped, X, message)
    parts = Model()
    parts.blocks = torch.compile(parts.blocks)
    refused(
        parts, X, r"its submodule blocks is compiled: give the model inside, blocks\._orig_mod; Engine\(compile=True\)"
    )
    in_place = Model()
    in_place.compile()
    refused(in_place, X, "the model was compiled in place: stage the model before that")
    with unchecked(), pytest.raises(InputError, match="model is a str: give a torch module"):
        stage("resnet50", example=X)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("blocks", [None, "blocks"])
def test_weights_packed_by_torch_are_refused_with_the_reason(blocks: str | None) -> None:
    model = torch.ao.quantization.quantize_dynamic(Model().eval(), {nn.Linear}, dtype=torch.qint8)
    message = (
        r"its submodule blocks.0.linear is a quantised Linear of torch.ao, whose packed weights .*stage the model as"
    )
    refused(model, X, message, blocks=blocks)


class Dense(nn.Module):
    """An answer at every pixel, from a trunk that halves the map."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.blocks = nn.ModuleList(Convolved(stride) for stride in (1, 2, 1))
        self.last = nn.Sequential(nn.BatchNorm2d(8) if norm else nn.Identity(), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.interpolate(self.last(x), scale_factor=4.0)


class Convolved(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(8, 8, 3, stride, padding=1), nn.Conv2d(8, 8, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv(x).tanh()


def test_answers_at_every_pixel_have_exits_where_the_models_own_head_fits() -> None:
    network = stage(Dense().eval(), example=images(), exits="all")
    assert [exit.name for exit in network.exits] == ["blocks.1", "blocks.2"]
    assert [tuple(answer.shape) for answer in network(images())] == [(3, 5, 32, 32)] * 2


def test_answers_at_every_pixel_are_refused_once_where_it_does_not() -> None:
    refused(Dense(norm=True), images(), r"holds BatchNorm.*no other kind of head answers \(3, 5, 32, 32\)")
    for head in ("linear", "token"):
        refused(Dense(norm=True), images(), "holds BatchNorm", head=head)
    refused(Dense(), images(), r"answers \(n, classes\), the network \(3, 5, 32, 32\): give head='own'", head="linear")
    alone = Dense()
    del alone.blocks[2]
    message = (
        r"answers .*, one for each place, and no state before .* blocks.1 has the shape .* cannot have early exits"
    )
    refused(alone, images(), message)


class Compared(Model):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x @ x.T


def test_an_answer_that_compares_samples() -> None:
    refused(Compared(), X, r"the answer has shape .* is not a row a sample: where it compares the samples.*one tower")


def test_two_towers_of_a_library() -> None:
    transformers = library("transformers")
    torch.manual_seed(0)
    text = {**SIZES, **TEXT, "projection_dim": 16, "eos_token_id": 3}
    vision = {**SIZES, "projection_dim": 16, "image_size": 32, "patch_size": 8}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    both = {**tokens(), "pixel_values": images()}
    refused(clip, both, "'logits_per_image', 'logits_per_text', .*: say with output= which tensor")
    refused(clip, both, "it compares the samples of a batch with each other", output="logits_per_image")


BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")\n'


@pytest.mark.parametrize("name", ["torchvision", "transformers"])
def test_a_torchvision_of_another_build_is_said_once_with_the_remedy(name: str, tmp_path: Path) -> None:
    for package, content in (("torchvision", BROKEN), ("transformers", "")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(content)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from optdepth.errors import InputError
from optdepth.libraries import library
for _ in range(2):
    try:
        library({name!r})
    except InputError as error:
        print(error)
try:
    library("no_such_library")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    first, second, third = done.stdout.splitlines()
    assert first == second
    assert "was built for another build of torch than" in first
    assert f"{name} does not load beside it: install both from one index" in first
    assert third == "no_such_library is not installed: pip install 'optdepth[no_such_library]'"


def test_weights_of_a_type_of_their_own_are_staged_and_counted_and_not_saved(tmp_path: Path) -> None:
    model = Model().eval()
    plain, expected = stage(model, example=X, exits="all"), model(X)
    for linear in (model.blocks[0].linear, model.blocks[1].linear, model.last):
        linear.weight = nn.Parameter(Wrapped(linear.weight.detach()))
    network = stage(model, example=X, exits="all")
    assert torch.equal(network.full(X), expected)
    assert od.flops(network, X).reach.tolist() == od.flops(plain, X).reach.tolist()
    assert network.fingerprint() == network.fingerprint()
    with pytest.raises(
        InputError, match="weights of type Wrapped cannot be saved: save the network before it is quant"
    ):
        network.save(tmp_path)


class Wrapped(Tensor):
    """A tensor made of another one, as quantised weights are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = lambda leaf: leaf.inner if isinstance(leaf, Wrapped) else leaf  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        found = func(*args, **kwargs)
        return Wrapped(found) if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default) else found


def test_a_mapping_that_is_no_dict_goes_where_a_dict_goes(tmp_path: Path) -> None:
    """What a tokenizer returns, from staging to serving."""
    from zoo import build

    transformers = library("transformers")
    model, example = build("transformers bert")
    batch = transformers.BatchEncoding(dict(example))
    network = stage(model, example=batch, exits="all")
    assert torch.equal(network.full(batch), network.full(example))
    costs = od.flops(network, batch)
    assert costs.reach.tolist() == od.flops(network, example).reach.tolist()
    labels = torch.tensor([0, 1, 0])
    trace = od.record(network, [(batch, labels)], costs)
    rule = od.stopping.rule.FixedDepth(od.stopping.rule.Origin.of(trace), 1)
    assert torch.equal(od.Engine(network, rule)(batch).logits, od.Engine(network, rule)(example).logits)
    many = transformers.BatchEncoding({name: tensor.repeat(4, 1) for name, tensor in example.items()})
    table = (many, torch.arange(12) % 2)
    data = od.TensorData.of("made up", table, table, fit=0.3, certify=0.3, seed=0)
    assert set(next(data.batches("test"))[0]) == set(example)
