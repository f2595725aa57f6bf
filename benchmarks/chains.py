"""Ending chains of thought: tokens saved, probes paid, at no more than so many points lost.

    python benchmarks/chains.py --data ../shared/data/gsm8k-r1
    python benchmarks/chains.py --short

Recorded chains of a reasoning model, split into halves by question. On one half everything is chosen, by cross-fitting
within it: when to probe, and the price or the cut of each method, for each number of points that may be lost. The other
half judges, and then the halves change places. The rivals: a threshold on the answer's confidence, on its entropy, on
how many probes in a row gave it; a fixed number of tokens; and a learned probability that the answer is right.
`--short` does the same in seconds on made-up chains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from figures import RESULTS, made_by, provenance, save, table_row
from optdepth.chains import Chain, Probe, Schedule, growing, read, split, trace
from optdepth.chains.sight import FEATURES
from optdepth.stopping.baselines import Threshold
from optdepth.stopping.evaluate import Evaluation, applied, evaluate
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.stopping.snell import snell
from optdepth.trace import Trace

FOLDS, SEED = 4, 0
DROPS = (0.0, 0.005, 0.01, 0.02)
"""What may be lost to thinking to the end, as shares of the questions."""
SCHEDULES: tuple[Schedule, ...] = (growing(48, 1.0, 48 * 60), growing(48, 1.25, 9_000), growing(48, 1.5, 9_000))
Fitted = Callable[[float], Callable[[Trace], Evaluation]]
"""What a method makes of a fit split: by price, or by cut, what its rule does on other samples."""


def main(given: Sequence[str] | None = None) -> None:
    """Reads the arguments, judges both ways, writes page and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with trajectories.jsonl")
    parser.add_argument("--short", action="store_true", help="made-up chains, in seconds")
    parser.add_argument("--out", type=Path, default=RESULTS / "chains")
    asked = parser.parse_args(given)
    if not asked.short and asked.data is None:
        parser.error("say --data, the folder with trajectories.jsonl, or --short")
    chains = made_up(160) if asked.short else read(asked.data / "trajectories.jsonl")
    schedules = SCHEDULES[2:] if asked.short else SCHEDULES
    prices = np.geomspace(4e-6, 4e-4, 3 if asked.short else 12)
    levels = np.append(np.linspace(0.02, 1.0, 5 if asked.short else 50), 2.0)
    halves = split(chains, 0.5, 0.5, seed=SEED)
    rows = []
    for fit, test in (halves, halves[::-1]):
        for name, method in METHODS.items():
            rows += _judged(name, method, fit, test, schedules, prices if name == "solved" else levels)
            print(rows[-1], flush=True)
    result = {"made": provenance(__file__), "chains": _about(chains), "rows": rows}
    asked.out.mkdir(parents=True, exist_ok=True)
    save(asked.out / "chains.json", result)
    (asked.out / "chains.md").write_text(_page(result))


def made_up(count: int) -> list[Chain]:
    """Chains that find their answer, and one in six that never does and thinks long."""
    random, found = np.random.default_rng(SEED), []
    for i in range(count):
        knows = 60 if i % 6 == 0 else int(random.geometric(0.3))
        ends = min(knows + 1 + int(random.integers(0, 5)), 40)
        answers = ["7" if k >= knows else str(random.integers(10, 99)) for k in range(ends)]
        probes = [
            Probe(48 * (k + 1), answer, 0.9 if answer == "7" else 0.6 * random.random(), 0.1, 1.0, 8.0)
            for k, answer in enumerate(answers)
        ]
        losses = *(float(answer != "7") for answer in answers), float(knows == 60)
        found.append(Chain(f"question {i}", tuple(probes), losses, 48 * ends + 20))
    return found


def _judged(
    name: str,
    method: Callable[[Trace], Fitted],
    fit: Sequence[Chain],
    test: Sequence[Chain],
    schedules: Sequence[Schedule],
    knobs: np.ndarray,
) -> list[dict[str, Any]]:
    """One method fitted on one half and judged on the other: a row for each number of points that may be lost."""
    chosen = _cross_fitted(method, fit, schedules, knobs)
    rows, full = [], None
    for drop in DROPS:
        within = [each for each in chosen if each["excess"] <= drop + 1e-9]
        best = min(within, key=lambda each: each["cost"], default=None)
        when = schedules[best["schedule"]] if best else schedules[0]
        fitted, judging = trace(fit, when), trace(test, when)
        full = evaluate(FixedDepth(Origin.of(fitted), len(when)), judging)
        found = method(fitted)(best["knob"])(judging) if best else full
        hopeless = np.array([chain.tokens for chain in test]) >= np.quantile([chain.tokens for chain in fit], 0.88)
        rows.append(
            {
                "method": name,
                "drop": drop,
                "probes": len(when) if best else 0,
                "price or level": best["knob"] if best else None,
                "questions": len(test),
                "full": float(full.cost),
                "full right": 1 - full.loss,
                "right": 1 - found.loss,
                "tokens": float(found.cost),
                "lost": found.loss - full.loss,
                "lost error": float((found.losses - full.losses).std(ddof=1) / np.sqrt(len(test))),
                "saved": 1 - found.cost / full.cost,
                "saved of the longest": float((full.costs - found.costs)[hopeless].sum() / full.costs.sum()),
            }
        )
    return rows


def _cross_fitted(
    method: Callable[[Trace], Fitted], fit: Sequence[Chain], schedules: Sequence[Schedule], knobs: np.ndarray
) -> list[dict[str, Any]]:
    """By schedule and price or level, what rules lose and pay on the folds that did not fit them."""
    fold = np.random.default_rng(SEED).permutation(len(fit)) % FOLDS
    found = []
    for s, when in enumerate(schedules):
        whole = trace(fit, when)
        end = whole.losses[:, -1].mean()
        sums = np.zeros((len(knobs), 2))
        for f in range(FOLDS):
            fitted, judging = method(whole.select(np.flatnonzero(fold != f))), whole.select(np.flatnonzero(fold == f))
            for p, knob in enumerate(knobs):
                each = fitted(float(knob))(judging)
                sums[p] += each.losses.sum(), each.costs.sum()
        for knob, (lost, paid) in zip(knobs, sums / len(fit), strict=True):
            found.append({"schedule": s, "knob": float(knob), "excess": lost - end, "cost": paid})
    return found


def _solved(fit: Trace) -> Fitted:
    """The solved rule, by price."""
    family = snell(fit, features=FEATURES)

    def at(price: float) -> Callable[[Trace], Evaluation]:
        rule = family.solve(price)
        return lambda test: applied(rule, test)

    return at


def _cut(feature: str, fit: Trace, below: bool = False) -> Fitted:
    """A common threshold, by the share of the probes on its other side; at more than 1 it stops none."""
    scores = fit.columns([feature])[:, :-1, 0][~fit.ended]

    def at(level: float) -> Callable[[Trace], Evaluation]:
        sign = -1.0 if below else 1.0
        cut = sign * np.quantile(sign * scores, level) if level <= 1 else sign * np.inf
        cuts = torch.full((fit.n_exits - 1,), float(cut))
        rule = Threshold(Origin.of(fit), feature, cuts, below)
        return lambda test: applied(rule, test)

    return at


def _learned(fit: Trace) -> Fitted:
    """A threshold on the probability that the answer now is right, by boosted trees on all that a probe shows."""
    fold = np.arange(len(fit)) % FOLDS
    scores, trees = np.zeros(fit.losses.shape), _trees(fit)
    for f in range(FOLDS):
        scores[fold == f] = _right(_trees(fit.select(np.flatnonzero(fold != f))), fit.select(np.flatnonzero(fold == f)))
    known = _cut("right", _with(fit, scores))
    return lambda level: lambda test: known(level)(_with(test, _right(trees, test)))


def _trees(fit: Trace) -> HistGradientBoostingClassifier:
    going = ~fit.ended
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, max_leaf_nodes=8, random_state=SEED)
    return trees.fit(fit.observations[:, :-1][going], fit.losses[:, :-1][going] == 0)


def _right(trees: HistGradientBoostingClassifier, test: Trace) -> np.ndarray:
    seen = test.observations.reshape(-1, len(test.features))
    return trees.predict_proba(seen)[:, 1].reshape(test.losses.shape)


def _with(held: Trace, scores: np.ndarray) -> Trace:
    return replace(held, observations=scores[:, :, None].astype(np.float32), features=("right",))


METHODS: dict[str, Callable[[Trace], Fitted]] = {
    "solved": _solved,
    "confidence": partial(_cut, "confidence"),
    "streak": partial(_cut, "streak"),
    "entropy": partial(_cut, "entropy", below=True),
    "tokens": partial(_cut, "tokens"),
    "learned": _learned,
}


def _about(chains: Sequence[Chain]) -> dict[str, Any]:
    tokens = np.array([chain.tokens for chain in chains])
    longest = tokens >= np.quantile(tokens, 0.88)
    return {
        "chains": len(chains),
        "right": 1 - float(np.mean([chain.losses[-1] for chain in chains])),
        "tokens": float(tokens.mean()),
        "longest": float(tokens[longest].sum() / tokens.sum()),
        "longest right": 1 - float(np.mean([chain.losses[-1] for chain in np.array(chains, dtype=object)[longest]])),
    }


def _page(result: dict[str, Any]) -> str:
    about, rows = result["chains"], result["rows"]
    lines = [
        made_by(result["made"]),
        "",
        f"{about['chains']} chains, {about['right']:.1%} right at the end, {about['tokens']:.0f} tokens on average. "
        f"The longest 12% take {about['longest']:.0%} of all tokens; {about['longest right']:.0%} of them end right. "
        "Saved: share of the tokens of thinking to the end, probes paid; and the part of it that the longest 12% make. "
        "Lost: points of accuracy on the half that judges, and the standard error of that difference. Both halves "
        "together, then each.",
        "",
    ]
    for drop in DROPS:
        lines += [
            f"Chosen to lose at most {100 * drop:g} points:",
            "",
            "| method | saved | lost | saved on the longest 12% | first half: saved, lost | second half: saved, lost |",
            "| --- " * 6 + "|",
        ]
        for name in METHODS:
            lines.append(table_row(_cells(name, [r for r in rows if (r["method"], r["drop"]) == (name, drop)])))
        lines.append("")
    return "\n".join(lines)


def _cells(name: str, both: list[dict[str, Any]]) -> list[str]:
    """Of one method at one drop: both halves as one, and each."""
    questions = np.array([row["questions"] for row in both])
    full = sum(row["full"] * n for row, n in zip(both, questions, strict=True))
    saved = sum(row["saved"] * row["full"] * n for row, n in zip(both, questions, strict=True)) / full
    longest = sum(row["saved of the longest"] * row["full"] * n for row, n in zip(both, questions, strict=True)) / full
    lost = sum(row["lost"] * n for row, n in zip(both, questions, strict=True)) / questions.sum()
    error = np.sqrt(sum((row["lost error"] * n) ** 2 for row, n in zip(both, questions, strict=True))) / questions.sum()
    halves = [f"{row['saved']:.0%}, {100 * row['lost']:.1f}" for row in both]
    return [name, f"{saved:.0%}", f"{100 * lost:.1f} ± {100 * error:.1f}", f"{longest:.0%}", *halves]


if __name__ == "__main__":
    main(sys.argv[1:])
