"""Every public name shows how it is used, in an example that runs."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdepth as od
from settings import Residual
from zoo import library

NAMES = sorted(od.__all__)


def classifier() -> torch.nn.Module:
    """Three residual blocks over the pixels of a digit."""
    blocks = [Residual() for _ in range(3)]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), *blocks, torch.nn.Linear(8, 10)).eval()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples start from, as the package's own docstring says."""
    library("transformers")  # it loads beside a torchvision that does not
    data = od.load_data("digits", seed=0)
    network = od.resnet(8, classes=10, channels=1, width=4, seed=0).eval()
    images, labels = next(data.batches("test", 64))
    costs = od.flops(network, images).relative()
    fit, certify, test = (od.record(network, data.batches(name), costs) for name in ("fit", "certify", "test"))
    return {
        "od": od,
        "np": np,
        "torch": torch,
        "folder": tmp_path_factory.mktemp("examples"),
        "data": data,
        "classifier": classifier(),
        "network": network,
        "images": images,
        "labels": labels,
        "costs": costs,
        "fit": fit,
        "certify": certify,
        "test": test,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(given["folder"])
    text = getattr(od, name).__doc__ or ""
    assert ">>> " in text, f"od.{name} has no example in its docstring"
    found = doctest.DocTestParser().get_doctest(text, dict(given), name, None, None)
    shown: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(found, out=shown.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(shown)


def test_what_the_examples_start_from_is_said(given: dict[str, Any]) -> None:
    for name in set(given) - {"od", "np", "torch", "folder"}:
        assert f"`{name}`" in (od.__doc__ or ""), name


def test_the_public_names_are_few_and_grouped() -> None:
    assert 25 <= len(NAMES) <= 36
    stub = (Path(od.__file__).parent / "__init__.pyi").read_text()
    assert sorted(NAMES) == NAMES
    for name in NAMES:
        assert f'"{name}"' in stub
