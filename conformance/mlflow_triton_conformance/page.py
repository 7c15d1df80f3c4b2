"""The page of a report: one HTML file that needs nothing else, for a browser, a phone, paper, and an archive.

Nothing of a report is trusted: all of it is escaped, and the page forbids the browser, by the hashes of its own
style and script, to run or to fetch anything else.
"""

from __future__ import annotations

import base64
import hashlib
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import jinja2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlflow_triton_conformance.report import Report, RequirementResult, ResultOfTest

__all__ = ["badge", "compare", "render"]

#: In the order in which they are shown: with the class, the sign and the plural of each.
RESULTS: Final = {
    "failed": ("failed", "✕", "failed"),
    "unexpected pass": ("unexpected", "!", "unexpected passes"),
    "expected failure": ("expected", "≈", "expected failures"),
    "passed": ("passed", "✓", "passed"),
    "skipped": ("skipped", "–", "skipped"),  # noqa: RUF001 - a dash
    "not run": ("notrun", "○", "not run"),
    "absent": ("notrun", " ", "absent"),
}
VERDICTS: Final = {
    "passed": "Passed",
    "failed": "Failed",
    "incomplete": "Incomplete",
}
BADGE_COLOURS: Final = {"passed": "#1a7f37", "failed": "#c2202c", "incomplete": "#9a6700"}
FEW = 4
"""So many tests of the same outcome are listed; more are counted, and listed on demand."""
BINS = 64
"""Bars of a plot."""


def render(report: Report) -> str:
    """Make the page of one report.

    Args:
        report: What report.json holds.

    Returns:
        HTML.
    """
    evidence: dict[str, str] = {}
    tests = {test["id"]: test for test in report["tests"]}
    chapters = [
        Chapter(
            chapter["id"],
            chapter["title"],
            [
                Row(requirement, list(_groups(requirement, tests, evidence)))
                for requirement in report["requirements"]
                if requirement["chapter"] == chapter["id"]
            ],
        )
        for chapter in report["chapters"]
    ]
    named = {test for requirement in report["requirements"] for test in requirement["tests"]}
    others = [test for name, test in tests.items() if name not in named and _failed(test)]
    return _page(
        "report.html.j2",
        title=f"{VERDICTS[report['verdict']]}: {subject(report)}",
        report=report,
        subject=subject(report),
        counts=_counts(report),
        levels={
            level: _counts(report, level) for level in sorted({it["level"] for it in report["requirements"]})
        },
        chapters=[chapter for chapter in chapters if chapter.rows],
        others=others,
        plots=plots([report["latencies"]]),
    )


def compare(reports: Sequence[Report]) -> str:
    """Make one page of several reports: plugin against plugin, release against release.

    Args:
        reports: What the report.json of each holds, the first one being what the others are compared with.

    Returns:
        HTML.
    """
    columns = [
        Column(chr(ord("A") + at), report, subject(report), _counts(report))
        for at, report in enumerate(reports)
    ]
    titles = {chapter["id"]: chapter["title"] for report in reports for chapter in report["chapters"]}
    by_id = [{it["id"]: it for it in report["requirements"]} for report in reports]
    tests = [{test["id"]: test for test in report["tests"]} for report in reports]
    chapters: dict[str, list[Comparison]] = {chapter: [] for chapter in titles}
    for identifier in dict.fromkeys(name for found in by_id for name in found):
        found = [of_report.get(identifier) for of_report in by_id]
        newest = next(it for it in reversed(found) if it is not None)
        chapters[newest["chapter"]].append(
            Comparison(
                newest,
                [
                    Cell(
                        column,
                        it,
                        [
                            test
                            for test in map(of_it.get, it["tests"] if it else ())
                            if test and _failed(test)
                        ],
                    )
                    for column, it, of_it in zip(columns, found, tests, strict=True)
                ],
            )
        )
    return _page(
        "compare.html.j2",
        title=f"Comparison: {', '.join(column.subject for column in columns)}",
        columns=columns,
        chapters=[
            (
                chapter,
                titles[chapter],
                rows,
                [_tally(row.cells[at].result for row in rows) for at in range(len(columns))],
            )
            for chapter, rows in chapters.items()
            if rows
        ],
        differences=sum(row.differs for rows in chapters.values() for row in rows),
        plots=plots([report["latencies"] for report in reports]),
    )


def badge(report: Report) -> str:
    """Make the badge of a report, an SVG image of 20 pixels' height."""
    counts = _counts(report)
    judged = sum(counts.values()) - counts["skipped"]
    label, value = "triton conformance", f"{report['verdict']} {counts['passed']}/{judged}"
    widths = [round(6.6 * len(text)) + 12 for text in (label, value)]
    return (
        _environment()
        .get_template("badge.svg.j2")
        .render(label=label, value=value, widths=widths, colour=BADGE_COLOURS[report["verdict"]])
    )


def subject(report: Report) -> str:
    """Name what was tested, and on what: ``mlflow-triton-plugin 0.1.0 on triton 2.51.0``."""
    tested, server = report["subject"], report["server"]
    name = " ".join(filter(None, (tested["distribution"] or tested["target"], tested["version"])))
    on = " ".join(filter(None, (server["name"], server["version"])))
    return f"{name} on {on}" if on and on != name else name


@dataclass(frozen=True, slots=True)
class Group:
    """Tests of a requirement that came out the same.

    Attributes:
        outcome: Of all of them.
        reason: Why they were skipped.
        tests: What they are.
        shown_at: By a failed test whose evidence stands at another requirement: that one's id.
    """

    outcome: str
    reason: str
    tests: list[ResultOfTest]
    shown_at: Mapping[str, str] = field(default_factory=dict)

    @property
    def many(self) -> bool:
        """Whether they are counted rather than listed."""
        return len(self.tests) > FEW and self.outcome not in ("failed", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """A requirement with its tests."""

    requirement: RequirementResult
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter with its requirements."""

    identifier: str
    title: str
    rows: list[Row]

    @property
    def counts(self) -> Counter[str]:
        """How many requirements have each result."""
        return _tally(row.requirement["result"] for row in self.rows)


@dataclass(frozen=True, slots=True)
class Column:
    """One report of several."""

    letter: str
    report: Report
    subject: str
    counts: Counter[str]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a requirement came to in one report of several."""

    column: Column
    requirement: RequirementResult | None
    failed: list[ResultOfTest]

    @property
    def result(self) -> str:
        """The result; ``absent`` if that report's suite did not have the requirement."""
        return self.requirement["result"] if self.requirement else "absent"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A requirement in all reports."""

    requirement: RequirementResult
    cells: list[Cell]

    @property
    def differs(self) -> bool:
        """Whether it came to different results."""
        return len({cell.result for cell in self.cells}) > 1


@dataclass(frozen=True, slots=True)
class Series:
    """The durations of one kind, of one report.

    Attributes:
        bars: Left edge, width and height of each, in percent.
        quantiles: Of the durations in seconds, by name, with the place of each on the axis in percent.
        number: Of durations.
    """

    bars: list[tuple[float, float, float]]
    quantiles: dict[str, tuple[float, float]]
    number: int


@dataclass(frozen=True, slots=True)
class Plots:
    """The latencies of a run, or of several, on one logarithmic axis.

    Attributes:
        ticks: Seconds, and the place in percent.
        rows: By name, one for each report; None where a report has none of that name.
    """

    ticks: list[tuple[float, float]]
    rows: dict[str, list[Series | None]]


def plots(latencies: Sequence[Mapping[str, Sequence[float]]]) -> Plots | None:
    """Lay out histograms of latencies; nothing if there are none."""
    names = dict.fromkeys(name for of_run in latencies for name, values in of_run.items() if values)
    everything = [
        max(value, 1e-6) for of_run in latencies for name in names for value in of_run.get(name, ())
    ]
    if not everything:
        return None
    low, high = math.log10(min(everything)), math.log10(max(everything))
    margin = max(0.04 * (high - low), 0.05)
    low, high = low - margin, high + margin

    def place(seconds: float) -> float:
        return round(100 * (math.log10(max(seconds, 1e-6)) - low) / (high - low), 2)

    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [(step * 10.0**decade, place(step * 10.0**decade)) for decade in decades for step in steps]

    def series(values: Sequence[float]) -> Series | None:
        if not values:
            return None
        heights = Counter(min(int(place(value) / 100 * BINS), BINS - 1) for value in values)
        highest = max(heights.values())
        width = 100 / BINS
        ordered = sorted(values)
        quantiles = {"median": statistics.median(ordered)}
        quantiles |= {
            f"p{part}": _quantile(ordered, part / 100)
            for part, least in ((95, 20), (99, 100))
            if len(values) >= least
        }
        quantiles["maximum"] = ordered[-1]
        return Series(
            [
                (round(at * width, 3), round(0.86 * width, 3), round(100 * n / highest, 1))
                for at, n in sorted(heights.items())
            ],
            {name: (value, place(value)) for name, value in quantiles.items()},
            len(values),
        )

    return Plots(
        [(seconds, at) for seconds, at in ticks if 2 <= at <= 98],
        {name: [series(of_run.get(name, ())) for of_run in latencies] for name in names},
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(math.ceil(part * len(ordered)), len(ordered)) - 1]


def _groups(
    requirement: RequirementResult, tests: Mapping[str, ResultOfTest], evidence: dict[str, str]
) -> Iterator[Group]:
    """Group a requirement's tests, the failed ones first; note where the evidence of each of those is shown."""
    found: dict[tuple[str, str], list[ResultOfTest]] = {}
    for name in requirement["tests"]:
        if (test := tests.get(name)) is not None:
            found.setdefault((test["outcome"], test["reason"]), []).append(test)
    order = ("failed", "error", "passed", "skipped")
    for (outcome, reason), of_it in sorted(
        found.items(), key=lambda it: (order.index(it[0][0]), -len(it[1]))
    ):
        shown_at = {test["id"]: evidence[test["id"]] for test in of_it if test["id"] in evidence}
        for test in of_it:
            if _failed(test):
                evidence.setdefault(test["id"], requirement["id"])
        yield Group(outcome, reason, of_it, shown_at)


def _failed(test: ResultOfTest) -> bool:
    return test["outcome"] in ("failed", "error")


def _counts(report: Report, level: str | None = None) -> Counter[str]:
    return _tally(it["result"] for it in report["requirements"] if level in (None, it["level"]))


def _tally(results: Iterable[str]) -> Counter[str]:
    found = Counter(results)
    return Counter({result: found[result] for result in RESULTS if found[result]})


def _page(template: str, **context: Any) -> str:
    environment = _environment()
    style, script = (_source(name) for name in ("page.css", "page.js"))
    return environment.get_template(template).render(
        style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), **context
    )


def _source(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Name a text for a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlflow_triton_conformance"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(seconds=_seconds, web=_web, duration=_duration, segments=_segments)
    environment.globals.update(results=RESULTS, verdicts=VERDICTS)
    return environment


def _segments(counts: Counter[str]) -> list[tuple[str, float, float]]:
    """Lay out a bar of results: class, left edge and width in percent."""
    total, left, found = sum(counts.values()), 0.0, []
    for result, number in counts.items():
        width = 100 * number / total
        found.append((RESULTS[result][0], round(left, 2), round(width, 2)))
        left += width
    return found


def _seconds(value: float) -> str:
    """Write a duration with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size or unit == "µs":
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"
    raise AssertionError(value)


def _duration(value: float) -> str:
    """Write how long a run took."""
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{value:.3g} s"


def _web(url: str) -> str:
    """Return an address only if it is one of the web, and not, say, a script."""
    return url if urlsplit(url).scheme in ("http", "https") else ""
