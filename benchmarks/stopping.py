"""How good, how fast and how hungry the stopping mathematics is, without any network.

    python benchmarks/stopping.py
    python benchmarks/stopping.py --short

Options against published values; regressors held against gradient-boosted trees; seconds and memory of `snell` on
synthetic traces. Writes `benchmarks/results/stopping/results.md` and `.json`. `--short` leaves the largest trace out.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from figures import RESULTS, made_by, provenance, save
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.gain import GainRule
from optdepth.stopping.regression import Regression, bases, shuffled
from optdepth.stopping.snell import snell
from optdepth.trace import Costs, Trace
from problems import MAX_CALL_VALUE, PUT_VALUES, american_put, max_call

OUT = RESULTS / "stopping"
PATHS, FITTED, JUDGED = 100_000, 1, 2
SIZES = ((50_000, 16, 6, 1), (50_000, 16, 6, 10), (1_000_000, 32, 6, 1))
TARGETS = (2, 10, 120)
"""Seconds that each of the sizes may take."""


def main() -> None:
    """Reads the arguments, runs the three parts, writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="leave the largest trace out")
    short = parser.parse_args().short
    result: dict[str, Any] = {
        **provenance(__file__),
        "speed": [_speed(*size, target) for size, target in zip(SIZES[: 2 if short else 3], TARGETS, strict=False)],
        "options": _options(),
        "regressors": _regressors(),
    }
    OUT.mkdir(exist_ok=True)
    save(OUT / "results.json", result)
    (OUT / "results.md").write_text(_tables(result))
    print(_tables(result))


def _speed(samples: int, exits: int, features: int, prices: int, target: float) -> dict[str, Any]:
    """Seconds from a trace to its rules; the peak of the process so far, trace included."""
    trace = synthetic(samples, exits, features)
    begin = time.perf_counter()
    family = snell(trace)
    for price in np.geomspace(0.03, 0.3, prices):
        family.at(float(price))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = {"samples": samples, "exits": exits, "observations": features, "prices": prices}
    return size | {"seconds": round(seconds, 2), "target": target, "peak_gib": round(peak, 2)}


def synthetic(samples: int, exits: int, features: int) -> Trace:
    """0-1 losses that fall with depth, faster on easy samples, and noisy views of how likely an error is."""
    random = np.random.default_rng(0)
    error = np.clip(1.2 * random.random((samples, 1)) - np.arange(exits) / exits, 0.02, 0.98).astype(np.float32)
    seen = np.empty((samples, exits, features), dtype=np.float32)
    for f in range(features):
        seen[:, :, f] = error + 0.3 * random.standard_normal((samples, exits), dtype=np.float32)
    losses = random.random((samples, exits), dtype=np.float32) < error
    return Trace(losses, seen, Costs.of(np.arange(1, exits + 1) / exits))


def _options() -> list[dict[str, Any]]:
    """`snell` on paths of one seed, judged on paths of another."""
    rows = []
    simulated: list[tuple[str, Callable[..., Trace], float]] = [
        (f"put, volatility {sigma:g}, {years} y", partial(american_put, sigma=sigma, years=years), value)
        for (sigma, years), value in PUT_VALUES.items()
    ]
    for name, simulate, published in [*simulated, ("max-call on two assets", max_call, MAX_CALL_VALUE)]:
        begin = time.perf_counter()
        rule = snell(simulate(PATHS, seed=FITTED), price=0.0)
        seconds = time.perf_counter() - begin
        found = evaluate(rule, simulate(PATHS, seed=JUDGED))
        kinds = Counter(type(gain).__name__ for gain in rule.gains) if isinstance(rule, GainRule) else {}
        row = {"option": name, "published": published, "earned": -found.loss, "error": found.loss_error}
        rows.append(row | {"ratio": -found.loss / published, "seconds": round(seconds, 1), "functions": dict(kinds)})
    return rows


def _regressors() -> list[dict[str, Any]]:
    """Out-of-fold error of the gain of going on over its variance, the median over the exits of backward induction."""
    traces = {"put": american_put(20_000, seed=FITTED), "max-call": max_call(20_000, seed=FITTED)}
    traces["synthetic 0-1"] = synthetic(5_000, 9, 3)
    rows = []
    for name, trace in traces.items():
        trace, price = shuffled(trace, 0), 0.1 if name.startswith("synthetic") else 0.0
        values = trace.losses + price * trace.costs.paid()
        follows, found = values[:, -1], []
        for k in reversed(range(trace.n_exits - 1)):
            target, seen = values[:, k] - follows, trace.observations[:, k]
            fits = [fit.fit(target) for fit in Regression(seen, bases(seen, 0)).fits]
            if k % max(1, trace.n_exits // 8) == 0:
                trees = HistGradientBoostingRegressor(max_iter=100, learning_rate=0.05, max_leaf_nodes=8)
                error = float(np.square(cross_val_predict(trees, seen, target, cv=5) - target).mean())
                found.append(np.array([*(fit.error for fit in fits), error]) / target.var())
            follows = np.where(min(fits, key=lambda fit: fit.error).predicted <= 0, values[:, k], follows)
        middle = np.median(found, axis=0)
        names = [f"{type(fit.basis).__name__.lower()} ({len(fit.coefficients)})" for fit in fits]
        rows.append({"trace": name, "errors": dict(zip([*names, "trees"], middle.round(4).tolist(), strict=True))})
    return rows


def _tables(result: dict[str, Any]) -> str:
    lines = [
        made_by(result),
        "",
        "| samples x exits x observations | prices | seconds | target | peak of the process, GiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["speed"]:
        size = f"{row['samples']:,} x {row['exits']} x {row['observations']}"
        lines.append(f"| {size} | {row['prices']} | {row['seconds']} | {row['target']} | {row['peak_gib']} |")
    lines += ["", f"Solved on {PATHS:,} paths (seed {FITTED}), judged on as many others (seed {JUDGED}).", ""]
    lines += ["| option | published | earned | ratio | seconds to solve |", "| --- | --- | --- | --- | --- |"]
    for row in result["options"]:
        earned = f"{row['earned']:.3f} ± {row['error']:.3f}"
        lines.append(f"| {row['option']} | {row['published']} | {earned} | {row['ratio']:.4f} | {row['seconds']} |")
    lines += [
        "",
        "Out-of-fold error of a regression of the gain, as a share of the gain's variance; columns in brackets.",
        "",
    ]
    lines += ["| trace | errors |", "| --- | --- |"]
    for row in result["regressors"]:
        lines.append(
            f"| {row['trace']} | {', '.join(f'{name} {error:.4f}' for name, error in row['errors'].items())} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
