"""Figures of the report, as inline SVG whose colours follow the page's light or dark scheme."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..palette import BLUE, COLOURS, FAINT, GRID, INK, SKY, STYLE
from ..stopping.finite import ReturnsBound
from ..stopping.methods import METHODS, SOLVED, Dash
from .regions import Decisions, Regions
from .study import Study

Array = np.ndarray

THEME = {**{colour: f"--{name}" for name, colour in COLOURS.items()}, FAINT: "--faint", GRID: "--grid"}
"""Colours that figures are drawn in, and the page's variables that stand in for them."""

_DASHES: dict[Dash, Any] = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.5))}
"""As matplotlib says it."""
_STYLE = {
    **STYLE,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a user's exit may be called "$x"
    "svg.fonttype": "path",
    "svg.hashsalt": "optdepth",
}
_WIDTH = 6.2
"""Inches; a wide page shows an inch as about 120 pixels, a narrow one as 70."""
_TOP = 3
"""Percentage points of accuracy below the full network that are drawn once more, enlarged."""
_MOST_NAMES = 20
"""Exits named below a chart; of more, every second or third is."""
_BINS = 60
_MOST_DISCRETE = 40
"""A feature with at most so many values is drawn value by value."""


def frontiers(study: Study) -> Markup:
    """Accuracy against mean cost, the solved rule minus its rival at equal cost, and the range near the top."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 7.9), layout="constrained")
        whole, difference, top = figure.subplots(3, 1, height_ratios=(3, 1, 2.5))
        _draw_frontiers(whole, study)
        _draw_frontiers(top, study)
        right = _right(study.full.loss)
        savings = [swept.saving(_TOP / 100) for swept in study.frontiers.values()]
        left = 1 - max((saving for saving in savings if np.isfinite(saving)), default=0.0)
        # An easy task is answered at a small part of the cost: the rest of the axis would say nothing.
        run = np.concatenate([study.frontiers[name].curve()[0] for name in (SOLVED, study.rival)]) / study.full.cost
        _draw_difference(difference, study, np.array([run.min(), run.max()]))
        top.set_xlim(*_percent(np.array([left, run.max()]) + 0.03 * (run.max() - left) * np.array([-1, 1])))
        top.set_ylim(right - _TOP, right + _TOP / 4)
        top.set_title(f"enlarged: within {_TOP} points of the full network")
        figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        return _svg(figure, "frontiers", "Accuracy against mean cost, for every method and fixed depth")


def brief(study: Study) -> Markup:
    """Accuracy against mean cost of three: the solved rule, its rival, and fixed depths."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes: Any = figure.subplots()
        full = study.full.cost
        for name, words in ((SOLVED, "this rule, solved"), (study.rival, f"best threshold ({study.rival})")):
            costs, losses = study.frontiers[name].curve()
            line = {"color": COLOURS[METHODS[name].colour], "lw": 2.2 if name == SOLVED else 1.4, "label": words}
            axes.plot(_percent(costs / full), _right(losses), zorder=4 if name == SOLVED else 3, **line)
        fixed = np.array([(depth.cost / full, depth.loss) for depth in study.depths[:-1]]).T
        dots = {"ls": "", "marker": "o", "ms": 4, "color": FAINT, "label": "the model cut off at one exit"}
        axes.plot(_percent(fixed[0]), _right(fixed[1]), **dots)
        star = {"ls": "", "marker": "*", "ms": 11, "color": INK, "label": "the whole model"}
        axes.plot([100], [_right(study.full.loss)], zorder=5, **star)
        here = {"ls": "", "marker": "D", "ms": 6, "color": BLUE, "label": "this page"}
        axes.plot([_percent(study.solved.cost / full)], [_right(study.solved.loss)], zorder=6, **here)
        axes.set_ylabel("right answers, %")
        axes.set_xlabel("mean cost, % of the whole model")
        axes.legend(fontsize=8, loc="lower right")
        return _svg(figure, "brief", "Right answers against mean cost: this rule, the best threshold, fixed depths")


def _draw_frontiers(axes: Any, study: Study) -> None:
    full = study.full.cost
    grid = _grid(study)
    for name, swept in study.frontiers.items():
        costs, losses = swept.curve()
        method = METHODS[name]
        colour = COLOURS[method.colour]
        chosen = name in (SOLVED, study.rival)
        if chosen:
            low, _, high = swept.band(grid, seed=study.seed)
            axes.fill_between(_percent(grid / full), _right(high), _right(low), color=colour, alpha=0.2, lw=0)
        words = "; ".join(part for part in (method.words, "best baseline" if name == study.rival else "") if part)
        said = f"{name} ({words})" if words else name
        line = {"color": colour, "ls": _DASHES[method.dash], "lw": 2.2 if chosen else 1.1, "label": said}
        axes.plot(_percent(costs / full), _right(losses), zorder=4 if name == SOLVED else 3, **line)
    fixed = np.array([(depth.cost / full, depth.loss) for depth in study.depths[:-1]]).T
    dots = {"ls": "", "marker": "o", "ms": 4, "color": FAINT, "label": "one fixed exit for all"}
    axes.plot(_percent(fixed[0]), _right(fixed[1]), **dots)
    seer = np.array([(best.cost / full, best.loss) for best in study.hindsight]).T
    dotted = {"color": FAINT, "ls": ":", "lw": 1.3, "label": "hindsight: no rule is better"}
    axes.plot(_percent(seer[0]), _right(seer[1]), **dotted)
    axes.axhline(_right(study.full.loss), color=INK, lw=0.8, zorder=1)
    star = {"ls": "", "marker": "*", "ms": 11, "color": INK, "label": "full network"}
    axes.plot([100], [_right(study.full.loss)], zorder=5, **star)
    axes.set_ylabel("right answers, %")
    axes.set_xlabel("mean cost, % of the full network")


def _draw_difference(axes: Any, study: Study, shares: Float[Array, " 2"]) -> None:
    grid = np.linspace(shares[0], shares[1], 400) * study.full.cost
    rival = study.frontiers[study.rival].resampled(grid, seed=study.seed)
    gained = (100 * (rival - study.frontiers[SOLVED].resampled(grid, seed=study.seed))).round(6)  # no axis of rounding
    low, middle, high = np.quantile(gained, [0.05, 0.5, 0.95], axis=0)
    share = _percent(grid / study.full.cost)
    axes.axhline(0, color=INK, lw=0.8)
    axes.fill_between(share, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(share, middle, color=BLUE, lw=1.6)
    if not np.isfinite(middle).any():
        axes.text(0.5, 0.7, "hardly any mean cost that both reach", transform=axes.transAxes, ha="center", color=FAINT)
    axes.set_title(f"{SOLVED} minus {study.rival}, at equal mean cost")
    axes.set_xlim(*_percent(shares))
    axes.set_ylabel("points")


def _grid(study: Study) -> Float[Array, " G"]:
    paid = study.test.costs.mean().paid()
    return np.linspace(paid[0], paid[-1], 200)


def exit_shares(study: Study) -> Markup:
    """Where samples stop: one small chart a rule, one bar an exit."""
    with matplotlib.rc_context(_STYLE):
        rows = -(-len(study.results) // 2)
        names = len(max(study.names, key=len)) > 2
        figure = Figure(figsize=(_WIDTH, 1.25 * rows + (0.9 if names else 0.5)), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        places, step = np.arange(len(study.names)), -(-len(study.names) // _MOST_NAMES)
        for axes, (name, result) in zip(grid.flat, study.results.items(), strict=False):
            colour = COLOURS[METHODS[name].colour] if name in METHODS else SKY
            axes.bar(places, _percent(result.shares), width=0.75, color=colour)
            axes.set_title(f"{name}: {result.cost / study.full.cost:.0%} of the full cost")
            axes.grid(axis="x", visible=False)
        for i, axes in enumerate(grid.flat):
            axes.set_visible(i < len(study.results))
            axes.set_xticks(places[::step], study.names[::step], rotation=90 if names else 0)
            axes.tick_params(labelbottom=i >= len(study.results) - 2)
        figure.supylabel("samples that stop there, %", size=9)
        return _svg(figure, "shares", "Share of the samples that stop at each exit, for every rule")


def returns(names: Sequence[str], found: ReturnsBound) -> Markup:
    """What going on to the next exit is expected to gain at most, beside what it costs at the price, exit by exit."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(found.gains))
        axes.plot(places, 100 * found.gains, color=BLUE, marker="o", ms=4, label="gains an input at most (95%)")
        axes.plot(places, 100 * found.worth, color=INK, ls="--", marker="s", ms=3, label="costs at this price")
        step = -(-len(places) // _MOST_NAMES)
        axes.set_xticks(places[::step], names[:-1:step], rotation=30, ha="right")
        axes.set_ylabel("on to the next exit, points")
        axes.set_yscale("symlog", linthresh=0.1)  # gains and costs lie decades apart, and a gain may be negative
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ends = 100 * np.array([*found.gains, *found.worth])
        axes.set_ylim(min(0.0, 1.5 * float(ends.min())), 2 * max(0.1, float(ends.max())))
        axes.legend(fontsize=8)
        return _svg(figure, "returns", "Largest expected gain of going on to the next exit, and its cost, at each exit")


def stop_regions(study: Study, regions: Regions) -> Markup:
    """One row an exit: how the feature is spread over the samples that reach it, and which of them stop."""
    with matplotlib.rc_context(_STYLE):
        rows = len(regions.decisions)
        figure = Figure(figsize=(_WIDTH, 0.62 * rows + 1.1), layout="constrained")
        grid = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        scale = _Scale.of(np.concatenate([at.values for at in regions.decisions]))
        for axes, at in zip(grid, regions.decisions, strict=True):
            _draw_region(axes, at, regions.cut(at), scale, study.names[at.exit])
        grid[-1].tick_params(labelbottom=True)
        grid[-1].set_xticks(scale.places, scale.labels)
        grid[-1].set_xlabel(f"{regions.feature} at the exit")
        keys = [Patch(color=BLUE, label="stops here"), Patch(color=GRID, label="goes deeper")]
        figure.legend(handles=keys, loc="outside upper left", ncols=2)
        return _svg(figure, "regions", f"Stop region at each exit over the observation {regions.feature}")


def _draw_region(axes: Any, at: Decisions, cut: float, scale: _Scale, name: str) -> None:
    """A histogram, and below it a strip whose blue is the share of the samples in that bin which stop."""
    inside = scale.bin(at.values)
    count = np.bincount(inside, minlength=len(scale.edges) - 1)
    stopped = np.bincount(inside[at.stops], minlength=len(count))
    axes.stairs(count / max(1, count.max()), scale.edges, fill=True, color=FAINT, alpha=0.55, lw=0)
    shade = np.where(count > 0, np.round(stopped / np.maximum(count, 1), 2), -1.0)
    starts = np.flatnonzero(np.diff(shade, prepend=-2.0))  # neighbours of one shade are one piece, without seams
    for first, last in zip(starts, [*starts[1:], len(shade)], strict=True):
        piece = {"y1": -0.5, "y2": -0.12, "lw": 0}
        if shade[first] >= 0:
            axes.fill_between(scale.edges[[first, last]], color=GRID, **piece)
        if shade[first] > 0:
            axes.fill_between(scale.edges[[first, last]], color=BLUE, alpha=shade[first], **piece)
    if np.isfinite(cut):
        axes.plot([scale(cut)] * 2, [-0.5, 1.0], color=INK, lw=1.2)
    axes.set_xlim(scale.edges[0], scale.edges[-1])
    axes.set_ylim(-0.55, 1.05)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    stops = f"{at.stops.sum() / max(1, len(at.stops)):.0%} stop"
    edge = f"\nedge at {cut:.4g}" if np.isfinite(cut) else ""
    said = f"{len(at.stops):,} reach\n{stops}{edge}"
    axes.annotate(said, (1.01, 0.45), xycoords="axes fraction", va="center", size=8)


class _Scale:
    """A horizontal axis for one feature: logit-like for shares in [0, 1], value by value for few values, else linear.

    The outermost bins also hold what lies beyond them.
    """

    def __init__(self, edges: Float[Array, " B"], places: Sequence[float], labels: Iterable[str], logit: bool) -> None:
        self.edges, self.places, self.labels, self.logit = edges, list(places), list(labels), logit

    @classmethod
    def of(cls, values: Float[Array, " n"]) -> _Scale:
        distinct = np.unique(values)
        if len(distinct) <= _MOST_DISCRETE:
            margin = np.diff(distinct).min() / 2 if len(distinct) > 1 else 0.5
            between = (distinct[1:] + distinct[:-1]) / 2
            edges = np.concatenate([[distinct[0] - margin], between, [distinct[-1] + margin]])
            step = -(-len(distinct) // 12)
            return cls(edges, distinct[::step].tolist(), (f"{value:g}" for value in distinct[::step].tolist()), False)
        logit = distinct[0] >= 0 and distinct[-1] <= 1
        places = _logit(values) if logit else values.astype(np.float64)
        low, high = np.quantile(places, [0.002, 0.998])
        high = max(high, low + 1e-3)  # nearly all values may be one
        edges = np.linspace(low, high, _BINS + 1)
        if not logit:
            ticks = MaxNLocator(6).tick_values(low, high)
            ticks = ticks[(ticks >= low) & (ticks <= high)]
            return cls(edges, ticks.tolist(), (f"{tick:g}" for tick in ticks), False)
        nines = [10.0**-n for n in range(5, 0, -1)]
        shown = [p for p in (*nines, 0.3, 0.5, 0.7, *(1 - n for n in reversed(nines))) if low <= _logit(p) <= high]
        return cls(edges, [float(_logit(p)) for p in shown], (f"{p:g}" for p in shown), True)

    def __call__(self, value: float | Float[Array, " n"]) -> Any:
        return _logit(value) if self.logit else value

    def bin(self, values: Float[Array, " n"]) -> Array:
        """The bin of each value, 0-based."""
        return np.clip(np.searchsorted(self.edges, self(values), side="right") - 1, 0, len(self.edges) - 2)


def _logit(share: float | Float[Array, " n"]) -> Any:
    held = np.clip(np.asarray(share, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.log(held / (1 - held))


def _right(loss: Any) -> Any:
    """Percentage of right answers from a mean 0-1 loss."""
    return 100 * (1 - np.asarray(loss))


def _percent(share: Any) -> Any:
    return 100 * np.asarray(share)


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an SVG element for an HTML page: themed, with identifiers of its own, and without metadata."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    _, _, inner = text[text.index("<svg") :].partition(">")
    inner = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", inner.replace("xlink:href", "href"))
    for colour, variable in THEME.items():
        inner = inner.replace(colour, f"var({variable})")
    width, height = 72 * figure.get_size_inches()
    head = '<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">'
    return Markup(head).format(width, height, description) + Markup(inner)
