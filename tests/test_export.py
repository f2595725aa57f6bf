"""A bundle answers as the engine does, without torch, runs nothing that is not needed, and is refused when unsound."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from checker import unchecked
from optdepth.batch import Inputs
from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.export.bundle import export
from optdepth.export.runtime import Runtime
from optdepth.inference.engine import Engine
from optdepth.inference.stream import stream
from optdepth.networks import Exit, StagedNetwork
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import FixedDepth, Origin, Rule
from settings import Glancing, Setting
from stamped import restamp_json
from zoo import deciding, images, speaking, tokens


@pytest.fixture(scope="module")
def bundle(setting: Setting, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export(setting.network, setting.rules["additive"], setting.inputs[:32], folder)
    return folder


@pytest.mark.parametrize("size", [1, 2, 33, 200])
def test_a_bundle_answers_as_the_engine_for_any_batch(setting: Setting, bundle: Path, size: int) -> None:
    runtime, inputs = Runtime(bundle, threads=1), setting.inputs[200 : 200 + size]
    found, expected = runtime(inputs.numpy()), Engine(setting.network, setting.rules["additive"])(inputs)
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
    assert json.loads(done.stdout) == setting.stops["additive"][200:264].tolist()


class Tokens(nn.Module):
    """Token ids, 0 for padding, and their kinds, (n, t) each, to a hidden state and its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.kind = nn.Embedding(30, 16), nn.Embedding(2, 16)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        ids, kinds = inputs
        return {"hidden": self.embed(ids) + self.kind(kinds), "mask": ids != 0}


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


def answers_as(network: StagedNetwork, rule: Rule, runtime: Runtime, inputs: Inputs) -> set[int]:
    """The exits taken, which must be the engine's, as must be logits and costs."""
    found, expected = runtime(tree_map(lambda tensor: tensor.numpy(), inputs)), Engine(network, rule)(inputs)
    assert np.array_equal(found.exit, expected.exit.numpy())
    assert np.array_equal(found.cost, expected.cost.numpy())
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
    return set(found.exit.tolist())


def test_a_state_with_a_mask_and_inputs_that_are_a_tuple(tmp_path: Path) -> None:
    exits, generator = [Exit(f"layer{k}", k + 1) for k in range(3)], torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StagedNetwork(Tokens(), [Layer() for _ in range(3)], [First() for _ in range(3)], exits).eval()

    def sentences(count: int, length: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1, 30, (count, length), generator=generator)
        lengths = torch.randint(2, length + 1, (count, 1), generator=generator)
        return ids * (torch.arange(length) < lengths), ids % 2

    unseen = [sentences(*sizes) for sizes in ((1, 5), (40, 20), (64, 12))]
    rule = deciding(network, unseen)
    export(network, rule, [sentences(8, 12), sentences(5, 7)], tmp_path / "bundle")
    runtime = Runtime(tmp_path / "bundle")
    assert runtime.takes == "a tuple of int64 (n, m1), int64 (n, m1)"
    assert set.union(*(answers_as(network, rule, runtime, inputs) for inputs in unseen)) == {0, 1, 2}
    ids, kinds = (tensor.numpy() for tensor in sentences(4, 6))
    for wrong, words in (
        ((ids,), "inputs are a tuple of 1"),
        (ids, "inputs are a ndarray"),
        ((ids, kinds[:, :5]), r"inputs\[1\] is int64 \(4, 5\)"),
        ((ids, kinds[:3]), r"inputs\[1\] is int64 \(3, 6\)"),
    ):
        with pytest.raises(InputError, match=words):
            runtime(wrong)


SEEN = tokens((9, 5, 7, 3)), tokens((12, 8, 2))
UNSEEN = tokens((20, 3, 11, 6, 1) * 6), tokens((7,) * 10), tokens((4,)), tokens((1,))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[StagedNetwork, Rule, Path]:
    """A staged BERT, a rule, and their bundle."""
    network = speaking("transformers bert")
    rule, folder = deciding(network, UNSEEN), tmp_path_factory.mktemp("export") / "encoder"
    export(network, rule, list(SEEN), folder)
    return network, rule, folder


def test_a_staged_encoder_is_served_at_sizes_and_lengths_that_it_was_not_exported_at(encoder) -> None:
    network, rule, folder = encoder
    runtime = Runtime(folder)
    assert set.union(*(answers_as(network, rule, runtime, inputs) for inputs in UNSEEN)) == {0, 1, 2}
    backwards = dict(reversed(UNSEEN[0].items()))
    answers_as(network, rule, runtime, backwards)
    # Padding says nothing: a sentence alone is answered as among longer ones.
    arrays = {name: tensor.numpy() for name, tensor in UNSEEN[0].items()}
    together = runtime(arrays)
    alone = runtime({name: array[1:2, :3] for name, array in arrays.items()})
    assert alone.exit[0] == together.exit[1]
    np.testing.assert_allclose(alone.logits[0], together.logits[1], rtol=1e-4, atol=1e-4)


def test_inputs_that_a_bundle_does_not_take_are_refused_in_one_line(encoder) -> None:
    runtime = Runtime(encoder[2])
    ids, mask = (tensor.numpy() for tensor in SEEN[0].values())
    for wrong, words in (
        (ids, "inputs are a ndarray"),
        ((ids, mask), "inputs are a tuple of 2"),
        ({"input_ids": ids}, "inputs of the names input_ids"),
        ({"input_ids": ids, "mask": mask}, "inputs of the names input_ids, mask"),
        ({"input_ids": ids.tolist(), "attention_mask": mask}, "input_ids is a list, no array"),
        ({"input_ids": ids, "attention_mask": mask.astype(np.float32)}, r"attention_mask is float32 \(4, 9\)"),
        ({"input_ids": ids, "attention_mask": mask[:, :1]}, r"attention_mask is int64 \(4, 1\)"),
        ({"input_ids": ids, "attention_mask": mask[:3]}, r"attention_mask is int64 \(3, 9\)"),
        ({"input_ids": ids[:0], "attention_mask": mask[:0]}, "an empty batch"),
    ):
        with unchecked(), pytest.raises(InputError, match=words) as error:
            runtime(wrong)
        assert "takes a dict of input_ids int64 (n, m1), attention_mask int64 (n, m1)" in str(error.value)
    for beyond in (ids + 60, ids.repeat(4, 1)):  # no such token, no such position
        with pytest.raises(InputError, match="the graph of exit 0 cannot run on these inputs") as error:
            runtime({"input_ids": beyond, "attention_mask": np.ones_like(beyond)})
        assert "\n" not in str(error.value)


def test_a_staged_network_of_other_people_exports_and_streams(tmp_path: Path) -> None:
    network, inputs = speaking("transformers resnet"), images(40)
    rule = deciding(network, [inputs])
    export(network, rule, inputs[:3], tmp_path / "bundle")
    assert answers_as(network, rule, Runtime(tmp_path / "bundle"), inputs) == {0, 1, 2}
    expected = Engine(network, rule)(inputs)
    for answer in stream(Engine(network, rule), inputs, batch=8):
        assert answer.exit == int(expected.exit[answer.index])
        torch.testing.assert_close(answer.logits, expected.logits[answer.index], rtol=1e-4, atol=1e-4)


def test_recall_is_in_the_graphs(setting: Setting, tmp_path: Path) -> None:
    """Exit 1 answers by a pool, exit 2 by an earlier exit; nothing is remembered that no answer wants."""
    origin = replace(Origin.of(setting.fit), recall=((0, 0), (0, 1), (1, 1)))
    rule = Threshold(origin, "margin", torch.tensor([0.62, 0.63]))
    export(setting.network, rule, setting.inputs[:8], tmp_path / "bundle")
    runtime, inputs = Runtime(tmp_path / "bundle"), setting.inputs[200:]
    assert [graph.carries for graph in runtime.graphs] == [2, 2, 0]
    for part in (inputs, inputs[:1], inputs[1:8]):
        seen = answers_as(setting.network, rule, runtime, part)
        assert len(part) < 200 or seen == {0, 1, 2}
    without = Threshold(Origin.of(setting.fit), "margin", torch.tensor([0.62, 0.63]))
    own = Engine(setting.network, without)(inputs)
    found = runtime(inputs.numpy())
    unlike = np.abs(found.logits - own.logits.numpy()).max(axis=1) > 1e-3
    assert np.array_equal(unlike, own.exit.numpy() > 0)


def test_two_exits_behind_one_block(tmp_path: Path) -> None:
    given = Glancing()
    export(given.network, given.rule, given.inputs[:8], tmp_path)
    runtime = Runtime(tmp_path)
    assert [graph.exit for graph in runtime.graphs] == [0, 1, 2]
    assert answers_as(given.network, given.rule, runtime, given.inputs) == {0, 1, 2}


def test_exits_that_are_not_looked_at_and_what_nobody_reaches_are_not_in_the_bundle(
    setting: Setting, tmp_path: Path
) -> None:
    inputs = setting.inputs[200:209]
    pool, earlier = ((0, 0), (0, 1), (0, 2)), ((0, 0), (0, 1), (1, 1))
    for depth, recall, exits in ((1, (), [1]), (1, pool, [0, 1]), (2, earlier, [1, 2])):
        rule = FixedDepth(replace(Origin.of(setting.fit), recall=recall), depth)
        written = export(setting.network, rule, inputs[:4], tmp_path / "bundle")
        runtime = Runtime(tmp_path / "bundle")
        assert [graph.exit for graph in runtime.graphs] == exits
        assert answers_as(setting.network, rule, runtime, inputs) == {depth}
        assert f"{len(exits)} graph" in str(written)
        names = {re.sub("-[0-9a-f]{16}", "", path.name) for path in written.folder.iterdir()}
        assert names == {"manifest.json", *(f"exit{k}.onnx" for k in exits)}
        assert written.bytes == sum(path.stat().st_size for path in written.folder.iterdir())


def test_unsound_bundles_are_refused_in_one_line(setting: Setting, bundle: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in bundle.iterdir()}
    manifest = json.loads(whole["manifest.json"])

    def refused(match: str, **files: bytes) -> None:
        for name, content in (whole | files).items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=match) as error:
            Runtime(tmp_path)
        assert "\n" not in str(error.value)

    def edited(**changes: object) -> bytes:
        (tmp_path / "edited.json").write_bytes(whole["manifest.json"])
        restamp_json(tmp_path / "edited.json", **changes)
        return (tmp_path / "edited.json").read_bytes()

    with pytest.raises(InputError, match="no such file"):
        Runtime(tmp_path / "nowhere")
    refused("is damaged", **{"manifest.json": whole["manifest.json"][:-30]})
    refused("is not an optdepth.bundle file", **{"manifest.json": edited(format="other")})
    refused("has version 3, this optdepth reads 4; export it again", **{"manifest.json": edited(version=3)})
    refused("has version 5, this optdepth reads 4; export it again", **{"manifest.json": edited(version=5)})
    refused("no export backend 'other': give one of onnx", **{"manifest.json": edited(backend="other")})
    inputs, graphs = manifest["inputs"], manifest["graphs"]
    leaf = inputs["leaves"][0]
    for changes in (
        {"paid": "much"},
        {"paid": manifest["paid"][:2]},
        {"paid": [-1, *manifest["paid"][1:]]},
        {"graphs": []},
        {"graphs": graphs[:2]},
        {"graphs": graphs[::-1]},
        {"graphs": [graphs[0] | {"takes": 2}, *graphs[1:]]},
        {"graphs": [graphs[0] | {"takes": "many"}, *graphs[1:]]},
        {"inputs": []},
        {"inputs": [leaf]},
        {"inputs": inputs | {"form": "table"}},
        {"inputs": inputs | {"leaves": []}},
        {"inputs": inputs | {"leaves": [leaf, leaf]}},
        {"inputs": inputs | {"leaves": [leaf | {"dtype": "float33"}]}},
        {"inputs": inputs | {"leaves": [leaf | {"shape": []}]}},
        {"inputs": inputs | {"leaves": [leaf | {"shape": ["n", 1.5]}]}},
        {"inputs": inputs | {"leaves": [{"dtype": "float32", "shape": ["n"]}]}},
    ):
        refused("is damaged", **{"manifest.json": edited(**changes)})
    name = graphs[1]["file"]
    refused("checksum", **{name: whole[name][:-1]})
    mixed = whole["manifest.json"].replace(b'"unit": "', b'"unit": "other ')
    refused(r"manifest.json is damaged \(it is not as it was written, by its checksum\)", **{"manifest.json": mixed})
    elsewhere = [graphs[0] | {"file": "../bundle/exit0.onnx"}, *graphs[1:]]
    refused("lacks its graph", **{"manifest.json": edited(graphs=elsewhere)})


def test_inputs_that_do_not_fit_are_refused(setting: Setting, bundle: Path) -> None:
    runtime, inputs = Runtime(bundle), setting.inputs[:4].numpy().copy()
    for wrong in (inputs.astype(np.float64), inputs[:0], inputs[:, :, :4], inputs[0], {"inputs": inputs}, (inputs,)):
        with unchecked(), pytest.raises(InputError, match=r"the bundle takes float32 \(n, 1, 8, 8\)"):
            runtime(wrong)
    inputs[2, 0, 1, 1] = np.inf
    with pytest.raises(InputError, match="sample 2 of the batch holds NaN"):
        runtime(inputs)


def test_examples_that_are_no_inputs_are_refused(setting: Setting, tmp_path: Path) -> None:
    rule, inputs = setting.rules["additive"], setting.inputs
    for wrong, words in (
        (inputs[:1], "at least two samples"),
        ([inputs[:2], inputs[:1]], "at least two samples"),
        ([], "an empty list"),
        ([inputs[:2], {"images": inputs[:2]}], "a tensor of inputs and a dict of images"),
        ([inputs[:2], inputs[:2].double()], "float32 of 4 dimensions and torch.float64 of 4 dimensions"),
        (inputs[:2].bfloat16(), "give floats as torch.float32"),
        ((inputs[:2], inputs[:3]), "batches of sizes"),
        ({"images": inputs[:2]}, r"the network cannot run inputs\['images'\] float32"),
        (inputs[:2].numpy(), "give a tensor"),
    ):
        with unchecked(), pytest.raises(InputError, match=words) as error:
            export(setting.network, rule, wrong, tmp_path / "bundle")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_only_a_bundle_is_written_over(setting: Setting, bundle: Path, tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match=words):
            export(setting.network, setting.rules["additive"], setting.inputs[:2], folder)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    refused(tmp_path / "full", "something else than a bundle, thesis.txt")
    refused(tmp_path / "full" / "thesis.txt", "something else than a bundle, thesis.txt")
    refused(tmp_path / "full" / "thesis.txt" / "bundle", r"cannot write .*bundle \(.*\); give a place that")
    (tmp_path / "full" / "manifest.json").write_text("{}")  # other programs have manifests too
    refused(tmp_path / "full", "something else than a bundle")
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    refused(tmp_path / "bundle", "something else than a bundle, notes.txt")
    (tmp_path / "bundle" / "notes.txt").rename(tmp_path / "bundle" / "mine.onnx")
    refused(tmp_path / "bundle", "something else than a bundle, mine.onnx")
    (tmp_path / "bundle" / "mine.onnx").rename(tmp_path / "bundle" / "exit7-0123456789abcdef.onnx")  # named like ours
    refused(tmp_path / "bundle", "something else than a bundle, exit7-0123456789abcdef.onnx; give an empty folder, or")


def test_a_new_bundle_takes_an_older_ones_place_or_leaves_it_as_it_was(
    setting: Setting, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the manifest is replaced, what was written of the new bundle is known for a bundle's next time."""
    shutil.copytree(bundle, tmp_path / "bundle")
    whole, inputs = Path.replace, setting.inputs[:4]
    before = Runtime(bundle)(inputs.numpy())

    def killed(self: Path, target: Path) -> Path:
        if self.name == "manifest.json" and self.parent.name == ".unchecked":
            raise OSError("killed")
        return whole(self, target)

    rule = setting.rules["confidence"]
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(InputError, match="cannot write"):
        export(setting.network, rule, inputs, tmp_path / "bundle")
    monkeypatch.undo()
    np.testing.assert_array_equal(Runtime(tmp_path / "bundle")(inputs.numpy()).exit, before.exit)
    assert len(list((tmp_path / "bundle").glob("*.onnx"))) > len(list(bundle.glob("*.onnx")))
    written = export(setting.network, rule, inputs, tmp_path / "bundle")
    assert answers_as(setting.network, rule, Runtime(written.folder), inputs)
    graphs = json.loads((written.folder / "manifest.json").read_text())["graphs"]
    assert {path.name for path in written.folder.iterdir()} == {"manifest.json", *(graph["file"] for graph in graphs)}


@pytest.mark.parametrize("given", [{"providers": ["Abacus"]}, {"providers": ["CPUExecutionProvider", "Abacus"]}])
def test_a_provider_that_is_not_there_is_refused(bundle: Path, given) -> None:
    with pytest.raises(InputError, match=r"no provider 'Abacus' here for graphs of onnx: give some of .*CPUExecution"):
        Runtime(bundle, **given)
    assert len(Runtime(bundle, providers=["CPUExecutionProvider"]).graphs) == 3


def test_the_backend_on_the_page_on_extending_writes_and_serves(setting: Setting, tmp_path: Path, monkeypatch) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    from optdepth.export import BACKENDS, OnnxBackend, bundle, register

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optdepth.export.backend.BACKENDS", dict(BACKENDS))
    page = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page.split("## An export backend")[1].split("\n## ")[0], flags=re.S)
    rule, inputs = setting.rules["additive"], setting.inputs[:16]
    exec(
        code,
        {"network": setting.network, "rule": rule, "images": inputs, "onnx": onnx, "bundle": bundle}
        | {"ReferenceEvaluator": ReferenceEvaluator, "BACKENDS": BACKENDS, "register": register},
    )
    assert json.loads(Path("bundle/manifest.json").read_text())["backend"] == "reference"
    answers_as(setting.network, rule, Runtime("bundle"), inputs)
    with pytest.raises(InputError, match="there is an export backend named 'onnx'"):
        register(OnnxBackend())
    with pytest.raises(InputError, match="no export backend 'paper': give one of onnx, reference"):
        export(setting.network, rule, inputs, tmp_path / "other", backend="paper")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(setting: Setting, tmp_path: Path) -> None:
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
    assert not list(tmp_path.iterdir())
