"""`optdepth continuous`: every built-in problem and a trained flow drawn, with figures that machines can read."""

import json
import math
from pathlib import Path

import pytest

from optdepth.cli.steps import continuous
from optdepth.continuous.problems import EXAMPLES
from optdepth.flows import draw_continuous, study_flow


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_built_in_problem_is_solved_simulated_and_drawn(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    continuous(name, out=tmp_path, nodes=61, seed=0, as_json=True)
    (result,) = json.loads(capsys.readouterr().out)
    assert result["status"] == "converged"
    assert result["residual"] < 1e-9
    assert result["value"] == pytest.approx(result["simulated"], abs=0.3)
    assert len(result["boundary"]) > 0
    assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_the_setting_given_is_the_one_solved(tmp_path: Path) -> None:
    common = {"nodes": 801, "epochs": 1, "seed": 0, "progress": False}
    (result,) = draw_continuous("deterministic-flow", tmp_path, price=1.0, start=[-2.5], **common)
    assert result["value"] == pytest.approx(0.5 + math.log(2.5), abs=0.01)
    assert [edge[0] for edge in result["boundary"]] == pytest.approx([-1.0, 1.0], abs=0.01)
    before = (tmp_path / "deterministic-flow.svg").read_bytes()
    draw_continuous("deterministic-flow", tmp_path, price=1.0, start=[-2.5], **common)
    assert (tmp_path / "deterministic-flow.svg").read_bytes() == before


def test_a_flow_is_trained_solved_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    continuous("digits", out=tmp_path, price=0.1, epochs=2, seed=0, as_json=True)
    (result,) = json.loads(capsys.readouterr().out)
    assert result["samples"] == 359
    assert 0 < result["mean time"] < 1
    assert result["evaluations"] < result["evaluations in full"] == 64
    assert (tmp_path / "digits.svg").is_file()
    again = study_flow(
        tmp_path / "digits", price=0.1, epochs=2, seed=0, progress=False
    )  # trained already: used as it is
    assert again.result()["value"] == result["value"]
