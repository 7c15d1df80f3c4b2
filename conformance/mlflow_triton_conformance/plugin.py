"""What pytest calls: the suite's options and markers, the results of its tests, and the report.

pytest loads it in every run, so it costs an unrelated one nothing but its import.
"""

from __future__ import annotations

import json
import platform
import secrets
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton_conformance import options, plugins, report, summary
from mlflow_triton_conformance.catalogue import CATALOGUE, CHAPTERS
from mlflow_triton_conformance.expectations import Expectations, InvalidExpectations
from mlflow_triton_conformance.progress import Progress
from mlflow_triton_conformance.report import Report, SubjectUnderTest
from mlflow_triton_conformance.results import PHASE, Evidence, Results
from pytest_mlflow_triton import settings

if TYPE_CHECKING:
    from collections.abc import Generator

DISTRIBUTION = "mlflow-triton-plugin"
MARKER = "requirement"
EVIDENCE = pytest.StashKey[Evidence]()
EXPECTATIONS = pytest.StashKey[Expectations]()
SEED = pytest.StashKey[str]()
JSON, HTML, BADGE, JUNIT = "report.json", "report.html", "badge.svg", "junit.xml"
WORKER_SEED = "mlflow_triton_conformance_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup(
        "mlflow-triton-conformance", "conformance suite (pytest --pyargs mlflow_triton_conformance)"
    )
    settings.register(parser, group, options.OPTIONS)


@pytest.hookimpl(tryfirst=True)  # before pytest's own plugin for JUnit XML
def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before any test runs."""
    config.addinivalue_line(
        "markers", f"{MARKER}(id, ...): the requirements of the catalogue that a test proves"
    )
    options.subject(config), options.profile(config)
    config.stash[EXPECTATIONS] = _expectations(config)
    config.stash[SEED] = _seed(config)
    config.stash[EVIDENCE] = Evidence(_repeat(config))
    if hasattr(config, "workerinput"):
        return
    directory = _directory(config)
    config.pluginmanager.register(Recorder(config, directory))
    if directory and not config.getoption("xmlpath", default=None):
        config.option.xmlpath = str(directory / JUNIT)


def _expectations(config: pytest.Config) -> Expectations:
    found = settings.setting(config, options.EXPECTATIONS)
    if not found.value:
        return Expectations()
    try:
        return Expectations.read(Path(config.invocation_params.dir, found.value))
    except InvalidExpectations as error:
        raise pytest.UsageError(f"{found.source}: {error}") from None


def _directory(config: pytest.Config) -> Path | None:
    """Make the directory for the report, now and not after a run of many minutes."""
    found = settings.setting(config, options.REPORT)
    if not found.value:
        return None
    directory = Path(config.invocation_params.dir, found.value)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise found.error(
            f"is no directory in which a report can be written: {error.strerror}. Name another one; no test was run."
        ) from None


def _seed(config: pytest.Config) -> str:
    """Choose what the generated examples depend on: always the same, unless someone soaks."""
    given = config.getoption("hypothesis_seed", default=None)
    if given is not None:
        return str(given)
    if inherited := getattr(config, "workerinput", {}).get(WORKER_SEED):
        return str(inherited)
    return str(secrets.randbits(32)) if options.profile(config) == "soak" else "0"


def _repeat(config: pytest.Config) -> list[str]:
    """Return the options with which a test alone is what it is in this run."""
    seed = config.stash[SEED]
    return [*options.given(config), *([] if seed == "0" else [f"--hypothesis-seed={seed}"])]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the seed."""
    node.workerinput[WORKER_SEED] = node.config.stash[SEED]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Seed the suite's properties; leave out what is slow of a quick run."""
    ours = [item for item in items if item.get_closest_marker(MARKER)]
    for item in ours:
        function: Any = getattr(item, "obj", None)
        if getattr(function, "is_hypothesis_test", False):
            from hypothesis import seed  # noqa: PLC0415 - slow to import, and not everybody has it

            seed(config.stash[SEED])(function)
    if options.profile(config) == "quick":
        slow = [item for item in ours if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            left_out = set(slow)
            items[:] = [item for item in items if item not in left_out]


def identifiers(item: pytest.Item) -> list[str]:
    """Return the ids of the requirements that a test proves, in the order of its marks."""
    found = (str(name) for mark in item.iter_markers(MARKER) for name in mark.args)
    return list(dict.fromkeys(found))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the report of the run says of a test; a failure that is expected is none."""
    outcome = yield
    proves = identifiers(item)
    if not proves:
        return outcome
    if call.when == "setup":
        item.user_properties.extend((MARKER, name) for name in proves)  # for JUnit XML
        outcome.user_properties = list(item.user_properties)
    expected = item.config.stash[EXPECTATIONS].failures
    # Under pytest-xdist it goes to the controller with the report.
    vars(outcome)[PHASE] = item.config.stash[EVIDENCE].of(item, outcome, proves)
    if outcome.failed and (known := [name for name in proves if name in expected]):
        outcome.outcome = "skipped"
        outcome.wasxfail = "; ".join(f"{name}: {expected[name]}" for name in known)
    return outcome


def _write(directory: Path, found: Report) -> None:
    """Write the files of a report."""
    from mlflow_triton_conformance import page  # noqa: PLC0415 - only where there is a report

    report.write(directory / JSON, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    report.write(directory / HTML, page.render(found))
    report.write(directory / BADGE, page.badge(found))


class Recorder:
    """Collects the results where the run is reported, and reports them.

    Args:
        config: pytest's.
        directory: Where to write the report; None for nowhere.
    """

    def __init__(self, config: pytest.Config, directory: Path | None) -> None:
        self._config = config
        self._directory = directory
        self._started = datetime.now(timezone.utc)
        self._results = Results(config.stash[EVIDENCE].options)
        self._report: Report | None = None
        self._began = False
        self._progress = Progress(config)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Take away the report of a former run, which this one may not live to replace; show how far a long run has come."""
        if self._directory is not None and not self._began:
            for name in (JSON, HTML, BADGE, JUNIT):
                (self._directory / name).unlink(missing_ok=True)
        self._began = True
        self._progress.show(nodeid, self._results)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Note who knows how many tests there are."""
        self._progress.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a test."""
        self._results.add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Make the report, and fail a run whose expectations are out of date."""
        if not self._results.tests:
            return
        self._report = self._made(whole=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
        stale = {it["result"] for it in self._report["expectations"]} & {"passed", "no such requirement"}
        if stale and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._directory is not None:
            _write(self._directory, self._report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show a line for each chapter, and what failed in words."""
        if self._report is None:
            return
        terminalreporter.section(f"conformance: {self._report['verdict']}")
        for line in summary.lines(self._report):
            terminalreporter.line(line)
        if self._directory is not None:
            terminalreporter.line(f"report: {self._directory}")

    def _made(self, *, whole: bool) -> Report:
        config, results = self._config, self._results
        expected = config.stash[EXPECTATIONS]
        tests = results.ended
        found = report.requirements(CATALOGUE.values(), tests, expected.failures)
        return Report(
            schema=report.SCHEMA,
            suite={"name": DISTRIBUTION, "version": metadata.version(DISTRIBUTION)},
            run={
                "started": self._started.isoformat(timespec="seconds"),
                "seconds": round((datetime.now(timezone.utc) - self._started).total_seconds(), 1),
                "arguments": list(config.invocation_params.args),
                "profile": options.profile(config),
                "seed": config.stash[SEED],
            },
            subject=self._subject(expected),
            server=results.server,
            capabilities=results.capabilities,
            platform={
                "python": platform.python_version(),
                "mlflow": metadata.version("mlflow"),
                "tritonclient": metadata.version("tritonclient"),
                "os": platform.platform(),
            },
            verdict=report.verdict(found, whole=whole),
            chapters=[{"id": chapter.id, "title": chapter.title} for chapter in CHAPTERS],
            requirements=found,
            tests=tests,
            latencies=results.latencies,
            expectations=report.expectations(expected.failures, found),
        )

    def _subject(self, expected: Expectations) -> SubjectUnderTest:
        kind = options.subject(self._config)
        target = options.value(self._config, options.TARGET)
        distribution, version = plugins.distribution(target) if kind == "plugin" else ("", "")
        if kind == "server":
            distribution, version = self._results.server["name"], self._results.server["version"]
        return {
            "kind": kind,
            "target": target if kind == "plugin" else "",
            "distribution": distribution,
            "version": version,
            "lacks": [{"feature": name, "reason": reason} for name, reason in expected.lacks.items()],
        }
