"""The report of a run: the schema of report.json, and how results of tests become results of requirements.

Everything is a plain JSON value. The number `SCHEMA` changes when a reader of an older report could go wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mlflow_triton_conformance.catalogue import Requirement

__all__ = ["SCHEMA", "Report", "Result", "ResultOfTest", "expectations", "requirements", "verdict", "write"]

SCHEMA = 1

Outcome = Literal["passed", "failed", "skipped", "error"]
Result = Literal["passed", "failed", "skipped", "not run", "expected failure", "unexpected pass"]
Verdict = Literal["passed", "failed", "incomplete"]


class Suite(TypedDict):
    """The suite: its distribution and version."""

    name: str
    version: str


class Run(TypedDict):
    """The run: its start (UTC, ISO 8601), its length in seconds, pytest's arguments, and what was generated."""

    started: str
    seconds: float
    arguments: list[str]
    profile: str
    seed: str


class Lack(TypedDict):
    """A feature that the file of expectations says that the subject lacks."""

    feature: str
    reason: str


class SubjectUnderTest(TypedDict):
    """What was tested: a plugin, with its target and distribution, or a server, with its name for the distribution."""

    kind: str
    target: str
    distribution: str
    version: str
    lacks: list[Lack]


class ServerUnderTest(TypedDict):
    """The Triton server, as it describes itself; empty if no test asked for it."""

    name: str
    version: str
    extensions: list[str]
    launcher: str
    url: str


class CapabilityFound(TypedDict):
    """Whether server or plugin have something, and how that is known."""

    present: bool
    detail: str


class Platform(TypedDict):
    """Versions of what the tests ran with."""

    python: str
    mlflow: str
    tritonclient: str
    os: str


class ChapterTitle(TypedDict):
    """A chapter, in the catalogue's order."""

    id: str
    title: str


class SourceLink(TypedDict):
    """Where a requirement is written."""

    title: str
    url: str


class RequirementResult(TypedDict):
    """A requirement, its result with the reason of one that is neither passed nor failed, and its tests."""

    id: str
    chapter: str
    level: str
    sentence: str
    source: SourceLink
    needs: list[str]
    result: Result
    reason: str
    tests: list[str]


class ResultOfTest(TypedDict):
    """A test: its outcome, its seconds, and the evidence of a failure.

    The id is what ``pytest --pyargs`` takes. The reason is that of a test that was skipped.
    """

    id: str
    outcome: Outcome
    seconds: float
    requirements: list[str]
    message: str
    reproduction: str
    server_log: str
    reason: str


class ExpectationResult(TypedDict):
    """An expected failure: failed as expected, passed, was not run, or has no such requirement."""

    id: str
    reason: str
    result: Literal["failed", "passed", "not run", "no such requirement"]


class Report(TypedDict):
    """All of report.json."""

    schema: int
    suite: Suite
    run: Run
    subject: SubjectUnderTest
    server: ServerUnderTest
    capabilities: dict[str, CapabilityFound]
    platform: Platform
    verdict: Verdict
    chapters: list[ChapterTitle]
    requirements: list[RequirementResult]
    tests: list[ResultOfTest]
    latencies: dict[str, list[float]]
    expectations: list[ExpectationResult]


def requirements(
    catalogue: Iterable[Requirement], tests: Sequence[ResultOfTest], expected: Mapping[str, str]
) -> list[RequirementResult]:
    """Find the result of each requirement in those of its tests.

    A requirement is passed if a test of it passed and none failed; it is failed if one failed, unless that test also
    proves a requirement that is expected to fail: then it is not known what failed in it, and it says nothing.

    Args:
        catalogue: The requirements.
        tests: What was run.
        expected: Why requirements are expected to fail, by id.
    """
    found = []
    for requirement in catalogue:
        of_it = [test for test in tests if requirement.id in test["requirements"]]
        result, reason = _result(requirement.id, of_it, expected)
        found.append(
            RequirementResult(
                id=requirement.id,
                chapter=requirement.chapter,
                level=requirement.level,
                sentence=requirement.sentence,
                source=SourceLink(title=requirement.source.title, url=requirement.source.url),
                needs=list(requirement.needs),
                result=result,
                reason=reason,
                tests=[test["id"] for test in of_it],
            )
        )
    return found


def _result(
    identifier: str, tests: Sequence[ResultOfTest], expected: Mapping[str, str]
) -> tuple[Result, str]:
    failed = [test for test in tests if test["outcome"] in ("failed", "error")]
    passed = any(test["outcome"] == "passed" for test in tests)
    result: Result = "not run"
    reason = "no test of it was run to its end"
    if identifier in expected and failed:
        result, reason = "expected failure", expected[identifier]
    elif identifier in expected and passed:
        result, reason = "unexpected pass", f"expected to fail: {expected[identifier]}"
    elif any(not expected.keys() & test["requirements"] for test in failed):
        result, reason = "failed", ""
    elif passed:
        result, reason = "passed", ""
    elif failed:
        others = sorted(set().union(*(expected.keys() & test["requirements"] for test in failed)))
        reason = f"its tests failed as expected for {', '.join(others)}"
    elif tests:
        result, reason = "skipped", "; ".join(dict.fromkeys(test["reason"] for test in tests))
    return result, reason


def expectations(
    expected: Mapping[str, str], results: Iterable[RequirementResult]
) -> list[ExpectationResult]:
    """Say what has become of each expected failure."""
    found = {it["id"]: it["result"] for it in results}
    become: dict[Any, Literal["failed", "passed", "not run", "no such requirement"]] = {
        "expected failure": "failed",
        "unexpected pass": "passed",
        None: "no such requirement",
    }
    return [
        ExpectationResult(id=name, reason=reason, result=become.get(found.get(name), "not run"))
        for name, reason in expected.items()
    ]


def verdict(results: Iterable[RequirementResult], *, whole: bool) -> Verdict:
    """Judge: failed if any MUST failed unexpectedly, incomplete if any was not run, else passed.

    What was skipped does not apply. A SHOULD does not count.

    Args:
        results: The requirements'.
        whole: Whether the run came to its end: one that did not has not passed.
    """
    found = {it["result"] for it in results if it["level"] == "MUST"}
    if "failed" in found:
        return "failed"
    return "passed" if whole and "not run" not in found else "incomplete"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no Unicode in it is written as JSON's escape.

    Raises:
        OSError: It cannot be written; what was there still is.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8", "backslashreplace")
    part.replace(path)
