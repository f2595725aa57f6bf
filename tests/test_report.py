import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optdepth.errors import InputError
from optdepth.exit_costs import Costs
from optdepth.inference.clock import Clocked
from optdepth.report import Provenance, write_report
from optdepth.report.gallery import _least
from optdepth.report.regions import Decisions, Regions
from optdepth.stopping.baselines import confidence
from optdepth.stopping.evaluate import evaluate
from optdepth.stopping.methods import METHODS
from optdepth.stopping.placed import placed
from optdepth.stopping.rule import FixedDepth, Origin
from optdepth.trace import Trace

pytestmark = pytest.mark.usefixtures("repeated")  # every method is solved at every price of a sweep

PRICE = 0.1
MADE = Provenance(["optdepth report run"], {"optdepth": "0.1.0"}, {"carving": 3}, {"epochs": 12})
HOSTILE = "<script>alert('$x$')</script>"


def synthetic(samples: int, exits: int) -> Trace:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, samples)
    depth = (np.arange(exits) + 1) / exits
    logits = random.normal(0, 1, (samples, exits, 5))
    strength = np.clip(6 * depth - random.normal(0, 2, (samples, 1)), 0, 8)
    logits[np.arange(samples)[:, None], np.arange(exits), labels[:, None]] += strength
    return Trace.from_logits(logits, labels, Costs.of(2e6 * depth, 1e4, unit="FLOPs").relative())


def ingredients(exits: int = 3, methods: tuple[str, ...] = ("placed", "confidence", "patience")) -> dict[str, Any]:
    fit, test = synthetic(900, exits).split(0.4, 0.6, seed=0)
    rules = {name: METHODS[name].solve(fit).at(PRICE) for name in methods}
    names = [f"block {k + 1}" for k in range(exits)]
    return {"title": "A report", "names": names, "fit": fit, "test": test, "rules": rules, "price": PRICE, "made": MADE}


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    return ingredients()


@pytest.fixture(scope="module")
def page(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "page.html"
    shade = lambda i: Image.new("L", (8, 8), i % 256)  # noqa: E731
    labels = [f"digit {i % 10}" for i in range(len(given["test"]))]
    clock = [Clocked("placed", 64, full=2.125, engine=1.5, speedup=1.43, saving=1.79, threads=1)]
    write_report(path, **given, show=shade, labels=labels, clock=clock)
    return path.read_text()


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the elements left open."""

    VOID = frozenset({"meta", "img", "br", "path", "use"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_self_contained_and_small(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    for tag, attributes in elements.found:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "http" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert len(page) < 1_000_000


def test_identifiers_are_unique_and_references_lead_somewhere(page: str) -> None:
    attributes = [held for _, held in Elements(page).found]
    names = [held["id"] for held in attributes if "id" in held]
    targets = {held["href"] for held in attributes if "href" in held}
    targets |= set(re.findall(r"url\(([^)]*)\)", page))
    assert len(names) == len(set(names))
    assert targets <= {f"#{name}" for name in names}


def test_colours_follow_the_scheme_of_the_page(page: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    assert {"--ink", "--faint", "--blue"} <= used
    assert all(page.count(f"{name}:") == 2 for name in used), "each is set for light and for dark"
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set(), "no colour that stays behind in the dark"


def test_the_numbers_are_those_of_evaluate(page: str, given: dict[str, Any]) -> None:
    full = given["test"].costs.full
    for rule in given["rules"].values():
        found = evaluate(rule, given["test"])
        assert f"{1 - found.loss:.2%} ± {100 * found.loss_error:.2f}" in page
        assert f"{found.cost / full:.1%} ± {100 * found.cost_error / full:.2f}" in page
        assert f"{found.value(PRICE):.4f} ± {found.value_error(PRICE):.4f}" in page
    solved = evaluate(given["rules"]["placed"], given["test"])
    headline = re.search(r'class="headline">(.*?)</p>', page, flags=re.DOTALL)
    assert headline is not None
    assert f"{1 - solved.loss:.2%} right at {solved.cost / full:.1%}" in headline[1]
    assert f"{1 - given['test'].losses[:, -1].mean():.2%}" in headline[1]
    assert "540 test inputs" in headline[1]


def test_costs_clock_and_provenance_are_there(page: str, given: dict[str, Any]) -> None:
    for share in given["test"].costs.relative().paid():
        assert f"<td>{share:.1%}</td>" in page
    for text in ("2.125", "1.43", "1.79", "optdepth report run", "0.1.0", "carving", "epochs", "360", "540"):
        assert text in page


def test_the_gallery_shows_the_first_and_the_last_to_stop(page: str) -> None:
    assert page.count("<img") == 32 + 3  # and those of the first screen
    assert "digit 3" in page
    assert "First and last to stop" in page


def test_the_first_screen_says_who_leaves_where_and_how_fast(page: str, given: dict[str, Any]) -> None:
    first = page[: page.index("<details>")]
    shares = [float(share) for share in re.findall(r"<b>([\d.]+)%</b></div>", first)]
    found = evaluate(given["rules"]["placed"], given["test"])
    assert shares == [float(f"{100 * share:.1f}") for share in found.shares]
    assert all(f"<b>{when}</b>: digit" in first for when in ("leaves early", "midway", "goes deep"))
    assert "64 at once: 1.42 times as fast" in first
    assert "busy" not in first
    assert page.count("<details>") == page.count("</details>") == page.count("<h2>") - 2


def test_a_noisy_clock_and_a_model_run_otherwise_are_said(tmp_path: Path) -> None:
    clock = [Clocked("placed", 8, 2.0, 1.0, 2.0, 2.0, threads=1, noise=0.5, given=4.0)]
    texts = lambda i: "<b>" + "long " * 100  # noqa: E731
    promise = "Loses at most 1 point."
    write_report(tmp_path / "page.html", **ingredients(exits=2), clock=clock, show=texts, promise=promise)
    page = (tmp_path / "page.html").read_text()
    assert "The machine was busy while batches of 8 were timed" in page
    assert "as given" in page
    assert '<p class="headline">Loses at most 1 point.</p>' in page
    assert "“&lt;b&gt;long long" in page
    assert " …”</blockquote>" in page


def test_two_exits_without_pictures_or_clock(tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", **ingredients(exits=2, methods=("placed", "entropy per exit")))
    page = (tmp_path / "page.html").read_text()
    assert "First and last to stop" not in page
    assert "the clock" not in page
    assert page.count("<svg") == 4


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    given = ingredients(exits=2)
    given |= {"title": HOSTILE, "names": [HOSTILE, "</svg>-->$"], "made": Provenance([HOSTILE], {HOSTILE: HOSTILE}, {})}
    given["rules"][HOSTILE] = FixedDepth(Origin(given["fit"].costs), 0)
    labels = [HOSTILE] * len(given["test"])
    write_report(tmp_path / "page.html", **given, show=lambda i: Image.new("RGB", (300, 200)), labels=labels)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("</svg>") == 4
    assert "&lt;script&gt;" in page
    assert Elements(page).open == []


def test_a_rule_that_treats_all_alike_has_no_edge(tmp_path: Path) -> None:
    given = ingredients(exits=2)
    given["rules"]["placed"] = FixedDepth(Origin(given["fit"].costs), 1)
    write_report(tmp_path / "page.html", **given)
    assert "sends all inputs to the same exit" in (tmp_path / "page.html").read_text()
    given = ingredients(exits=2, methods=("confidence",))
    given["price"] = 1e3
    given["rules"] = {name: confidence(given["fit"], price=1e3) for name in ("placed", "confidence")}
    write_report(tmp_path / "page.html", **given)
    page = (tmp_path / "page.html").read_text()
    assert "there is no edge to see" in page
    assert "the two are the same within the noise of this test" in page


def test_the_same_ingredients_give_the_same_page(given: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_report(tmp_path / name, **given)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_regions_find_the_feature_the_direction_and_the_edge(given: dict[str, Any]) -> None:
    fit, test = given["fit"], given["test"]
    for method, feature, rising in (("confidence", "confidence", True), ("entropy", "entropy", False)):
        rule = METHODS[method].solve(fit).at(PRICE)
        regions = Regions.of(rule, test)
        assert (regions.feature, regions.rising, regions.ranked) == (feature, rising, 1.0)
        for at, threshold in zip(regions.decisions, rule.thresholds.tolist(), strict=True):
            stops, goes = at.values[at.stops], at.values[~at.stops]
            inner, outer = (goes.max(), stops.min()) if rising else (stops.max(), goes.min())
            assert inner <= regions.cut(at) <= outer
            assert inner <= threshold <= outer
    lookahead = Regions.of(METHODS["lookahead"].solve(fit).at(PRICE), test)
    assert lookahead.feature in test.features
    assert 0.7 < lookahead.ranked <= 1


def cut(values: list[float], stops: list[bool]) -> float:
    at = Decisions(0, np.array(values, dtype=float), np.array(stops, dtype=bool))
    return Regions("confidence", True, float("nan"), (at,)).cut(at)


@pytest.mark.parametrize("stops", [[True] * 3, [False] * 3, [True, False, False], []])
def test_where_nothing_separates_the_decisions_there_is_no_cut(stops: list[bool]) -> None:
    assert np.isinf(cut([float(i) for i in range(len(stops))], stops))
    assert np.isinf(cut([0.5] * len(stops), stops))


def test_few_that_stop_weigh_as_much_as_many_that_go_on() -> None:
    assert cut([*range(100)], [i in (95, 97, 99) for i in range(100)]) == pytest.approx(94.5)


def test_samples_that_tie_are_taken_evenly() -> None:
    key = np.array([1] * 40 + [0] * 4 + [1] * 40)
    chosen = _least(key)
    assert list(chosen[:4]) == [40, 41, 42, 43]
    assert len(chosen) == len(set(chosen)) == 16
    assert {0, 83} <= set(chosen.tolist())
    assert sorted(_least(np.zeros(5, dtype=int))) == [0, 1, 2, 3, 4]


def test_bad_input_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    def refused(match: str, **changed: Any) -> None:
        with pytest.raises(InputError, match=match):
            write_report(tmp_path / "page.html", **{**given, **changed})

    refused("2 exit names", names=["a", "b"])
    refused("1 labels for 540", labels=["a"])
    refused("needs 'placed'", rules={"confidence": given["rules"]["confidence"]})
    refused("needs 'placed'", rules={"placed": given["rules"]["placed"]})
    refused("solved at price 0.1, the report is for 0.2", price=0.2)
    refused("cannot judge it", test=given["fit"])
    half = Trace(given["test"].losses / 2, given["test"].observations, given["test"].costs)
    refused("other than 0 and 1", test=half)
    refused("one test sample", test=given["test"].select(np.array([0])))
    assert not list(tmp_path.iterdir())


def test_promises_are_about_the_exits_that_the_rule_looks_at(tmp_path: Path) -> None:
    dear = lambda trace: dataclasses.replace(trace, costs=Costs.of(trace.costs.reach, 0.1))  # noqa: E731
    fit, certify, test = map(dear, synthetic(3_000, 5).split(0.3, 0.3, 0.4, seed=1))
    rules = {name: METHODS[name].solve(fit).at(PRICE) for name in ("placed", "confidence")}
    kept = [k for k, looks in enumerate(rules["placed"].looks) if looks]
    assert 2 <= len(kept) < 5
    given = {"title": "A report", "names": list("abcde"), "fit": fit, "test": test, "rules": rules, "price": PRICE}
    write_report(tmp_path / "page.html", **given, made=MADE, certify=certify)
    numbered = ", ".join(f"{i} is {'abcde'[k]}" for i, k in enumerate(kept))
    page = (tmp_path / "page.html").read_text()
    assert f"about the exits that the rule looks at: {numbered}." in page
    assert f"of 0 to {len(kept) - 1}" in page


@pytest.mark.parametrize("exits", [2, 5])
def test_promises_are_certified_on_other_samples(exits: int, tmp_path: Path) -> None:
    fit, certify, test = synthetic(3_000, exits).split(0.3, 0.3, 0.4, seed=1)
    rules = {name: METHODS[name].solve(fit).at(PRICE) for name in ("placed", "confidence")}
    names = [f"block {k + 1}" for k in range(exits)]
    given = {"title": "A report", "names": names, "fit": fit, "test": test, "rules": rules, "price": PRICE}
    write_report(tmp_path / "page.html", **given, made=MADE, certify=certify)
    page = (tmp_path / "page.html").read_text()
    found = placed(fit).certified(certify, risk=0.01, confidence=0.95, measure="excess")
    assert "What can be promised" in page
    assert str(found)[1:] in html.unescape(page)
    for trace in (fit, test):
        with pytest.raises(InputError):
            write_report(tmp_path / "page.html", **given, made=MADE, certify=trace)
