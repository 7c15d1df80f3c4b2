"""The results of the tests: taken from pytest's reports where a test runs, collected where the run is reported."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mlflow_triton_conformance.report import CapabilityFound, ResultOfTest, ServerUnderTest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["NO_SERVER", "PHASE", "Evidence", "Facts", "Phase", "Results", "test_id"]

PACKAGE = Path(__file__).parent
TENSORS = "tensors of this failure, to paste into Python"
"""The section with which `pytest_mlflow_triton` reports a comparison."""
SERVER_LOG = re.compile(r"(Captured )?(Triton|MLflow) server\b.* log\b")
"""The sections with what the servers logged, apart from those with what the test's own process did."""
LONGEST = 20_000
"""Characters of a message, and of a log."""

PHASE = "conformance"
"""What a report has of a `Phase`."""

CRASHED = "???"
"""What pytest-xdist calls the phase of a test whose worker crashed."""

NO_SERVER = ServerUnderTest(name="", version="", extensions=[], launcher="", url="")


class Facts(TypedDict):
    """What a process has found out about server and plugin."""

    server: ServerUnderTest
    capabilities: dict[str, CapabilityFound]


class Phase(TypedDict):
    """What setup, call or teardown of a test adds to its result."""

    test: str
    requirements: list[str]
    failed: bool
    skipped: bool
    message: str
    reproduction: str
    server_log: str
    reason: str
    latencies: dict[str, list[float]]
    facts: Facts | None


def test_id(nodeid: str, path: Path) -> str:
    """Return a test's name, which ``pytest --pyargs`` takes, and which does not depend on the directory of the run."""
    _, separator, rest = nodeid.partition("::")
    if path.parent == PACKAGE:
        return f"{PACKAGE.name}.{path.stem}{separator}{rest}"
    return nodeid


@dataclass(slots=True)
class Evidence:
    """What this process knows of its tests.

    Attributes:
        options: Those with which a test is run as in this run.
        facts: About server and plugin, until a report has taken them along.
        latencies: Seconds that the running test has measured, by what took them.
    """

    options: list[str] = field(default_factory=list)
    facts: Facts | None = None
    latencies: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def latency(self, name: str) -> Iterator[None]:
        """Measure how long something takes that went well."""
        started = time.perf_counter()
        yield
        self.latencies.setdefault(name, []).append(time.perf_counter() - started)

    def of(self, item: pytest.Item, report: pytest.TestReport, proves: list[str]) -> Phase:
        """Take what a report says of a phase of a test."""
        name = test_id(item.nodeid, item.path)
        phase = Phase(
            test=name,
            requirements=proves,
            failed=report.failed,
            skipped=report.skipped,
            message="",
            reproduction="",
            server_log="",
            reason="",
            latencies=self.latencies,
            facts=self.facts,
        )
        self.latencies, self.facts = {}, None
        if report.failed:
            phase["message"] = _message(report)[:LONGEST]
            phase["reproduction"] = _reproduction(report, name, self.options)
            logs = [f"{title}\n{text}" for title, text in report.sections if SERVER_LOG.match(title)]
            phase["server_log"] = "\n\n".join(logs)[-LONGEST:]
        elif report.skipped:
            longrepr = report.longrepr
            text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
            phase["reason"] = text.removeprefix("Skipped: ")
        return phase


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash is not None else report.longreprtext


def _reproduction(report: pytest.TestReport, name: str, options: list[str]) -> str:
    """Return the command that runs the test alone, and the tensors of a comparison that failed."""
    parts = [shlex.join(["pytest", "--pyargs", name, *options])]
    parts += [text for title, text in report.sections if title == TENSORS]
    return "\n\n".join(parts)[:LONGEST]


@dataclass(slots=True)
class Results:
    """What the run has come to so far.

    Attributes:
        options: Those with which a test is run as in this run.
        tests: The tests' results by id, in the order in which the tests began.
        server: The server, as the first process that asked it found it.
        capabilities: The same of what server and plugin have.
        latencies: Seconds by what took them.
    """

    options: list[str] = field(default_factory=list)
    tests: dict[str, ResultOfTest] = field(default_factory=dict)
    server: ServerUnderTest = field(default_factory=lambda: NO_SERVER)
    capabilities: dict[str, CapabilityFound] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    @property
    def ended(self) -> list[ResultOfTest]:
        """The results of the tests that were not broken off: without its teardown, none has passed."""
        return [it for name, it in self.tests.items() if name in self._ended or it["outcome"] != "passed"]

    def _crash(self, report: pytest.TestReport) -> None:
        """Add what pytest-xdist says of a worker that crashed to the test whose setup was the last that it told of."""
        name = self._names.get(report.nodeid)
        if name is not None:
            self.tests[name]["outcome"] = "error"
            self.tests[name]["message"] = report.longreprtext[:LONGEST]
            self.tests[name]["reproduction"] = _reproduction(report, name, self.options)

    def add(self, report: pytest.TestReport) -> None:
        """Add a phase of a test, if it is one of the suite's."""
        phase: Phase | None = vars(report).get(PHASE)
        if phase is None:
            if report.when == CRASHED:
                self._crash(report)
            return
        self._names[report.nodeid] = phase["test"]
        test = self.tests.setdefault(
            phase["test"],
            ResultOfTest(
                id=phase["test"],
                outcome="passed",
                seconds=0.0,
                requirements=phase["requirements"],
                message="",
                reproduction="",
                server_log="",
                reason="",
            ),
        )
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.when == "teardown":
            self._ended.add(phase["test"])
        if phase["failed"] and test["outcome"] not in ("failed", "error"):
            test["outcome"] = "failed" if report.when == "call" else "error"
            test["message"] = phase["message"]
            test["reproduction"] = phase["reproduction"]
            test["server_log"] = phase["server_log"]
        elif phase["failed"]:
            test["message"] = f"{test['message']}\n\n{report.when}: {phase['message']}"[:LONGEST]
        elif phase["skipped"] and test["outcome"] == "passed":
            test["outcome"] = "skipped"
            test["reason"] = phase["reason"]
        for name, seconds in phase["latencies"].items():
            self.latencies.setdefault(name, []).extend(round(it, 6) for it in seconds)
        if phase["facts"] is not None and not self.server["name"]:
            self.server = phase["facts"]["server"]
            self.capabilities = phase["facts"]["capabilities"]
