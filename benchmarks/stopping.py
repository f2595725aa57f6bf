"""How good, how fast and how hungry the stopping mathematics is, without any network.

    python benchmarks/stopping.py
    python benchmarks/stopping.py options
    python benchmarks/stopping.py speed --short

Seconds and memory of `snell` on synthetic traces; options against published values; regressors held against
gradient-boosted trees: all three parts, or those named. Writes `benchmarks/results/stopping/results.md` and `.json`, in
which a part that was not run stays as it was. `--short` leaves the largest trace out.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from figures import RESULTS, load, made_by, provenance, save, table_row
from optdepth.exit_costs import Costs
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.regression import Regression, bases, shuffled
from optdepth.stopping.rule import Rule
from optdepth.stopping.snell import snell
from optdepth.trace import Trace
from problems import MAX_CALL_VALUE, PUT_VALUES, american_put, max_call, put_earned

OUT = RESULTS / "stopping"
PATHS, FITTED, JUDGED = 100_000, 1, 2
MANY = 1_000_000
"""Paths that judge the max-call, for which there is no quadrature here."""
FAR = 50
"""A spot so far out of the money that the table has none like it."""
SIZES = ((50_000, 16, 6, 1), (50_000, 16, 6, 10), (1_000_000, 32, 6, 1))
TARGETS = (2, 10, 120)
"""Seconds that each of the sizes may take."""


def main() -> None:
    """Reads the arguments, runs the parts, writes the tables."""
    parts: dict[str, Callable[[], list[dict[str, Any]]]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="speed, options, regressors; all three if none is named")
    parser.add_argument("--short", action="store_true", help="leave the largest trace out")
    given = parser.parse_args()
    parts = {"speed": partial(_speeds, 2 if given.short else 3), "options": _options, "regressors": _regressors}
    if unknown := set(given.parts) - set(parts):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(parts)}")
    held = OUT / "results.json"
    result = load(held) if held.is_file() else {}
    for part in given.parts or parts:
        result[part] = {"made": provenance(__file__), "figures": parts[part]()}
    OUT.mkdir(parents=True, exist_ok=True)
    save(held, result)
    page = "\n".join(TABLES[part](result[part]) for part in parts if part in result)
    (OUT / "results.md").write_text(page)
    print(page)


def _speeds(sizes: int) -> list[dict[str, Any]]:
    return [_speed(*size, target) for size, target in zip(SIZES[:sizes], TARGETS, strict=False)]


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
    """`snell` on paths of one seed, judged on paths of another, and by quadrature over all paths there are."""
    rows = []
    far = {(FAR, sigma, years): None for spot, sigma, years in PUT_VALUES if spot == 36}
    for (spot, sigma, years), published in (PUT_VALUES | far).items():
        law = {"spot": spot, "sigma": sigma, "years": years}
        name = f"put, spot {spot}, volatility {sigma:g}, {years} y"
        rows.append(_option(name, partial(american_put, **law), published, PATHS, partial(put_earned, **law)))
        print(rows[-1], flush=True)
    rows.append(_option("max-call on two assets", max_call, MAX_CALL_VALUE, MANY, None))
    return rows


def _option(
    name: str,
    simulate: Callable[..., Trace],
    published: float | None,
    judged: int,
    average: Callable[[Rule | None], float] | None,
) -> dict[str, Any]:
    """One option, solved with the payoff known for what it is, and as any other observation.

    Args:
        average: what a rule earns on average over all paths, and the best there is without one.
    """
    fit, test = simulate(PATHS, seed=FITTED), simulate(judged, seed=JUDGED)
    row = {"option": name, "published": published, "best": average(None) if average else None}
    for how, trace in (("known", fit), ("unknown", replace(fit, reward=""))):
        begin = time.perf_counter()
        rule = snell(trace, price=0.0)
        seconds = time.perf_counter() - begin
        found = evaluate(rule, test)
        given_up = (found.losses == 0) & (found.stopped_at < test.n_exits - 1)
        row[how] = {
            "average": average(rule) if average else None,
            "earned": -found.loss,
            "error": found.loss_error,
            "given up": float(given_up.mean()),
            "seconds": round(seconds, 1),
        }
    return row


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
                found.append(np.array([*(fit.error**2 for fit in fits), error]) / target.var())
            follows = np.where(min(fits, key=lambda fit: fit.error).predicted <= 0, values[:, k], follows)
        middle = np.median(found, axis=0)
        names = [f"{type(fit.basis).__name__.lower()} ({len(fit.coefficients)})" for fit in fits]
        rows.append({"trace": name, "errors": dict(zip([*names, "trees"], middle.round(4).tolist(), strict=True))})
    return rows


def _speed_table(part: dict[str, Any]) -> str:
    lines = [
        made_by(part["made"]),
        "",
        "| samples x exits x observations | prices | seconds | target | peak of the process, GiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in part["figures"]:
        size = f"{row['samples']:,} x {row['exits']} x {row['observations']}"
        lines.append(f"| {size} | {row['prices']} | {row['seconds']} | {row['target']} | {row['peak_gib']} |")
    return "\n".join(lines) + "\n"


def _option_table(part: dict[str, Any]) -> str:
    lines = [
        made_by(part["made"]),
        "",
        f"Solved on {PATHS:,} paths (seed {FITTED}). What the rule earns on average is by quadrature over all paths; "
        f"on others it is the mean of {PATHS:,} ({MANY:,} of the max-call; seed {JUDGED}). The share is of the "
        "published value, or of the best there is where none was published. Given up: paths stopped early with "
        "nothing, where the payoff is not known for what it is but an observation like any other.",
        "",
        "| option | published | best | earned on average | share | on others | seconds "
        "| payoff not known: share | given up | seconds |",
        "| --- " * 10 + "|",
    ]
    for row in part["figures"]:
        known, unknown = row["known"], row["unknown"]
        whole = row["published"] or row["best"]
        share = lambda how: (how["earned"] if how["average"] is None else how["average"]) / whole  # noqa: B023, E731
        lines.append(
            table_row(
                [
                    row["option"],
                    *("" if row[key] is None else f"{row[key]:.3f}" for key in ("published", "best")),
                    "" if known["average"] is None else f"{known['average']:.3f}",
                    f"{share(known):.4f}",
                    f"{known['earned']:.3f} ± {known['error']:.3f}",
                    f"{known['seconds']}",
                    f"{share(unknown):.4f}",
                    f"{unknown['given up']:.1%}",
                    f"{unknown['seconds']}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _regressor_table(part: dict[str, Any]) -> str:
    lines = [
        made_by(part["made"]),
        "",
        "Out-of-fold error of a regression of the gain, as a share of the gain's variance; columns in brackets.",
        "",
        "| trace | errors |",
        "| --- | --- |",
    ]
    for row in part["figures"]:
        errors = ", ".join(f"{name} {error:.4f}" for name, error in row["errors"].items())
        lines.append(f"| {row['trace']} | {errors} |")
    return "\n".join(lines) + "\n"


TABLES = {"speed": _speed_table, "options": _option_table, "regressors": _regressor_table}


if __name__ == "__main__":
    main()
