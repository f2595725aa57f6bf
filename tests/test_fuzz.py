"""A short run of `benchmarks/fuzz.py`: whatever is in a file, it is refused in a line or answers as before."""

from pathlib import Path

import pytest

from checker import unchecked

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_mutated_files_are_refused_or_answer_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fuzz import SOUND, fuzz

    with unchecked():
        trials = fuzz(mutations=240, seed=2)
    assert not [trial for trial in trials if trial.outcome not in SOUND]
    assert {trial.sort for trial in trials} == {"accident", "nonsense"}
    assert len({trial.kind for trial in trials}) == 15
    assert sum(trial.outcome == "refused" for trial in trials) > 200
