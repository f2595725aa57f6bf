"""`od.fit` on models that people have, one job at a time.

    python benchmarks/fit.py minilm --data ../shared/data/sst2
    python benchmarks/fit.py efficientnet --data ../shared/data/tiny-imagenet-50 --pixels 128

Each says more in the head of its own file, `fit_minilm.py` and `fit_efficientnet.py`.
"""

from __future__ import annotations

import sys

import fit_efficientnet
import fit_minilm

JOBS = {"minilm": fit_minilm.main, "efficientnet": fit_efficientnet.main}


def main() -> None:
    """Runs the job that is named first, with the arguments that follow."""
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit(f"name a job, one of {', '.join(JOBS)}; then --help says what it takes")
    JOBS[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
