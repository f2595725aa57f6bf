"""Tables of the study against its rivals: tuned thresholds, deep supervision, networks without exits."""

from __future__ import annotations

from collections import Counter

import numpy as np

from depth_loss_arms import DEEPER
from depth_loss_bands import BUDGETS
from depth_loss_figures import Figures, Found, at, by_seed, cost_at, last_loss, rule, solved, spread
from figures import table_row
from optdepth.stopping.methods import SOLVED

DROPS = (0.0, 0.01, 0.02, 0.05)
CHOSEN = "best on certify"


BANDS = """## Accuracy of the solved rule less that of the best tuned threshold at equal mean cost (test split), points

In brackets, the 95% band of 1,000 paired bootstrap resamples of the test split, with the rules as they were fitted.
The threshold is the best of six kinds at that cost on the test split itself, which flatters it. The last column: kinds,
out of all six, and mean costs at which the band lies below zero.
"""


def bands(found: Found) -> list[str]:
    """The solved rule less the best tuned threshold at equal mean cost."""
    rows, every = [], []
    for arm, runs in solved(found).items():
        for run in runs:
            at_budget = {row["budget"]: row for row in run.get("ahead", [])}
            if not at_budget:
                continue
            every += [band for row in at_budget.values() for band in row["ahead"].values()]
            name = arm if len(runs) == 1 else f"{arm}, seed {run['seed']}"
            cells = [banded(at_budget[budget]) if budget in at_budget else "-" for budget in BUDGETS]
            rows.append(table_row([name, *cells, below_zero(at_budget) or "nowhere"]))
    if not rows:
        return []
    head = [table_row(["arm", *map(str, BUDGETS), "band below zero"]), rule(len(BUDGETS) + 1)]
    below, above = sum(high < 0 for _, _, high in every), sum(low > 0 for _, low, _ in every)
    count = f"Of {len(every):,} bands (arms, kinds, costs) {below} lie below zero and {above} above it. Were all rules"
    return [BANDS, *head, *rows, "", count, "equally good, 2.5% would be expected on each side.", ""]


def banded(row: Figures) -> str:
    """The lead over the best rival and its band, in points."""
    lead, low, high = (100 * end for end in row["ahead"][row["best"]])
    return f"{lead:+.2f} [{low:+.2f}, {high:+.2f}]"


def below_zero(rows: dict[float, Figures]) -> str:
    """The kinds of threshold that the solved rule is behind, beyond noise, and at which mean costs."""
    worse: dict[str, list[str]] = {}
    for budget, row in rows.items():
        for kind, (_, _, high) in row["ahead"].items():
            if high < 0:
                worse.setdefault(kind, []).append(f"{budget:g}")
    return "; ".join(f"{kind} {' '.join(budgets)}" for kind, budgets in worse.items())


def against_deep(found: Found) -> list[str]:
    """Mean cost of the solved rule at the accuracy of deep supervision's last exit, and below."""
    deep = by_seed(found, "deep")
    if not deep:
        return []
    head = [f"-{100 * drop:g}" if drop else "deep's accuracy" for drop in DROPS]
    lines = ["## Mean cost at the accuracy of `deep`'s last exit, and at so many points below it (test split)", ""]
    lines += ["In brackets, what that saves against the solved rule of `deep` at the same accuracy.", ""]
    lines += [table_row(["arm", *head]), rule(len(head))]
    rows = solved(found)
    if chosen := choice(found):
        rows[CHOSEN] = [joined(found, chosen, seed) for seed in shared_seeds(found)]
    for arm, runs in rows.items():
        if pairs := [(run, deep[run["seed"]]) for run in runs if run["seed"] in deep]:
            lines.append(table_row([arm, *(saving(pairs, drop) for drop in DROPS)]))
    return [*lines, "", f"{CHOSEN.capitalize()}: at each price of the sweep the arm that the table below names.", ""]


def saving(pairs: list[tuple[Figures, Figures]], drop: float) -> str:
    """Mean cost so many points below the accuracy of the other's last exit, and the share of its cost saved."""
    mine, theirs = (np.array([cost_at(pair[i], last_loss(pair[1]) + drop) for pair in pairs]) for i in range(2))
    saved = 100 * (1 - mine / theirs).mean()
    if np.isnan(saved):
        return spread(mine, 3)
    return f"{spread(mine, 3)} ({abs(saved):.0f}% {'less' if saved >= 0 else 'more'})"


def shared_seeds(found: Found) -> list[int]:
    """The seeds that most arms with exits have."""
    arms = Counter(run["seed"] for runs in solved(found).values() for run in runs)
    return sorted(seed for seed, count in arms.items() if count == max(arms.values()))


def comparable(found: Found) -> Found:
    """The arms with exits of one network that have all of those seeds, so that none is chosen for an easier one."""
    seeds = set(shared_seeds(found))
    return {
        arm: runs for arm, runs in solved(found).items() if arm not in DEEPER and seeds <= by_seed(found, arm).keys()
    }


def choice(found: Found) -> dict[float, str]:
    """By price, the arm with the least mean value on the certify split, out of those that can be compared."""
    arms = comparable(found)
    if not arms:
        return {}
    prices = [row["price"] for row in next(iter(arms.values()))[0]["sweep"]]
    return {price: min(arms, key=lambda arm: value(found, arm, price, "certify")) for price in prices}


def value(found: Found, arm: str, price: float, split: str) -> float:
    """Loss + price x cost of the solved rule, the mean over the seeds that most arms have."""
    runs = by_seed(found, arm)
    return float(np.mean([at(runs[seed], price)["methods"][SOLVED][split]["value"] for seed in shared_seeds(found)]))


def joined(found: Found, chosen: dict[float, str], seed: int) -> Figures:
    """The figures of a sweep that takes at each price the arm chosen; the cheapest price's arm gives the ends."""
    sweep = [at(by_seed(found, arm)[seed], price) for price, arm in chosen.items()]
    return {**by_seed(found, chosen[min(chosen)])[seed], "sweep": sweep}


def best_on_certify(found: Found) -> list[str]:
    """The arm that the certify split chooses at each price, judged by the test split beside two rivals."""
    chosen = choice(found)
    if not chosen:
        return []
    rivals = [arm for arm in ("deep", "plain+linear") if arm in comparable(found)]
    seeds = " ".join(map(str, shared_seeds(found)))
    lines = [f"## Loss + price x cost, x 100, of the arm that is best on the certify split (seed {seeds})", ""]
    lines += [table_row(["price", CHOSEN, "certify", "test", *(f"{arm}, test" for arm in rivals)])]
    lines.append(table_row(["---:", "---", *["---:"] * (2 + len(rivals))]))
    for price, arm in chosen.items():
        shown = [(arm, "certify"), (arm, "test"), *((rival, "test") for rival in rivals)]
        cells = [f"{100 * value(found, name, price, split):.2f}" for name, split in shown]
        lines.append(table_row([f"{price:g}", arm, *cells]))
    said = f"`plain+linear` is the plain network with probes. The choice is among the arms with seed {seeds}: "
    return [*lines, "", f"{said}{', '.join(comparable(found))}.", ""]


def statics(found: Found) -> list[str]:
    """Networks without exits, and what the solved rules cost at their accuracy."""
    still = {arm: runs for arm, runs in found.items() if arm not in solved(found)}
    if not still:
        return []
    lines = ["## Networks without exits: accuracy on the test split, cost in full passes of `plain`", ""]
    lines += [table_row(["network", "accuracy, %", "cost"]), rule(2)]
    for arm, runs in still.items():
        accuracy = [100 * (1 - last_loss(run)) for run in runs]
        lines.append(table_row([arm, spread(accuracy, 2), f"{static_cost(runs[0]):.3f}"]))
    lines += ["", "## Least mean cost at which a solved rule is as accurate as a network without exits (test split)"]
    lines += ["", table_row(["arm", *(f"{arm} ({static_cost(runs[0]):.3f})" for arm, runs in still.items())])]
    lines.append(rule(len(still)))
    for arm, runs in solved(found).items():
        lines.append(table_row([arm, *(instead(runs, by_seed(found, other)) for other in still)]))
    return [*lines, ""]


def static_cost(run: Figures) -> float:
    """Of a network without exits."""
    return float(run["costs"]["paid"][-1])


def instead(runs: list[Figures], others: dict[int, Figures]) -> str:
    """The mean cost of the solved rule at the accuracy of a network without exits, and whether it is cheaper."""
    pairs = [(run, others[run["seed"]]) for run in runs if run["seed"] in others]
    costs = [cost_at(run, last_loss(other)) for run, other in pairs]
    if not costs or np.isnan(costs).any():
        return spread(costs, 3)
    apart = float(np.mean(costs)) - static_cost(pairs[0][1])
    return f"{spread(costs, 3)}, {'cheaper' if apart < -5e-4 else 'dearer' if apart > 5e-4 else 'the same'}"
