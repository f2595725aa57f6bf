r"""Accuracy, mean cost and time on the clock of every rule, beside the network trained without exits.

    python benchmarks/spine.py --data digits --epochs 30
    python benchmarks/spine.py --data ../shared/data/cifar10 --epochs 15 \
        --seed 1 --heads conv+tail --exits ends --frozen

Trains the network twice, without exits and with them, records, solves, and judges on the test split, which nothing else
has touched. Interrupted, the same command goes on where it stopped; over a run of other settings it says so and stops.
Writes a table and its figures to `benchmarks/results/spine/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures import RESULTS, made_by, provenance, save, table_row
from optdepth.cli.steps import record, solve, train
from optdepth.errors import InputError
from optdepth.flows import save_figure
from optdepth.palette import BLUE, GREEN, ORANGE, SKY
from optdepth.runs import Run
from optdepth.stopping.frontier import fixed_depths, frontier, prices_for
from optdepth.stopping.methods import METHODS
from optdepth.workflow import evaluate_run

HERE = RESULTS / "spine"
BATCHES = [1, 32, 256]


def main() -> None:
    """Reads the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for `optdepth train`")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "auto"))
    parser.add_argument("--heads", default="conv", help="as for `optdepth train`")
    parser.add_argument("--exits", default="all", help="as for `optdepth train`")
    parser.add_argument("--frozen", action="store_true", help="the heads alone, on the network trained without exits")
    parser.add_argument("--price", type=float, default=0.05, help="loss that one full pass is worth")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = Path(given.data).name
    name = f"{data}-{given.heads}{'-frozen' if given.frozen else ''}" if given.frozen or given.heads != "conv" else data
    common: dict[str, Any] = {
        "data": given.data,
        "epochs": given.epochs,
        "precision": given.precision,
        "seed": given.seed,
    }
    exits, plain = Run(Path("runs") / name), Run(Path("runs") / f"{data}-plain")
    onto: dict[str, Any] = {"start": plain.folder, "backbone": "frozen"} if given.frozen else {}
    for run, more in (
        (plain, {"exits": "last", "loss": "last-exit"}),
        (exits, {"heads": given.heads, "exits": given.exits, **onto}),
    ):
        train(out=run.folder, **common, **more)
    record(exits.folder)
    solve(exits.folder, price=given.price)
    judged = evaluate_run(exits, clocked=BATCHES, repeats=5, progress=True)
    result = {
        "price": given.price,
        "seed": given.seed,
        **provenance(__file__),
        "without exits": _accuracy(plain),
        "sweep": _sweep(exits),
        **judged,
    }
    save(HERE / f"{name}.json", result)
    (HERE / f"{name}.md").write_text(_page(name, result))
    _picture(name, result, HERE / f"{name}.svg")
    print(_page(name, result))


@torch.inference_mode()
def _accuracy(run: Run) -> float:
    """Of the network trained without exits, on the test split."""
    network, data = run.network(), run.data()
    right = [(network.full(x).argmax(1) == y).float() for x, y in data.batches("test")]
    return float(torch.cat(right).mean())


def _sweep(run: Run) -> list[dict[str, Any]]:
    """Mean cost that each method needs to be as accurate as the full network, and nearly."""
    traces = run.traces()
    fit, test = traces["fit"], traces["test"]
    prices = prices_for(fit)
    full = fixed_depths(test)[-1]
    rows = []
    for method in METHODS:
        swept = frontier(method, fit, test, prices)
        costs, losses = swept.curve()
        rows.append(
            {
                "method": method,
                "cost at loss": {str(drop): swept.cost_at(full.loss + drop) for drop in (0.0, 0.005, 0.01, 0.02)},
                "costs": costs.tolist(),
                "accuracies": (1 - losses).tolist(),
            }
        )
    return rows


def _page(name: str, result: dict[str, Any]) -> str:
    """The result as Markdown."""
    clocked = {(row["method"], row["batch"]): row for row in result["clock"]}
    head = ["rule", "accuracy", "mean cost", "FLOPs ratio", *(f"clock ratio, batch {size}" for size in BATCHES)]
    lines = [
        f"# {name}: every rule at price {result['price']:g}",
        "",
        f"{made_by(result)} Seed {result['seed']}. {result['samples']:,} test samples; cost in {result['unit']}.",
        "A ratio is the full network over the engine: FLOPs by count, clock by medians over five turns side by side. "
        "Rules are solved on the fit split; nothing was chosen on the test split.",
        "",
        table_row(head),
        table_row(["---", *["---:"] * (len(head) - 1)]),
        table_row(["same network trained without exits", f"{result['without exits']:.2%}", "1.000", *["1.00"] * 4]),
    ]
    for row in result["rows"]:
        speed = [f"{clocked[row['method'], size]['speedup']:.2f}" for size in BATCHES]
        accuracy = f"{row['accuracy']:.2%} ± {row['accuracy_error']:.2%}"
        lines.append(table_row([row["method"], accuracy, f"{row['cost']:.3f}", f"{1 / row['cost']:.2f}", *speed]))
    lines += ["", "Mean cost needed to be as accurate as the full network with exits, or less so by some points:", ""]
    lines += [table_row(["method", "full accuracy", "-0.5", "-1", "-2"]), table_row(["---", *["---:"] * 4])]
    for row in result["sweep"]:
        needed = [f"{cost:.3f}" if cost == cost else "not reached" for cost in row["cost at loss"].values()]
        lines.append(table_row([row["method"], *needed]))
    return "\n".join(lines) + "\n"


def _picture(name: str, result: dict[str, Any], path: Path) -> None:
    """Accuracy against mean cost: the solved rule, tuned thresholds, shallower networks."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    styles = {"placed": (BLUE, 2.5, "solved rule"), "confidence": (ORANGE, 1.5, "confidence threshold, tuned")}
    styles |= {"snell": (SKY, 2.0, "solved rule, looks at every exit")}
    styles |= {"patience": ("#8a6d00", 1.5, "patience, tuned"), "lookahead": (GREEN, 1.5, "one-step look-ahead")}
    for row in result["sweep"]:
        if row["method"] in styles:
            colour, width, label = styles[row["method"]]
            costs, right = (100 * np.asarray(row[key]) for key in ("costs", "accuracies"))
            axes.plot(costs, right, color=colour, linewidth=width, label=label, zorder=width)
    fixed = [row for row in result["rows"] if row["method"].startswith("fixed")]
    dots = [(100 * row["cost"], 100 * row["accuracy"]) for row in fixed]
    axes.scatter(*zip(*dots, strict=True), color="#555555", s=22, label="every input at one exit", zorder=3)
    full = next(row for row in result["rows"] if row["method"] == "full network")
    axes.scatter(100, 100 * full["accuracy"], marker="*", s=160, color="black", label="full network", zorder=4)
    plain = 100 * result["without exits"]
    axes.axhline(plain, color="#555555", linestyle=":", linewidth=1, label="trained without exits")
    axes.set(
        xlabel="mean cost, % of the full network's FLOPs",
        ylabel="right answers, % of the test split",
        title=f"{name}: stop where the next block is not worth its cost",
        ylim=(min(right for _, right in dots[1:]) - 2, None),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"spine: {error}")
