"""The engine's figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine_profile import PARTS
from figures import made_by, table_row

Figures = dict[str, Any]


def page(networks: dict[str, Figures]) -> str:
    """All networks, one after another."""
    lines = [
        "# The engine on the clock",
        "",
        "Times are medians over the turns of every batch, all ways to serve side by side. Right: of the test split.",
    ]
    for figures in networks.values():
        lines += ["", f"## {figures['title']}", "", made_by(figures), "", *_saved(figures), "", *_rivals(figures)]
        lines += ["", *_compiled(figures), "", *_where(figures), "", *_by_size(figures), "", *_onnx(figures)]
    if not any("cuda" in figures["machine"] for figures in networks.values()):
        lines += ["", "On a GPU this has not run."]
    return "\n".join(lines) + "\n"


def _saved(figures: Figures) -> list[str]:
    lines = [
        "Saved by the solved rule, as shares of the network without exits: on the clock; in the measured costs that",
        "the rule was solved at, looks paid; the same with looks free; in FLOPs. A batch larger than is best on this",
        f"machine is cut, here to {_list(figures['pieces'].values())}: what that alone brings is in the last column,",
        "the engine with no early stop beside the network.",
        "",
        *_head(
            "price", "batch", "looks at", "right", "clock", "cost", "free looks", "FLOPs", "clock / cost", "full depth"
        ),
    ]
    for row in figures["ideal"]:
        shares = [f"{100 * row[key]:.1f}%" for key in ("right", "clock", "cost", "free looks", "flops")]
        ratio = f"{row['realised']:.2f}" if row["cost"] > 0 else "-"
        cells = [f"{row['price']:g}", str(row["batch"]), _list(row["looks"]) or "none", *shares, ratio]
        lines.append(table_row([*cells, f"{100 * row['at full depth']:+.1f}%"]))
    return lines


def _rivals(figures: Figures) -> list[str]:
    names = list(dict.fromkeys(name for row in figures["rivals"] for name in row["ms"]))
    names = [name for name in names if name not in ("engine, full depth", "engine, solved rule")]
    lines = ["Throughput over the network without exits; one confidence threshold, the same exits and weights:", ""]
    lines += _head("price", "batch", *names)
    for row in figures["rivals"]:
        full = row["ms"]["network without exits"]
        cells = [f"{full / row['ms'][name]:.2f}" if name in row["ms"] else "" for name in names]
        lines.append(table_row([f"{row['price']:g}", str(row["batch"]), *cells]))
    return lines


def _compiled(figures: Figures) -> list[str]:
    names = list(figures["compiled"][0]["ms"])
    lines = [
        "Compiled, the solved rule at the middle price, batches filled up to the sizes: throughput over the network",
        "",
    ]
    lines += _head("batch", "sizes", "looks at", *names)
    for row in figures["compiled"]:
        full = row["ms"]["network without exits"]
        cells = [str(row["batch"]), _list(row["sizes"]), _list(row["looks"]) or "none"]
        lines.append(table_row([*cells, *(f"{full / row['ms'][name]:.2f}" for name in names)]))
    return lines


def _where(figures: Figures) -> list[str]:
    lines = ["Where the time of a call goes, milliseconds a batch; the solved rule at the middle price:", ""]
    lines += _head("batch", "looks at", *PARTS)
    for row in figures["where"]:
        cells = [str(row["batch"]), _list(row["looks"]) or "none", *(f"{row['ms'][part]:.2f}" for part in PARTS)]
        lines.append(table_row(cells))
    return lines


def _by_size(figures: Figures) -> list[str]:
    lines = ["Microseconds a sample of the second stage, at the first call with a batch size and after it:", ""]
    sizes = figures["by size"]
    lines += _head("batch", *(str(row["size"]) for row in sizes))
    return lines + [table_row([key, *(f"{row[key]:.0f}" for row in sizes)]) for key in ("first", "after")]


def _onnx(figures: Figures) -> list[str]:
    if "onnx" not in figures:
        return []
    lines = ["onnxruntime, milliseconds a sample; saved in FLOPs and on the clock:", ""]
    lines += _head("batch", "plain graph", "bundle", "FLOPs", "clock")
    for row in figures["onnx"]:
        spent = row["ms"]
        saved = [f"{100 * (1 - row['flops']):.1f}%", f"{100 * (1 - spent['bundle'] / spent['plain graph']):.1f}%"]
        lines.append(table_row([str(row["batch"]), *(f"{value:.3f}" for value in spent.values()), *saved]))
    for name, values in figures["export"].items():
        shown = ", ".join(f"{k} {v:.2f}" for k, v in values.items()) if isinstance(values, dict) else f"{values:.2f}"
        lines += ["", f"{name}: {shown}"]
    return lines


def _head(*names: str) -> list[str]:
    return [table_row(list(names)), table_row(["---:"] * len(names))]


def _list(numbers: Sequence[Any] | Any) -> str:
    return ", ".join(map(str, numbers))
