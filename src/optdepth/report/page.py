"""The page: sections of plain sentences, figures and tables, rendered into one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import InputError
from ..files import write_atomically
from ..inference.clock import Clocked
from ..stopping.evaluate import Evaluation
from ..stopping.methods import SOLVED
from ..stopping.rule import Rule
from ..trace import Trace
from . import figures
from .gallery import Gallery, galleries
from .lead import Lead, Shown
from .promises import Promises
from .regions import Regions
from .study import Provenance, Study


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row, the others are numbers, or words."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page: how to read it, then what there is to see, in the order of the fields.

    Attributes:
        folded: whether it is shown only when it is asked for.
    """

    title: str
    text: tuple[str, ...]
    figure: Markup | None = None
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    commands: tuple[str, ...] = ()
    folded: bool = True


def write_report(
    path: str | Path,
    *,
    title: str,
    names: Sequence[str],
    fit: Trace,
    test: Trace,
    rules: Mapping[str, Rule],
    price: float,
    made: Provenance,
    certify: Trace | None = None,
    show: Callable[[int], Shown] | None = None,
    labels: Sequence[str] | None = None,
    clock: Sequence[Clocked] | None = None,
    promise: str = "",
    seed: int = 0,
) -> None:
    """Writes one HTML page about a solved rule: no script, no other file, nothing from the network.

    Args:
        path: of the page.
        title: of the page.
        names: K, of the exits, in order of depth.
        fit: trace of 0-1 losses on which the sweeps are solved; it shares no sample with `test`.
        test: trace of 0-1 losses on which everything is measured.
        rules: solved at `price` on `fit`, by their names in `stopping.methods.METHODS`: "placed" and at least one
            baseline. A rule under another name is shown as well.
        price: loss that one unit of the traces' cost is worth.
        made: how the numbers were made.
        certify: trace of 0-1 losses, of samples in neither `fit` nor `test`, to certify on; without it the page
            promises nothing.
        show: the picture or the text of the sample at a position of the test trace; without it none are shown.
        labels: (N,) what to call each test sample in the gallery, its right class for example.
        clock: wall-clock measurements to show beside the costs; those of "placed" stand on the first screen.
        promise: a sentence on what was promised to the reader, in place of the headline.
        seed: of the bootstrap.

    Raises:
        InputError: names, traces, rules or labels that do not fit together, as the message says.
    """
    if labels is not None and len(labels) != len(test):
        raise InputError(f"{len(labels)} labels for {len(test)} test samples; give one each")
    study = Study.measure(names, fit, test, rules, price, seed)
    sections = [_brief(study), _frontiers(study), _shares(study), _regions(study)]
    if certify is not None:
        sections.append(_promises(study, Promises.of(study, certify)))
    if show is not None:
        sections.append(_gallery(study, show, labels))
    sections += [_costs(study, clock or ()), _rules(study), _provenance(study, made)]
    template = Environment(
        loader=PackageLoader("optdepth.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")
    page = template.render(
        title=title,
        headline=promise or _headline(study),
        lead=Lead.of(study, clock or (), show, labels),
        verdict=_verdict(study),
        sections=sections,
        percent=_percent,
    )
    write_atomically(Path(path), page.encode())


def _headline(study: Study) -> str:
    solved, full, rival = study.solved, study.full, study.results[study.rival]
    return (
        f"On {len(study.test):,} test inputs the solved rule answers {_accuracy(solved)} right at "
        f"{_share(study, solved)} of the full network's cost. The full network answers {_accuracy(full)} right; the "
        f"best tuned baseline at the same price ({study.rival}, chosen on these very inputs, which favours it) "
        f"{_accuracy(rival)} at {_share(study, rival)}."
    )


def _verdict(study: Study) -> str:
    """The solved rule against its rival, in the quantity that both minimise."""
    rival = study.results[study.rival]
    more, error = study.advantage(rival)
    if abs(more) < max(1.96 * error, 1e-9):  # rules that decide alike differ by rounding, with no error at all
        found = "the two are the same within the noise of this test"
    else:
        found = f"the solved rule is {abs(more) / rival.value(study.price):.1%} {'better' if more > 0 else 'worse'}"
    return (
        f"Both rules seek the least loss + price × cost. The price here is {study.price:g}: the whole cost of the full "
        f"network is worth {100 * study.price * study.full.cost:.3g} points of accuracy. The solved rule reaches "
        f"{study.solved.value(study.price):.4f}, the baseline {rival.value(study.price):.4f}. On the same inputs the "
        f"difference is {abs(more):.4f} ± {error:.4f} (one standard error): {found}."
    )


def _brief(study: Study) -> Section:
    text = (
        "Higher is more right answers; further left is cheaper. A dot is the model cut off at that exit for all "
        "inputs, the star the whole model. The blue line is the rule of this page at all prices; the other is the best "
        "threshold, which stops where the model is sure enough.",
    )
    return Section("Right answers against cost", text, figures.brief(study), folded=False)


def _frontiers(study: Study) -> Section:
    drops = (0.0, 0.005, 0.01)
    header = ("mean cost needed for", "full accuracy", "0.5 points less", "1 point less")
    rows = tuple(
        (name, *(_percent(1 - swept.saving(drop)) for drop in drops)) for name, swept in study.frontiers.items()
    )
    text = (
        "Every line is one way of deciding where to stop, from eager on the left to patient on the right; higher is "
        "more right answers, further left is cheaper. All were tuned on other inputs than those that judge them here. "
        "A rule earns its keep where it lies above the dots, which stand for shallower networks. "
        "The solved rule, placed, looks only at the exits where a look is worth its cost; snell, lookahead and the "
        "tuned thresholds look everywhere.",
        "The small chart subtracts the best baseline's line from the solved rule's: above zero the solved rule is "
        "more accurate for the same cost. Shaded: 90% of 200 redraws of the test inputs. The table reads off what "
        "share of the full network's cost each method needs to be as accurate as it, or nearly.",
    )
    return Section("Accuracy against mean cost, every method", text, figures.frontiers(study), (Table(header, rows),))


def _shares(study: Study) -> Section:
    text = (
        "Easy inputs should stop early and hard ones go deep. Each chart is one rule at the same price; a bar is the "
        "share of the test inputs that get their answer at that exit.",
    )
    return Section("Where inputs stop", text, figures.exit_shares(study))


def _regions(study: Study) -> Section:
    rule = study.rules[SOLVED]
    if not rule.features or not any(rule.looks[:-1]):
        return Section("The stop region", ("At this price the solved rule sends all inputs to the same exit.",))
    regions = Regions.of(rule, study.test)
    text = [
        "When is it worth going deeper? Each row is one exit and shows the inputs that reach it: the grey hills say "
        f"how they are spread over the {regions.feature}; the strip below is blue where they stop and empty where "
        "there are none. The upright line is the edge that tells the two apart best: on its blue side the next layer "
        "is not worth its cost.",
    ]
    if np.isnan(regions.ranked):
        text.append("At this price the rule treats all inputs alike at every exit, so there is no edge to see.")
    else:
        text.append(
            f"Of what the rule sees, the {regions.feature} follows its decisions most closely: of an input that stops "
            f"and one that goes on at the same exit, it ranks {regions.ranked:.1%} of the pairs correctly."
        )
    return Section("The stop region", tuple(text), figures.stop_regions(study, regions))


def _gallery(study: Study, show: Callable[[int], Shown], labels: Sequence[str] | None) -> Section:
    text = (
        "Test inputs at which the solved rule stops first and last, with the exit and whether its answer is right. "
        "Where more than sixteen tie, those shown are spread evenly over the test set.",
    )
    return Section("First and last to stop", text, galleries=galleries(study, show, labels))


def _costs(study: Study, clock: Sequence[Clocked]) -> Section:
    costs = study.test.costs
    share = costs.relative().mean()
    header = ("exit", "trunk up to here", "looking", "answering", "paid if stopped here")
    columns = (share.reach, share.look, share.answer, share.paid())
    rows = tuple((name, *(_percent(float(column[k])) for column in columns)) for k, name in enumerate(study.names))
    text = [
        f"In % of the full network without exits, which is {costs.full:.4g} an input, counted in {costs.unit}. Looking "
        "is the exit's head and the rule; whoever stops at an exit has also paid for looking at the exits before it."
        + ("" if costs.samples is None else " Inputs differ in what they cost: these are means over the test split."),
    ]
    tables = [Table(header, rows)]
    if clock:
        text.append(
            "The second table is the clock: what an input takes with the rule and in the full network without exits, "
            "timed side by side. Where it is not as many times faster as it is cheaper, overhead eats the difference."
        )
        tables.append(
            Table(
                ("rule", "batch", "threads", "full network, ms", "with the rule, ms", "times faster", "times cheaper"),
                tuple(
                    (
                        row.method,
                        f"{row.batch:,}",
                        str(row.threads),
                        f"{row.full:.4g}",
                        f"{row.engine:.4g}",
                        f"{row.speedup:.2f}",
                        f"{row.saving:.2f}",
                    )
                    for row in clock
                ),
            )
        )
    return Section("What everything costs", tuple(text), tables=tuple(tables))


def _rules(study: Study) -> Section:
    best = min(range(study.test.n_exits), key=lambda k: study.depths[k].value(study.price))
    results = {
        **study.results,
        f"all at {study.names[best]} (best fixed exit)": study.depths[best],
        "full network": study.full,
    }
    text = (
        "Means over the test inputs ± one standard error. The last column is how much more loss + price × cost a rule "
        "has than the solved one on the same inputs; less is better.",
    )
    rows = tuple(
        (
            name,
            f"{_accuracy(result)} ± {100 * result.loss_error:.2f}",
            f"{_share(study, result)} ± {100 * result.cost_error / study.full.cost:.2f}",
            f"{result.value(study.price):.4f} ± {result.value_error(study.price):.4f}",
            "–" if result is study.solved else "{:+.4f} ± {:.4f}".format(*study.advantage(result)).replace("-", "−"),
        )
        for name, result in results.items()
    )
    header = ("rule", "right answers", "mean cost", "loss + price × cost", "more than solved")
    return Section(f"All rules at price {study.price:g}", text, tables=(Table(header, rows),))


def _promises(study: Study, promises: Promises) -> Section:
    text = (
        f"Certificate. {_sentence(promises.certificate)} The samples certified on fitted nothing, and are not those "
        "that judge on this page.",
        f"Gap. {_sentence(promises.gap)} Exits are counted from 0 over all of them.",
        f"Depth. {_numbered(study, promises.names)} {promises.depth}",
        "The chart is about (B): as long as some input is expected to gain more by going on to the next of these exits "
        "than that costs at this price, nothing ends the depth there; where the blue line stays below the other, no "
        "optimal rule goes further.",
    )
    return Section("What can be promised", text, figures.returns(promises.names, promises.depth.diminishing))


def _numbered(study: Study, names: Sequence[str]) -> str:
    """Which exits the statement on depth is about."""
    which = "all exits" if len(names) == len(study.names) else "the exits that the rule looks at"
    return f"It is about {which}: {', '.join(f'{k} is {name}' for k, name in enumerate(names))}."


def _sentence(statement: object) -> str:
    text = str(statement)
    return f"{text[0].upper()}{text[1:]}."


def _provenance(study: Study, made: Provenance) -> Section:
    groups: list[tuple[str, Mapping[str, object]]] = [
        ("samples", {"fit the rules": f"{len(study.fit):,}", "judge them (test)": f"{len(study.test):,}"}),
        ("training", made.training),
        ("seeds", {**made.seeds, "bootstrap": study.seed}),
        ("versions", made.versions),
    ]
    tables = tuple(
        Table((name, ""), tuple((key, str(value)) for key, value in held.items()), words=True)
        for name, held in groups
        if held
    )
    text = ("The commands that made every number on this page, in order, and what they ran with.",)
    return Section("How it was made", text, tables=tables, commands=tuple(made.commands))


def _accuracy(result: Evaluation) -> str:
    return f"{1 - result.loss:.2%}"


def _share(study: Study, result: Evaluation) -> str:
    return f"{result.cost / study.full.cost:.1%}"


def _percent(share: float) -> str:
    return "not reached" if np.isnan(share) else f"{share:.1%}"
