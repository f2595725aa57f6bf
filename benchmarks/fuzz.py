"""Files that were damaged or written by somebody who means harm: what the library makes of them.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --mutations 300 --seed 1

Writes one small file of every kind that the library reads, and mutates each in turn: by accidents (bits, pieces, whole
files) and by nonsense with a right checksum (values of another type, numbers that are none, sizes that nothing has).
Each is read as a user would read it, under a limit of time, and every outcome is counted. Only two are sound: one line
that refuses (an `InputError`), and the same answers as before. Same seed, same mutations. Writes figures and a page to
`benchmarks/results/fuzz/`.
"""

from __future__ import annotations

import argparse
import re
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import torch

from figures import RESULTS, made_by, provenance, save, table_row
from fuzz_mutations import accident
from fuzz_subjects import Subject, subjects
from optdepth.errors import InputError

HERE = RESULTS / "fuzz"
LIMIT = 30.0
"""Seconds of one reading, of milliseconds usually: beyond, it hangs."""
OUTCOMES = ("refused", "same answers", "foreign exception", "hang", "other answers")
SOUND = OUTCOMES[:2]


@dataclass(frozen=True)
class Trial:
    """One mutation and what became of it."""

    kind: str
    sort: str
    mutation: str
    outcome: str
    said: str
    seconds: float


class HangError(BaseException):
    """A reading took too long. No `Exception`, so that nothing on the way takes it for one of its own."""


def main(arguments: list[str] | None = None) -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0, help="of what is mutated and how")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args(arguments)
    trials = fuzz(given.mutations, given.seed)
    made = provenance(__file__, also=("safetensors", "onnxruntime", "accelerate"))
    unsound = [asdict(trial) for trial in trials if trial.outcome not in SOUND]
    figures = {"made": made, "mutations": len(trials), "table": table(trials), "unsound": unsound}
    figures["slowest"] = max(trial.seconds for trial in trials)
    save(given.out / "fuzz.json", figures)
    (given.out / "fuzz.md").write_text(page(figures))
    print(page(figures))


def fuzz(mutations: int, seed: int) -> list[Trial]:
    """Mutates one of every kind of file in turn, so many times in all."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, quiet(Path(place) / "cache"):
        every = subjects(Path(place))
        whole = {subject.path: subject.path.read_bytes() for subject in every}
        right = [subject.answers() for subject in every]
        for subject in every:  # a training and a command write to what they read
            subject.path.write_bytes(whole[subject.path])
        trials = []
        for number in range(mutations):
            one, answers = every[number % len(every)], right[number % len(every)]
            others = [content for content in whole.values() if format_of(content) != format_of(whole[one.path])]
            trials.append(_trial(one, whole[one.path], others, answers, np.random.default_rng((seed, number))))
    return trials


def _trial(subject: Subject, whole: bytes, others: list[bytes], right: Any, draw: np.random.Generator) -> Trial:
    """Mutates a file, reads it, and puts it back as it was.

    Args:
        others: sound files of other formats. One of its own would be what somebody may have meant.
    """
    meant = subject.nonsense is not None and draw.random() < 0.5
    if meant:
        mutation = subject.nonsense(subject.path, draw)  # type: ignore[misc]
    else:
        mutation, content = accident(whole, others, draw)
        subject.path.write_bytes(content)
    begin, said = time.monotonic(), ""
    try:
        with limited():
            outcome = "same answers" if subject.answers() == right else "other answers"
    except InputError as error:
        outcome, said = "refused", str(error)
        if "\n" in said:
            outcome = "foreign exception"
    except HangError:
        outcome = "hang"
    except BaseException as error:  # what the benchmark is about
        outcome, said = "foreign exception", f"{type(error).__name__}: {error}"
    finally:
        subject.path.write_bytes(whole)
    sort = "nonsense" if meant else "accident"
    return Trial(subject.kind, sort, mutation, outcome, f"{said:.300}", time.monotonic() - begin)


def format_of(content: bytes) -> bytes:
    """What a file says it is: its format, or its first bytes."""
    named = re.search(rb"optdepth\.\w+", content)
    return named[0] if named else content[:8]


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too long."""

    def end(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def quiet(cache: Path) -> Iterator[None]:
    """Neither bars nor warnings, and a cache of data sets of its own."""
    was = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = was


def table(trials: list[Trial]) -> list[dict[str, Any]]:
    """How often each outcome, by kind of file and sort of mutation."""
    counts = Counter((trial.kind, trial.sort, trial.outcome) for trial in trials)
    rows = dict.fromkeys((trial.kind, trial.sort) for trial in sorted(trials, key=lambda trial: trial.kind))
    return [
        {"file": kind, "mutated by": sort, **{outcome: counts[kind, sort, outcome] for outcome in OUTCOMES}}
        for kind, sort in rows
    ]


def page(figures: dict[str, Any]) -> str:
    """The figures in words and a table."""
    rows, unsound = figures["table"], figures["unsound"]
    total = {outcome: sum(row[outcome] for row in rows) for outcome in OUTCOMES}
    head = ["file", "mutated by", *OUTCOMES]
    lines = ["# Damaged and hostile files", ""]
    lines += [f"{figures['mutations']:,} mutations; the slowest was read in {figures['slowest']:.1f} s.", ""]
    lines += [table_row(head), table_row(["---", "---", *["---:"] * len(OUTCOMES)])]
    lines += [table_row([str(row[name]) for name in head]) for row in rows]
    lines += [table_row(["**all**", "", *(f"**{total[outcome]:,}**" for outcome in OUTCOMES)]), ""]
    lines += [f"- {one['kind']}: {one['mutation']}: {one['outcome']} {one['said']}".rstrip() for one in unsound]
    lines += [""] if unsound else []
    return "\n".join([*lines, made_by(figures["made"]), ""])


if __name__ == "__main__":
    main()
