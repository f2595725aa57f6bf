"""Tables and pictures of the figures that are there: means over seeds, and their range where there are several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from depth_loss_arms import ARMS, DEEPER
from depth_loss_figures import (
    Figures,
    Found,
    at,
    by_seed,
    cost_at,
    exits_of,
    frontier_of,
    last_loss,
    lead,
    rule,
    solved,
    spread,
)
from depth_loss_rivals import against_deep, bands, best_on_certify, statics
from figures import load, table_row
from optdepth.errors import InputError
from optdepth.flows import save_figure
from optdepth.palette import BLUE, GREEN, ORANGE, SKY
from optdepth.stopping.methods import SOLVED

SHOWN = (0.01, 0.0215, 0.0464, 0.1, 0.2154, 0.4642, 1.0)
"""Prices in the tables: every second one of the sweep."""
STYLES: dict[str, dict[str, Any]] = {
    "plain+glance": {"color": BLUE, "linewidth": 2.5},
    "glance-0": {"color": BLUE, "linestyle": "-."},
    "glance-untaught": {"color": "#e69f00", "linestyle": "-."},
    "glance-with-stopping": {"color": "#8a6d00", "linestyle": "-."},
    "glance-with-returns": {"color": ORANGE, "linestyle": "-."},
    "plain+front": {"color": BLUE},
    "plain+branch": {"color": BLUE, "linestyle": "--"},
    "plain+taught-long": {"color": SKY, "linestyle": "--"},
    "glance-44": {"color": GREEN, "linewidth": 2.5},
    "static-44+looks": {"color": GREEN, "linestyle": "--"},
    "taught-0": {"color": SKY},
    "with-stopping": {"color": "#8a6d00"},
    "plain+taught": {"color": GREEN},
    "plain+linear": {"color": "#e69f00"},
    "deep": {"color": ORANGE},
    "conv-even": {"color": ORANGE, "linestyle": "--"},
    "cascade-8": {"color": "#cc79a7"},
    "plain": {"color": "#000000"},
    "static-8": {"color": "#cc79a7"},
    "static-14": {"color": "#555555"},
    "static-32": {"color": "#e69f00"},
    "static-44": {"color": GREEN},
}
"""The arms that the pictures tell apart; the others are drawn in grey behind them."""
DEPTHS = (*DEEPER, "glance-0", "static-8", "static-14", "plain")
"""What the picture of depths is of."""
TICKS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 80)


def write_pages(folder: Path) -> None:
    """Writes `tables.md`, `frontier.svg`, `exits.svg` and, where deeper networks are there, `depths.svg`."""
    found: Found = {arm: [] for arm in ARMS}
    for path in sorted(folder.glob("*.json")):
        figures = load(path)
        found.setdefault(figures["arm"], []).append(figures)
    found = {arm: runs for arm, runs in found.items() if runs}
    if not found:
        raise InputError(f"no figures in {folder}; train an arm first, or give --out")
    tables = [notice, accuracies, costs_needed, against_deep, best_on_certify, statics, values, thresholds, bands]
    tables += [recalls, gaps, depths, trained]
    (folder / "tables.md").write_text("\n".join(line for table in tables for line in table(found)))
    shallow = {arm: runs for arm, runs in found.items() if arm not in DEEPER}
    picture(shallow, folder / "frontier.svg", frontier_of, "mean cost of the solved rule, full passes")
    picture(shallow, folder / "exits.svg", exits_of, "cost of one exit alone, full passes")
    if "glance-44" in found:
        of_depths = {arm: found[arm] for arm in DEPTHS if arm in found}
        picture(of_depths, folder / "depths.svg", frontier_of, "mean cost of the solved rule, full passes of plain")


def notice(found: Found) -> list[str]:
    """What a screening is not."""
    if all(run.get("study") != "screen" for runs in found.values() for run in runs):
        return []
    said = "A screening, half as wide and with few epochs, to choose what is worth training in full: not the study."
    return [said, ""]


def accuracies(found: Found) -> list[str]:
    """Accuracy of every exit, alone, on the test split."""
    deepest = max(len(runs[0]["accuracy"]["test"]) for runs in found.values())
    early = deepest - 1
    lines = ["## Accuracy of each exit on the test split, %", "", table_row(["arm", *map(str, range(early)), "last"])]
    lines.append(rule(deepest))
    for arm, runs in found.items():
        each = np.array([run["accuracy"]["test"] for run in runs])
        cells = [spread(100 * each[:, k], 2) for k in range(each.shape[1])]
        lines.append(table_row([arm, *cells[:-1], *[""] * (deepest - len(cells)), cells[-1]]))
    return [*lines, ""]


def costs_needed(found: Found) -> list[str]:
    """Mean cost of the solved rule at the accuracy of the network without exits, and below.

    Where `plain` is not there, the last exit of `glance-0` stands for it: it is the same to the bit.
    """
    without = "plain" if "plain" in found else "glance-0"
    reference = {seed: last_loss(run) for seed, run in by_seed(found, without).items()}
    if not reference:
        return []
    drops = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
    head = ["arm", *(f"-{100 * drop:g}" if drop else "its accuracy" for drop in drops), "accuracy above deep's"]
    lines = [
        f"## Mean cost at the accuracy of the last exit of `{without}`, and at so many points below it (test split)",
        "",
        table_row(head),
        rule(len(head) - 1),
    ]
    deep = by_seed(found, "deep")
    for arm, runs in solved(found).items():
        runs = [run for run in runs if run["seed"] in reference]
        if not runs:
            continue
        needed = [[cost_at(run, reference[run["seed"]] + drop) for run in runs] for drop in drops]
        above = [lead(run, deep[run["seed"]]) for run in runs if run["seed"] in deep]
        lines.append(table_row([arm, *(spread(costs, 3) for costs in needed), spread(100 * np.array(above), 2)]))
    return [*lines, "", "The last column is the mean over costs from 0.2 to 1, in points.", ""]


def by_price(found: Found, number: Callable[[Figures], float]) -> list[str]:
    """A row an arm of a number that its figures at each price give: the mean over seeds."""
    lines = [table_row(["arm", *(f"price {price:g}" for price in SHOWN)]), rule(len(SHOWN))]
    for arm, runs in found.items():
        lines.append(table_row([arm, *(spread([number(at(run, price)) for run in runs], 2) for price in SHOWN)]))
    return [*lines, ""]


def with_figure(found: Found, name: str) -> Found:
    """The runs that were judged when there was such a figure."""
    there = {arm: [run for run in runs if any(name in each for each in run["sweep"])] for arm, runs in found.items()}
    return {arm: runs for arm, runs in there.items() if runs}


def values(found: Found) -> list[str]:
    """Loss + price x cost of the solved rule, on both splits that fitted nothing."""
    lines = []
    for split, use in (("test", "to judge by"), ("certify", "to choose by")):
        lines += [f"## Loss + price x cost of the solved rule on the {split} split ({use}), x 100", ""]
        lines += by_price(solved(found), lambda there, split=split: 100 * there["methods"][SOLVED][split]["value"])
    return lines


def thresholds(found: Found) -> list[str]:
    """The solved rule against the threshold that is best on the test split itself."""
    lines = ["## Value of the best tuned threshold less that of the solved rule (test split), x 100", ""]
    lines += [
        "The threshold is picked in hindsight among six kinds, which flatters it. Behind ±, the standard error of"
    ]
    lines += ["the difference, paired by sample; first seed.", ""]
    lines += [table_row(["arm", *(f"price {price:g}" for price in SHOWN)]), rule(len(SHOWN))]
    for arm, runs in solved(found).items():
        lines.append(table_row([arm, *(behind(at(runs[0], price)["methods"]) for price in SHOWN)]))
    return [*lines, ""]


def behind(methods: Figures) -> str:
    """The lead of the solved rule over the best of its rivals."""
    best = min((figures["test"] for name, figures in methods.items() if name != SOLVED), key=lambda one: one["value"])
    return f"{100 * best['behind']:.2f} ± {100 * best['behind_error']:.2f}"


def recalls(found: Found) -> list[str]:
    """What it is worth that an exit may answer by those before it; 0 where the rule looks at no other on the way."""
    lines: list[str] = []
    if there := with_figure(solved(found), "recalled"):
        for split in ("certify", "test"):
            lines += [f"## Value with recall less that of the solved rule without ({split} split), x 100", ""]
            lines += by_price(there, lambda found, split=split: gained(found, split))
    return lines


def gained(there: Figures, split: str) -> float:
    """Points of value."""
    without = there["methods"][SOLVED]
    return 100 * (there.get("recalled", without)[split]["value"] - without[split]["value"])


def gaps(found: Found) -> list[str]:
    """What the rules leave to the best possible."""
    lines: list[str] = []
    if there := with_figure(solved(found), "gap"):
        lines += ["## Value of the solved rule less the dual bound (test split), x 100", ""]
        lines += ["No rule that looks at the same exits, and decides on all that is recorded there, gains more"]
        lines += ["(estimated).", ""]
        lines += by_price(there, lambda found: 100 * (found["gap"]["value"] - found["gap"]["bound"]))
    return lines


def depths(found: Found) -> list[str]:
    """Where samples stop, the bound on the depth, the certificate, and how residual sizes decay."""
    lines = ["## Where samples stop at price 0.1, bounds and certificates (test split)", ""]
    lines += [
        table_row(["arm", "kept exits", "share stopping at each, %", "deepest used", "bound", "certified cost"]),
        rule(5),
    ]
    for arm, runs in solved(found).items():
        there = at(runs[0], 0.1)
        test = there["methods"][SOLVED]["test"]
        shares = " ".join(f"{100 * share:.0f}" for share in test["shares"])
        bound = "none" if test["deepest by the bounds"] is None else str(test["deepest by the bounds"])
        certificate = spread([one["certificate"]["cost"] for one in runs if "certificate" in one], 3)
        kept = " ".join(map(str, there["exits"]))
        lines.append(table_row([arm, kept, shares, str(test["deepest used"]), bound, certificate]))
    lines += [
        "",
        "Deepest used and bound count the kept exits from 0. Certified: loss above the full network's at most",
    ]
    lines += ["1%, with 95% confidence. Of several seeds, the mean certified cost; all else is of the first.", ""]
    lines += ["## Mean relative residual size before each exit", ""]
    for arm, runs in solved(found).items():
        if sizes := runs[0]["residuals"]:
            lines.append(f"- {arm}: {' '.join(f'{size:.2f}' for size in sizes['mean'])}; {sizes['law']}")
    return [*lines, ""]


def trained(found: Found) -> list[str]:
    """What each arm is and what made it."""
    lines = [
        "## The arms",
        "",
        table_row(["arm", "what", "seeds", "epochs", "commit", "judged at", "machine", "torch"]),
    ]
    lines.append(table_row(["---"] * 8))
    for arm, runs in found.items():
        settings = runs[0]["training"].get("settings", {})
        seeds = " ".join(str(run["seed"]) for run in runs)
        judged = runs[0].get("judged", runs[0])["commit"]
        made = [runs[0]["commit"], judged, runs[0]["machine"], runs[0]["versions"]["torch"]]
        lines.append(table_row([arm, runs[0]["what"], seeds, str(settings.get("epochs", "-")), *made]))
    return [*lines, ""]


def picture(found: Found, path: Path, curve: Callable[[Figures], Any], label: str) -> None:
    """Wrong answers against cost, a line an arm, a star a network without exits.

    Seeds are drawn one by one. The axis of wrong answers is logarithmic, for the arms worth having lie close together.
    """
    figure, axes = plt.subplots(figsize=(9, 6.8), layout="constrained")
    grey = {"color": "#bbbbbb", "linewidth": 0.8, "zorder": 1}
    for arm in sorted(found, key=lambda arm: list(STYLES).index(arm) if arm in STYLES else len(STYLES)):
        for run in found[arm]:
            costs, losses = curve(run)
            named = axes.get_legend_handles_labels()[1]
            name = f"{arm}: {ARMS[arm].what}" if arm in STYLES else "other arms"
            style = {"zorder": 3, **STYLES[arm]} if arm in STYLES else grey
            mark = {"marker": "*", "markersize": 12} if len(costs) == 1 else {"marker": "o", "markersize": 3}
            axes.plot(costs, 100 * losses, label=None if name in named else name, **{**style, **mark})
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=label, ylabel="wrong answers, % of the test split")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8)
    save_figure(figure, path)
    plt.close(figure)
