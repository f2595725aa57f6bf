"""The matrix of settings holds every value, replaces what a processor cannot run, and fails where a run does."""

import pytest

import matrix
from matrix import ROWS, Outcome, Row, environment, main, possible


def test_every_value_is_in_some_row() -> None:
    assert {row.aten for row in ROWS} == {"default", "avx2", ""}
    assert {row.openblas for row in ROWS} == {"Haswell", "Zen", "SkylakeX", ""}
    assert {row.threads for row in ROWS} == {1, 2}
    assert len({row.seed for row in ROWS}) == 3


def test_what_a_row_leaves_unset_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    given = environment(Row("", "Zen", 2, 1))
    assert "ATEN_CPU_CAPABILITY" not in given
    assert (given["OPENBLAS_CORETYPE"], given["OMP_NUM_THREADS"]) == ("Zen", "2")


def test_kernels_that_the_processor_lacks_are_replaced_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "runs_here", lambda row: row.openblas != "SkylakeX" and row.aten != "avx2")
    assert possible(Row("avx2", "SkylakeX", 2, 2)) == Row("", "Zen", 2, 2)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "this processor cannot run OPENBLAS_CORETYPE=SkylakeX: Zen in its place",
        "this processor cannot run ATEN_CPU_CAPABILITY=avx2: unset in its place",
    ]


@pytest.mark.parametrize("failing", [0, 1])
def test_any_failure_is_the_matrix_s(
    failing: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = iter([Outcome(0, "8 passed", 61.0), Outcome(failing, f"{failing} failed", 59.6)])
    monkeypatch.setattr(matrix, "runs_here", lambda row: True)
    monkeypatch.setattr(matrix, "suite", lambda row: next(ends))
    assert main(["1", "5"]) == failing
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "ATEN     OPENBLAS  threads seed seconds  outcome",
        "default  Haswell         1    1      61  8 passed",
        f"avx2     unset           1    2      60  {failing} failed",
    ]
