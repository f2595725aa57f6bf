"""The benchmark of self-speculation in its short form."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.usefixtures("repeated")
def test_every_way_is_on_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decoding
    from figures import load

    with torch.random.fork_rng():
        decoding.main(["--short", "--tokens", "10", "--learn", "12", "--out", str(tmp_path)])
    figures = load(tmp_path / "decoding.json")
    assert set(figures["found"]) == {"float32", "bfloat16"}
    for found in figures["found"].values():
        ways = {row["way"] for row in found["rows"]}
        assert {"generate", "solved", "prompt_lookup", "assistant_early_exit", "exit 1, 2 passes"} <= ways
        assert len(found["rows"]) == len(ways) * figures["prompts"]
        assert [row["exit"] for row in found["costs"]] == [1]
    same = [row["same"] for row in figures["found"]["float32"]["rows"] if row["way"] != "prompt_lookup"]
    assert all(same)
    assert "## bfloat16" in (tmp_path / "decoding.md").read_text()


def test_prompts_that_judge_have_other_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from decoding_prompts import prompts

    fitting, judging = (prompts(None, 100, judged=judged) for judged in (False, True))
    for kind in ("instructions", "code", "stories"):
        assert len(set(fitting[kind])) > 20
        assert not set(fitting[kind]) & set(judging[kind])


@pytest.mark.parametrize(("verify", "least"), [([1.0, 1.0], 0.16), ([1.0, 2.0], None)])
def test_the_share_that_must_agree(monkeypatch: pytest.MonkeyPatch, verify: list[float], least: float | None) -> None:
    """With one draft: 1 + share tokens for two passes of 0.075 and a verification, against 1.075 for one token."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import numpy as np

    import decoding
    from optdepth.stopping.drafts import DraftCosts

    found = decoding.needed(DraftCosts(1.0, 0.075, 0.01, np.array(verify)), 1.0)
    assert found == (None if least is None else pytest.approx(least))
