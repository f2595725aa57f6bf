"""The study of L_depth in its short form: the same code on the digits, and it goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch

from optdepth.errors import InputError
from optdepth.networks import load_network

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    torch.set_num_threads(1)
    import depth_loss

    return depth_loss


def test_the_study_judges_arms_and_resumes(study, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    given = ["--short", "--runs", str(runs), "--out", str(out)]
    study.main([*given, "--arms", "plain+taught,cascade"])
    folder = out / "digits-short"
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert set(files) == {"plain-0.json", "plain+taught-0.json", "shallow-0.json", "cascade-0.json"}
    plain, taught = (json.loads(files[f"{arm}-0.json"]) for arm in ("plain", "plain+taught"))
    # A frozen trunk leaves the last exit as it was, to the bit; early exits and costs are there to judge.
    assert taught["accuracy"]["test"][-1] == plain["accuracy"]["test"][-1]
    assert taught["costs"]["reach"][-1] + taught["costs"]["probe"][-1] == pytest.approx(1)
    kept = load_network(runs / "digits-short" / "plain+taught-0" / "network")
    assert kept.heads[0].look is not None
    assert len(taught["sweep"]) == 13
    for found in taught["sweep"]:
        test = found["methods"]["snell"]["test"]
        assert test["value"] == pytest.approx(test["loss"] + found["price"] * test["cost"])
        assert sum(test["shares"]) == pytest.approx(1, abs=1e-3)
    (folder / "plain+taught-0.json").unlink()
    study.main([*given, "--arms", "plain+taught"])
    again = json.loads((folder / "plain+taught-0.json").read_text())
    assert again["sweep"] == taught["sweep"]
    assert (folder / "plain-0.json").read_bytes() == files["plain-0.json"]
    tables = (folder / "tables.md").read_text()
    assert "| plain+taught |" in tables
    assert {path.name for path in folder.glob("*.svg")} == {"frontier.svg", "exits.svg"}


def test_an_unknown_arm(study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no arm 'best'"):
        study.main(["--short", "--out", str(tmp_path), "--arms", "best"])


def test_every_arm_starts_from_arms_that_are_there(study) -> None:
    for arm in study.ARMS.values():
        assert set(arm.needs) <= set(study.ARMS)
        assert (arm.kind == "cascade") == bool(arm.members)
