"""Which architectures can be staged: constructors of torchvision, timm and transformers, with random weights.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --only timm --again

Each model is staged on an example and then asked again on other inputs, in another number and, where they have one, of
another length: the last exit is the model bit for bit, or the model was refused, and the table says with which words.
Writes `benchmarks/results/architectures/architectures.json` after every model, so that an interrupted run goes on, and
the last section of `docs/networks.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from architectures_zoo import Subject, subjects
from figures import RESULTS, load, made_by, provenance, save, table_row
from optdepth.errors import InputError
from optdepth.libraries import library
from optdepth.networks import stage

FIGURES = RESULTS / "architectures" / "architectures.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
TITLE = "## What was tried"
SAMPLES = 3
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose library or name has these letters")
    parser.add_argument("--again", action="store_true", help="try those anew that were tried before")
    given = parser.parse_args()
    declare()
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = load(FIGURES) if FIGURES.exists() else {"models": {}}
    found: dict[str, Any] = result["models"]
    for subject in subjects():
        if given.only not in subject.key or (subject.key in found and not given.again):
            continue
        found[subject.key] = tried(subject)
        print(subject.key, found[subject.key], file=sys.stderr, flush=True)
        result = {**provenance(__file__, also=("torchvision", "timm", "transformers")), "models": found}
        save(FIGURES, result)
    PAGE.write_text(PAGE.read_text().partition(TITLE)[0].rstrip() + "\n\n" + section(result, found))


def declare() -> None:
    """Lets a torchvision load that was built for another torch: without its compiled operators, which no model here
    calls, it fails on the declarations of two of them.
    """
    try:
        library("torchvision")
    except InputError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def tried(subject: Subject) -> dict[str, Any]:
    """What happened: exits and whether the last one is the model, or the words of the refusal."""
    begin = time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = subject.make().eval()
            network = stage(model, example=subject.example(SAMPLES), exits="all", **subject.options)
            other = subject.example(SAMPLES + 2)
            with torch.no_grad():
                same = torch.equal(network.full(other), answer(model, other, subject.options.get("output")))
            kinds = Counter(type(head).__name__ for head in network.heads[:-1])
            heads = ", ".join("own" if kind == "GraphModule" else kind for kind in kinds)
            outcome = {"staged": True, "exits": len(network.exits), "heads": heads, "same": same, "said": ""}
        except InputError as error:
            outcome = {"staged": False, "exits": 0, "heads": "", "same": False, "said": str(error)}
        except Exception as error:  # what the library ought to have refused
            said = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            outcome = {"staged": False, "exits": 0, "heads": "", "same": False, "said": f"**error** {said}"}
    return {"library": subject.library, "name": subject.key.partition(" ")[2], **outcome,
            "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def answer(model: torch.nn.Module, inputs: Any, output: str | None) -> Tensor:
    """The model's own."""
    named = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    found = model(**inputs, **named) if isinstance(inputs, dict) else model(inputs)
    if isinstance(found, Tensor):
        return found
    return found[output or "logits"]


def section(made: dict[str, Any], found: dict[str, Any]) -> str:
    """All that was tried, as Markdown."""
    rows = list(found.values())
    staged = [row for row in rows if row["staged"]]
    lines = [
        TITLE,
        "",
        f"{len(staged)} of {len(rows)} constructors of torchvision, timm and transformers, small and with random "
        f"weights, can be staged; of {sum(row['same'] for row in staged)} the last exit is the model bit for bit on "
        "other inputs than the example too, in another number and of another length. The others are refused in the "
        "words beside them.",
        "",
        made_by(made),
        "",
        table_row(["library", "constructor", "exits", "early heads", "what happened"]),
        table_row(["---", "---", "---:", "---", "---"]),
    ]
    for row in rows:
        said = (
            ("the last exit is the model" if row["same"] else "**the last exit is another**") if row["staged"] else ""
        )
        cells = [
            row["library"],
            row["name"],
            str(row["exits"] or ""),
            row["heads"],
            said or row["said"].replace("|", "\\|"),
        ]
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
