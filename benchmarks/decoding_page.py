"""The page of `decoding.py`: its figures as tables."""

from __future__ import annotations

from statistics import median
from typing import Any

from figures import made_by, table_row

_COSTS = ("full", "draft", "look", "verify 1", "verify 2", "verify 4", "verify 8")


def page(figures: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# A language model's own text, faster",
        "",
        made_by(figures),
        f"Lenses fitted on {figures['texts']} prompts and the {figures['learn']} tokens that the model wrote behind "
        f"each; {figures['words']:,} words, which cover {figures['coverage']:.0%} of its own on the prompts left out. "
        f"{figures['prompts']} other prompts, {figures['tokens']} tokens each, one at a time.",
        "",
        "## How often drafts agree",
        "",
        table_row(["layers", "drafts agree", "sure (0.7 or more)", "agree where sure", "drafts"]),
        table_row(["---:"] * 5),
    ]
    for row in figures["drafts"]:
        cells = [f"{row['exit']} of {figures['layers']}", f"{row['agree']:.1%}", f"{row['sure']:.1%}"]
        right = "" if row["agree where sure"] is None else f"{row['agree where sure']:.1%}"
        lines.append(table_row([*cells, right, f"{row['drafts']:,}"]))
    for precision, found in figures["found"].items():
        lines += ["", f"## {precision}", "", f"Solved: {found['plan']}.", ""]
        lines += [*_costs(found["costs"]), "", *_clock(found["rows"])]
    return "\n".join(lines) + "\n"


def _costs(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds, and what they promise."""
    head = ["layers", *(f"{name}, ms" for name in _COSTS), "solved", "knowing ahead", "needed", "for 1.3"]
    lines = [table_row(head), table_row(["---:"] * len(head))]
    for row in rows:
        promised = [f"{row[name]:.2f}" for name in ("solved", "foreseen")]
        promised += ["no share" if row[name] is None else f"{row[name]:.0%}" for name in ("needed", "needed for 1.3")]
        lines.append(table_row([str(row["exit"]), *(f"{row[name]:.1f}" for name in _COSTS), *promised]))
    words = (
        "Solved, knowing ahead: tokens per time against none drafted, of the best rule, and of one that knows which "
    )
    words += "drafts agree. Needed: share of drafts that must agree for drafting to cost nothing, and for 1.3 times."
    return [*lines, "", words]


def _clock(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios to `generate` on the same prompt: medians by kind and of all, the worst, and texts that are the same."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    head = ["way", *kinds, "all", "worst", "same text"]
    lines = [table_row(head), table_row(["---", *["---:"] * (len(head) - 1)])]
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        by_kind = [median(row["ratio"] for row in mine if row["kind"] == kind) for kind in kinds]
        ratios = [row["ratio"] for row in mine]
        cells = [f"{one:.2f}" for one in (*by_kind, median(ratios), min(ratios))]
        lines.append(table_row([way, *cells, f"{sum(row['same'] for row in mine)} of {len(mine)}"]))
    return lines
