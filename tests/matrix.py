"""Runs the suite under settings that round, share the cores and order otherwise, and says how each went.

    python tests/matrix.py            # every row
    python tests/matrix.py 1 2        # some of them

A fit ends elsewhere with the kernels of another processor, and a test whose verdict hangs on it passes on one machine
and fails on the next. torch's kernels are chosen by ATEN_CPU_CAPABILITY, those of numpy and scipy by OPENBLAS_CORETYPE.
Every value of every setting is in some row, the combinations are as unlike as they can be.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    """One run of the suite; an empty string leaves the variable unset."""

    aten: str
    openblas: str
    threads: int
    seed: int


ROWS = (
    Row("default", "Haswell", 1, 1),
    Row("avx2", "SkylakeX", 2, 2),
    Row("", "Haswell", 1, 3),
    Row("", "Zen", 2, 1),
    Row("avx2", "", 1, 2),
)
_INSTEAD = {"SkylakeX": "Zen"}
"""Kernels to take where a processor cannot run these; none where there is no entry."""
_PROBE = """
import numpy, scipy.linalg, torch
square = numpy.random.default_rng(0).random((300, 300))
scipy.linalg.solve(square @ square, square)
torch.nn.functional.conv2d(torch.ones(2, 3, 9, 9), torch.ones(4, 3, 3, 3)).exp().sum()
"""


class Outcome(NamedTuple):
    """How a run ended: pytest's exit status, its last line without the time, and how long it took."""

    status: int
    said: str
    seconds: float


def environment(row: Row) -> dict[str, str]:
    """The variables of this process with those of the row, and without those that it leaves unset."""
    chosen = {"ATEN_CPU_CAPABILITY": row.aten, "OPENBLAS_CORETYPE": row.openblas, "OMP_NUM_THREADS": str(row.threads)}
    kept = {name: value for name, value in os.environ.items() if name not in chosen}
    return kept | {name: value for name, value in chosen.items() if value}


def runs_here(row: Row) -> bool:
    """Whether this processor has the instructions of the row's kernels; without them a process dies at once."""
    return subprocess.run([sys.executable, "-c", _PROBE], env=environment(row), check=False).returncode == 0


def possible(row: Row) -> Row:
    """The row, with other kernels in place of those that this processor lacks, of which a line is printed."""
    for name, variable in (("openblas", "OPENBLAS_CORETYPE"), ("aten", "ATEN_CPU_CAPABILITY")):
        while (value := getattr(row, name)) and not runs_here(Row("", "", 1, 0)._replace(**{name: value})):
            row = row._replace(**{name: _INSTEAD.get(value, "")})
            print(f"this processor cannot run {variable}={value}: {getattr(row, name) or 'unset'} in its place")
    return row


def suite(row: Row) -> Outcome:
    """Runs the suite under a row, as many files at once as its threads leave cores for."""
    workers = max(1, (os.cpu_count() or 1) // row.threads)
    command = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "loadfile", f"--randomly-seed={row.seed}"]
    begin, last = time.monotonic(), ""
    with subprocess.Popen(command, cwd=ROOT, env=environment(row), stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() if re.search(r"\d+ (passed|failed|error)", line) else last
    said = re.sub(r" in [\d.]+s.*", "", last) or "no tests ran"
    return Outcome(running.returncode, said, time.monotonic() - begin)


def main(numbers: list[str]) -> int:
    """Runs the rows of these numbers, counted from 1, or all; the status is 1 where any run failed."""
    rows = [possible(ROWS[int(number) - 1]) for number in numbers] or [possible(row) for row in ROWS]
    outcomes = []
    for row in rows:
        print(f"\n{row}", flush=True)
        outcomes.append(suite(row))
    print(f"\n{'ATEN':<8} {'OPENBLAS':<9} {'threads':>7} {'seed':>4} {'seconds':>7}  outcome")
    for row, outcome in zip(rows, outcomes, strict=True):
        kernels = f"{row.aten or 'unset':<8} {row.openblas or 'unset':<9}"
        print(f"{kernels} {row.threads:>7} {row.seed:>4} {outcome.seconds:>7.0f}  {outcome.said}")
    return int(any(outcome.status for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
