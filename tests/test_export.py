"""A bundle answers as the engine does, without torch, runs nothing that is not needed, and is refused when unsound."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optdepth.costs import flops
from optdepth.errors import InputError
from optdepth.export.onnx import export
from optdepth.export.runtime import Runtime
from optdepth.inference.engine import Engine
from optdepth.networks import Exit, StagedNetwork
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.stopping.snell import snell
from optdepth.trace import Costs
from test_engine import Setting


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.fixture(scope="module")
def bundle(setting: Setting, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export(setting.network, rule_of(setting), setting.inputs[:32], folder)
    return folder


def rule_of(setting: Setting):
    rule = snell(setting.fit, price=0.2, features=("margin", "entropy", "streak"))
    assert len(np.unique(rule.exits(setting.test))) == 3, "a rule that uses every exit"
    return rule


@pytest.mark.parametrize("size", [1, 2, 33, 200])
def test_a_bundle_answers_as_the_engine_for_any_batch(setting: Setting, bundle: Path, size: int) -> None:
    runtime, inputs = Runtime(bundle, threads=1), setting.inputs[200 : 200 + size]
    found, expected = runtime(inputs.numpy()), Engine(setting.network, rule_of(setting))(inputs)
    assert np.array_equal(found.exit, expected.exit.numpy())
    assert np.array_equal(found.cost, expected.cost.numpy())
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
    assert found.unit == expected.unit


def test_graphs_run_on_survivors_and_not_at_all_without_any(setting: Setting, bundle: Path) -> None:
    runtime = Runtime(bundle)
    sizes: list[int] = []

    class Counting:
        def __init__(self, graph) -> None:
            self.graph, self.exit = graph, graph.exit

        def __call__(self, carried):
            sizes.append(len(carried[0]))
            return self.graph(carried)

    runtime.graphs = [Counting(graph) for graph in runtime.graphs]
    inputs = setting.inputs[200:].numpy()
    exits = runtime(inputs).exit
    assert sizes == [int((exits >= k).sum()) for k in range(3)]
    sizes.clear()
    runtime(inputs[exits == 0])
    assert len(sizes) == 1


def test_serving_imports_no_torch(setting: Setting, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", setting.inputs[200:264].numpy())
    code = f"""
import sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "sklearn", "safetensors", "onnx", "matplotlib"):
            raise ImportError(f"{{name}} is not to be had here")
sys.meta_path.insert(0, Refuses())
import numpy as np
from optdepth.export.runtime import Runtime
print(Runtime({str(bundle)!r})(np.load({str(tmp_path / "inputs.npy")!r})).exit.tolist())
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == Engine(setting.network, rule_of(setting))(setting.inputs[200:264]).exit.tolist()


class Tokens(nn.Module):
    """Token ids (n, t), 0 for padding, to a hidden state and its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.embed(ids), "mask": ids != 0}


class Layer(nn.Module):
    """Attention over the tokens that the mask allows, and a small network; the mask goes through untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        x = state["hidden"]
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        weights = scores.masked_fill(~state["mask"][:, None], float("-inf")).softmax(-1)
        return {"hidden": self.norm(x + self.out(weights @ self.value(x)).relu()), "mask": state["mask"]}


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        return self.linear(state["hidden"][:, 0])


def test_an_encoder_is_exported_with_mask_and_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exits = [Exit(f"layer{k}", k + 1) for k in range(3)]
    network = StagedNetwork(Tokens(), [Layer() for _ in range(3)], [First() for _ in range(3)], exits).eval()

    def sentences(count: int, length: int) -> Tensor:
        ids = torch.randint(1, 30, (count, length))
        return ids * (torch.arange(length) < torch.randint(2, length + 1, (count, 1)))

    origin = Origin(flops(network, sentences(2, 8)).relative(), network.fingerprint())
    rule = Threshold(origin, "margin", torch.tensor([0.3, 0.2]))
    export(network, rule, [sentences(8, 12), sentences(5, 7)], tmp_path / "bundle")
    runtime, engine = Runtime(tmp_path / "bundle"), Engine(network, rule)
    seen = set()
    for count, length in ((1, 5), (40, 20), (64, 12)):
        ids = sentences(count, length)
        found, expected = runtime(ids.numpy()), engine(ids)
        assert np.array_equal(found.exit, expected.exit.numpy())
        np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
        seen |= set(found.exit.tolist())
    assert seen == {0, 1, 2}


def test_exits_that_are_not_looked_at_are_not_in_the_bundle(setting: Setting, tmp_path: Path) -> None:
    rule = FixedDepth(Origin.of(setting.fit), 1)
    written = export(setting.network, rule, setting.inputs[:4], tmp_path / "bundle")
    runtime = Runtime(tmp_path / "bundle")
    assert [graph.exit for graph in runtime.graphs] == [1, 2]
    assert (runtime(setting.inputs[:9].numpy()).exit == 1).all()
    assert "2 graphs" in str(written)


def test_unsound_bundles_are_refused_in_one_line(setting: Setting, bundle: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in bundle.iterdir()}
    manifest = json.loads(whole["manifest.json"])

    def refused(match: str, **files: bytes) -> None:
        for name, content in (whole | files).items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=match) as error:
            Runtime(tmp_path)
        assert "\n" not in str(error.value)

    edited = lambda **changes: json.dumps(manifest | changes).encode()  # noqa: E731
    with pytest.raises(InputError, match="no such file"):
        Runtime(tmp_path / "nowhere")
    refused("is damaged", **{"manifest.json": whole["manifest.json"][:-30]})
    refused("is not an optdepth.bundle file", **{"manifest.json": edited(format="other")})
    refused("has version 2, this optdepth reads 1", **{"manifest.json": edited(version=2)})
    refused("is damaged", **{"manifest.json": edited(graphs=manifest["graphs"][:2])})
    refused("is damaged", **{"manifest.json": edited(paid="much")})
    refused("checksum", **{"exit1.onnx": whole["exit1.onnx"][:-1]})
    elsewhere = [manifest["graphs"][0] | {"file": "../bundle/exit0.onnx"}, *manifest["graphs"][1:]]
    refused("lacks its graph", **{"manifest.json": edited(graphs=elsewhere)})


def test_inputs_that_do_not_fit_are_refused(setting: Setting, bundle: Path) -> None:
    runtime, inputs = Runtime(bundle), setting.inputs[:4].numpy().copy()
    for wrong in (inputs.astype(np.float64), inputs[:0], inputs[:, :, :4], inputs[0]):
        with pytest.raises(InputError, match=r"the bundle takes float32, \(any, 1, 8, 8\)"):
            runtime(wrong)
    inputs[2, 0, 1, 1] = np.inf
    with pytest.raises(InputError, match="sample 2 of the batch holds NaN"):
        runtime(inputs)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two samples"):
        export(setting.network, setting.rules["snell"], setting.inputs[:1], tmp_path / "bundle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else than a bundle"):
        export(setting.network, setting.rules["snell"], setting.inputs[:2], tmp_path / "full")

    class Branching(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state if state.sum() > 0 else -state

    class Random(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return state + 10 * torch.rand_like(state)

    rule = Threshold(Origin(Costs.of([1.0, 2.0])), "margin", torch.tensor([0.5]))
    for stage, message in (
        (Branching(), "torch cannot export the network up to exit 0"),
        (Random(), "the graph of exit 0 does not agree with torch"),
    ):
        heads = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]
        network = StagedNetwork(nn.Identity(), [stage, nn.Flatten()], heads, [Exit("a", 1), Exit("b", 2)])
        with pytest.raises(InputError, match=message):
            export(network, rule, setting.inputs[:4], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
