"""Bundles of networks in half precision: held against torch by what such numbers can tell, cast where numpy cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import optdepth as od
from optdepth.errors import InputError
from optdepth.export.bundle import Bundle, export
from optdepth.export.precision import Precision
from optdepth.export.runtime import Runtime
from optdepth.inference.engine import Engine
from optdepth.networks import StagedNetwork, resnet
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.rule import Origin
from settings import Setting, widest_gap
from zoo import speaking, tokens

pytest.importorskip("onnxruntime", reason="pip install 'optdepth[onnx]'")


def halved(setting: Setting, kind: torch.dtype) -> StagedNetwork:
    network = resnet(8, classes=4, channels=1, width=8, exits="all", seed=0)
    network.load_state_dict(setting.network.state_dict())
    return network.to(kind).eval()


def confident(network: StagedNetwork, cuts: Tensor) -> Threshold:
    costs = od.Costs.of([1.0, 2.0, 3.0])
    return Threshold(Origin(costs, network.fingerprint()), "confidence", cuts)


def bundled(setting: Setting, kind: torch.dtype, folder: Path) -> tuple[Bundle, Engine]:
    network = halved(setting, kind)
    rule = confident(network, torch.tensor([0.8, 0.72]))
    return export(network, rule, setting.inputs[200:264].to(kind), folder), Engine(network, rule)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_bundle_answers_as_a_network_in_half_precision(setting: Setting, kind: torch.dtype, tmp_path: Path) -> None:
    """At cuts far from every sample's score, where no rounding decides: the same exits on samples not exported with."""
    made, engine = bundled(setting, kind, tmp_path / "bundle")
    takes = np.float16 if kind == torch.float16 else np.float32
    assert made.takes == f"{np.dtype(takes)} (n, 1, 8, 8)"
    assert (made.elsewhere, made.precision) == (0, str(kind).removeprefix("torch."))
    assert "the same exits as torch on 64 samples, logits within" in str(made)
    inputs = setting.inputs[264:400].to(kind)
    runtime, expected = Runtime(tmp_path / "bundle"), engine(inputs)
    for size in (1, 40, 136):
        found = [runtime(part.float().numpy().astype(takes)) for part in inputs.split(size)]
        assert np.array_equal(np.concatenate([one.exit for one in found]), expected.exit)
        logits = torch.from_numpy(np.concatenate([one.logits for one in found])).float()
        allowed = 16 * torch.finfo(kind).eps * expected.logits.abs().max()
        assert (logits - expected.logits.float()).abs().max() <= allowed
    assert len(np.unique(expected.exit)) == 3


@pytest.mark.parametrize("kind", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_bundle_of_an_encoder_in_half_precision(kind: torch.dtype, tmp_path: Path) -> None:
    network, batches = speaking("transformers bert").to(kind), [tokens((9, 5, 7) * 4), tokens((12, 3, 8) * 4)]
    with torch.no_grad():
        seen = [torch.cat(each).float().softmax(-1).amax(-1) for each in zip(*map(network, batches), strict=True)]
    rule = confident(network, torch.tensor([widest_gap(scores) for scores in seen[:-1]]))
    made = export(network, rule, batches, tmp_path / "bundle")
    assert made.precision == str(kind).removeprefix("torch.")
    runtime, given = Runtime(tmp_path / "bundle"), tokens((6, 4))
    found = runtime({name: tensor.numpy() for name, tensor in given.items()})
    assert found.logits.dtype == (np.float16 if kind == torch.float16 else np.float32)
    assert found.exit.shape == (2,)


def test_samples_that_half_precision_stops_elsewhere_are_counted(setting: Setting, tmp_path: Path) -> None:
    """Cuts in between what torch says in bfloat16 and in float32 of one sample: the bundle goes by float32."""
    network, inputs = halved(setting, torch.bfloat16), setting.inputs[200:264]
    wide = Precision(network, [inputs.bfloat16()]).network
    with torch.no_grad():
        half, full = (
            net(x)[0].float().softmax(-1).amax(-1)
            for net, x in ((network, inputs.bfloat16()), (wide, inputs.bfloat16().float()))
        )
    cut = float((half[0] + full[0]) / 2) if half[0] != full[0] else pytest.fail("the two are the same number")
    rule = confident(network, torch.tensor([cut, 0.72]))
    there = Engine(network, rule)(inputs.bfloat16()).exit.numpy()
    made = export(network, rule, inputs.bfloat16(), tmp_path / "bundle")
    found = Runtime(tmp_path / "bundle")(inputs.bfloat16().float().numpy())
    assert found.exit[0] != there[0]
    assert made.elsewhere == (found.exit != there).sum() > 0
    assert f"on 64 samples but {made.elsewhere}, where bfloat16 rounds, logits within" in str(made)


def test_what_is_further_off_than_half_precision_is_refused() -> None:
    exact = torch.tensor([[8.0, -4.0, 0.5], [1.0, 2.0, -torch.inf]])
    for kind, off in ((torch.float32, 1e-2), (torch.float16, 0.2), (torch.bfloat16, 2.0)):
        its = exact.to(kind)
        assert Precision.alike(exact.numpy(), its) == pytest.approx(0.0, abs=1e-6)
        assert Precision.alike(exact.numpy() + np.float32(off), its) is None
    assert Precision.alike(exact.numpy() + np.float32(0.1), exact.half()) == pytest.approx(0.1, rel=1e-3)


def test_inputs_in_another_precision_than_the_network_are_refused(setting: Setting, tmp_path: Path) -> None:
    network = halved(setting, torch.float16)
    with pytest.raises(InputError, match=r"give floats as torch\.float16, the type of its weights"):
        export(network, confident(network, torch.tensor([0.8, 0.72])), setting.inputs[:8], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
