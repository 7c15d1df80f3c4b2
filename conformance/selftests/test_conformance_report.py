from __future__ import annotations

import json
import shlex
import signal
import types
import typing
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.terminal import TerminalReporter
from click.testing import CliRunner

from mlflow_triton_conformance import cli, progress, report
from mlflow_triton_conformance.catalogue import CATALOGUE
from mlflow_triton_conformance.expectations import Expectations, InvalidExpectations
from mlflow_triton_conformance.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ("pytester",)

TESTS = """
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_passes():
    pass

@pytest.mark.requirement("MLF-CREATE-002", "MLF-CREATE-003")
@pytest.mark.parametrize("right", [True, False])
def test_fails(right):
    assert right, "not right"

@pytest.mark.requirement("MLF-CREATE-004")
def test_is_skipped():
    pytest.skip("does not apply without gpu: none")

@pytest.mark.requirement("MLF-CREATE-005")
def test_cannot_be_set_up(broken):
    pass

@pytest.fixture
def broken():
    raise OSError("no server")

@pytest.mark.slow
@pytest.mark.requirement("MLF-CREATE-006")
def test_is_slow():
    pass

def test_is_of_another_suite():
    assert False
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite of every kind of result."""
    pytester.makeini("[pytest]\nmarkers = slow: left out of quick runs")
    pytester.makepyfile(TESTS)
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> tuple[pytest.RunResult, report.Report]:
    """Run the suite, and read its report."""
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", "--conformance-report=out", *arguments)
    return result, json.loads((suite.path / "out" / "report.json").read_text())


def results(found: report.Report) -> dict[str, str]:
    """Return the result of each requirement that has a test."""
    return {it["id"]: it["result"] for it in found["requirements"] if it["tests"]}


def conforms(value: Any, form: Any, place: str = "report") -> None:
    """Assert that a JSON value is what a TypedDict, or what is in one, says: no key more, none less."""
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if typing.is_typeddict(form):
        assert isinstance(value, dict), place
        hints = typing.get_type_hints(form)
        assert value.keys() == hints.keys(), place
        for key, of_it in hints.items():
            conforms(value[key], of_it, f"{place}.{key}")
    elif origin is typing.Literal:
        assert value in arguments, place
    elif origin is list:
        assert isinstance(value, list), place
        for number, it in enumerate(value):
            conforms(it, arguments[0], f"{place}[{number}]")
    elif origin is dict:
        assert isinstance(value, dict), place
        for key, it in value.items():
            conforms(it, arguments[1], f"{place}[{key!r}]")
    elif form is float:
        assert isinstance(value, int | float), place
    else:
        assert not isinstance(form, types.GenericAlias), place
        assert type(value) is form, (place, value)


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_report(suite: pytest.Pytester, workers: list[str]) -> None:
    """The report has the form that it is said to have, and every result, with and without pytest-xdist."""
    result, found = run(suite, *workers)
    conforms(found, report.Report)
    assert (found["schema"], found["verdict"], result.ret) == (1, "failed", 1)
    assert results(found) == {
        "MLF-CREATE-001": "passed",
        "MLF-CREATE-002": "failed",
        "MLF-CREATE-003": "failed",
        "MLF-CREATE-004": "skipped",
        "MLF-CREATE-005": "failed",
        "MLF-CREATE-006": "passed",
    }
    assert [it["id"] for it in found["requirements"]] == list(CATALOGUE)
    tests = {it["id"].partition("::")[2]: it for it in found["tests"]}
    assert len(tests) == 6
    assert "not right" in tests["test_fails[False]"]["message"]
    assert "pytest --pyargs" in tests["test_fails[False]"]["reproduction"]
    assert tests["test_is_skipped"]["reason"] == "does not apply without gpu: none"
    assert tests["test_cannot_be_set_up"]["outcome"] == "error"
    assert "no server" in tests["test_cannot_be_set_up"]["message"]
    assert "not right" in (suite.path / "out" / "report.html").read_text("utf-8")
    assert f"failed 2/{len(CATALOGUE) - 1}<" in (suite.path / "out" / "badge.svg").read_text("utf-8")
    properties = ET.parse(suite.path / "out" / "junit.xml").iter("property")  # noqa: S314 - pytest's own
    assert {it.get("value") for it in properties if it.get("name") == "requirement"} == results(found).keys()


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_reproduction(suite: pytest.Pytester, workers: list[str]) -> None:
    """What runs a failed test once more has the options of the run: its subject, servers, profile and seed."""
    (suite.path / "a b").mkdir()
    options = ["--triton-url=http://host:1", "--triton-model-repo=a b", "--subject=server"]
    _, found = run(suite, *options, "--conformance-profile=soak", "--triton-keep", "-k", "False", *workers)
    (failed,) = found["tests"]
    seed = f"--hypothesis-seed={found['run']['seed']}"
    assert shlex.split(failed["reproduction"]) == [
        *("pytest", "--pyargs", failed["id"], *options, "--conformance-profile=soak", seed)
    ]


def test_terminal_summary(suite: pytest.Pytester) -> None:
    """The summary has a line for each chapter, and what failed in words."""
    result, _ = run(suite)
    result.stdout.fnmatch_lines(
        [
            "*conformance: failed*",
            "Deployments API and CLI * 2 passed, 3 failed, 1 skipped, * not run",
            f"MUST MLF-CREATE-002: {CATALOGUE['MLF-CREATE-002'].sentence}*",
            "*::test_fails?False?",
        ]
    )


class Yes:
    """True, and true when it is called: pytest has it both ways."""

    def __call__(self) -> bool:
        """Say so."""
        return True


NO_TEXT = """
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_fails():
    pytest.fail("a file of the name \\udc80\\x00")
"""


def test_a_message_that_is_no_text(pytester: pytest.Pytester) -> None:
    """What a subject says may be no Unicode: the report is there, and the page that compares it."""
    pytester.makepyfile(NO_TEXT)
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "--conformance-report=out")
    file = pytester.path / "out" / "report.json"
    (failed,) = json.loads(file.read_text("utf-8"))["tests"]
    assert "a file of the name \udc80\0" in failed["message"]
    assert {it.name for it in file.parent.iterdir()} == {
        *("report.json", "report.html", "badge.svg", "junit.xml")
    }
    page = pytester.path / "page.html"
    done = CliRunner().invoke(cli.main, ["compare", str(file), str(file), "-o", str(page)])
    assert (done.exit_code, page.is_file()) == (0, True), done.output


CRASH = """
import os
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_crashes():
    os.abort()

@pytest.mark.requirement("MLF-CREATE-002")
def test_passes():
    pass
"""


def test_a_crashed_worker(pytester: pytest.Pytester) -> None:
    """The test during which a worker of pytest-xdist crashed has failed, and its evidence says why."""
    pytester.makepyfile(CRASH)
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--conformance-report=out", "-n1")
    found = json.loads((pytester.path / "out" / "report.json").read_text())
    assert results(found) == {"MLF-CREATE-001": "failed", "MLF-CREATE-002": "passed"}
    (crashed,) = [it for it in found["tests"] if it["outcome"] != "passed"]
    assert "crashed while running" in crashed["message"]
    assert "pytest --pyargs" in crashed["reproduction"]


KILLED = """
import os, signal
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_is_the_last():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run(suite: pytest.Pytester) -> None:
    """A run that has no time to write its report does not leave that of a former one, which is about another run."""
    run(suite)
    left = {it.name for it in (suite.path / "out").iterdir()}
    assert left == {"report.json", "report.html", "badge.svg", "junit.xml"}
    suite.makepyfile(test_a_killed_run=KILLED)
    suite.runpytest_subprocess("-p", "no:cacheprovider", "--conformance-report=out", "test_a_killed_run.py")
    assert list((suite.path / "out").iterdir()) == []


LOGS = """
import logging
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_fails(request):
    logging.getLogger("urllib3").warning("of the client")
    request.node.add_report_section("call", "Triton server log", "of the server")
    assert False
"""


def test_logs(pytester: pytest.Pytester) -> None:
    """A failure's server log has what the server logged, and not what the test's own process did."""
    pytester.makepyfile(LOGS)
    _, found = run(pytester)
    assert found["tests"][0]["server_log"] == "Captured Triton server log call\nof the server"


NO_SERVER = """
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_one(protocol):
    pass

@pytest.mark.requirement("MLF-CREATE-002")
def test_two(protocol):
    pass
"""


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_no_server(pytester: pytest.Pytester, workers: list[str]) -> None:
    """A run whose server does not answer ends at once, with what to do, and is no verdict about every requirement."""
    pytester.makeconftest("from mlflow_triton_conformance.conftest import *")
    pytester.makepyfile(NO_SERVER)
    servers = ("--triton-url=http://127.0.0.1:9", f"--triton-model-repo={pytester.path}")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--conformance-report=out", *servers, *workers
    )
    found = json.loads((pytester.path / "out" / "report.json").read_text())
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        "*(from --triton-url) cannot be reached: Connection refused. Start it, or correct*"
    )
    result.stdout.fnmatch_lines("*There is no server to test, see above.*")
    assert [it["id"].partition("::")[2] for it in found["tests"]] == ["test_one"]


INTERRUPTED = """
import os
import signal
import time
import pytest

@pytest.mark.requirement("MLF-CREATE-001")
def test_passes():
    pass

@pytest.mark.requirement("MLF-CREATE-001", "MLF-CREATE-002")
def test_is_broken_off(pytestconfig):
    time.sleep(1)  # pytest-xdist's controller hears of the test before
    os.kill(os.getppid() if hasattr(pytestconfig, "workerinput") else os.getpid(), signal.SIGNAL)
    time.sleep(600)
"""


@pytest.fixture
def _heeds_sigint() -> Iterator[None]:
    """Have processes started here heed SIGINT, which those in the background of a shell's script ignore."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_heeds_sigint")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_an_interrupted_run(pytester: pytest.Pytester, workers: list[str], sent: str) -> None:
    """A test during which somebody interrupts or terminates the run has not passed, and neither has the run."""
    pytester.makeconftest("from mlflow_triton_conformance.conftest import pytest_configure")
    pytester.makepyfile(INTERRUPTED.replace("SIGNAL", sent))
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--conformance-report=out", *workers, timeout=200
    )
    found = json.loads((pytester.path / "out" / "report.json").read_text())
    assert (result.ret, found["verdict"]) == (pytest.ExitCode.INTERRUPTED, "incomplete")
    assert results(found) == {"MLF-CREATE-001": "passed"}
    assert [it["id"].partition("::")[2] for it in found["tests"]] == ["test_passes"]


def test_verdict_of_an_interrupted_run(suite: pytest.Pytester) -> None:
    """A run that was broken off after a test of every requirement has not passed."""
    _, found = run(suite)
    passed = [it | {"result": "passed"} for it in found["requirements"]]
    assert report.verdict(passed, whole=True) == "passed"
    assert report.verdict(passed, whole=False) == "incomplete"


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_progress(suite: pytest.Pytester, workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, and only there, a line says now and then how far the run has come."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    result, _ = run(suite, *workers)
    assert "now test_" not in result.stdout.str()
    terminal = property(lambda _: Yes(), lambda *_: None)
    monkeypatch.setattr(TerminalReporter, "isatty", terminal, raising=False)
    result, _ = run(suite, *workers)
    result.stdout.re_match_lines([r"3 of 7 tests, 1 failed, \d+:\d\d; now test_.*py::test_"])


def test_quick(suite: pytest.Pytester) -> None:
    """A quick run leaves out what is slow, and the requirement was not run."""
    _, found = run(suite, "--conformance-profile=quick")
    assert "MLF-CREATE-006" not in results(found)
    assert found["run"]["profile"] == "quick"


def test_expectations(suite: pytest.Pytester) -> None:
    """What is expected to fail does not fail the run; what passes all the same, or is nothing, does."""
    names = "MLF-CREATE-002: never did\nMLF-CREATE-003: never did\nMLF-CREATE-005: no server here\n"
    file = suite.path / "known.txt"
    file.write_text(f"# known\n\n{names}lacks option:adopt: not wanted\n")
    arguments = ("-k", "not another", f"--conformance-expectations={file}")
    result, found = run(suite, *arguments)
    assert (result.ret, found["verdict"]) == (0, "incomplete")
    assert {results(found)[it] for it in ("MLF-CREATE-002", "MLF-CREATE-005")} == {"expected failure"}
    assert found["subject"]["lacks"] == [{"feature": "option:adopt", "reason": "not wanted"}]
    file.write_text(f"{names}MLF-CREATE-001: gone\nMLF-NOTHING-001: gone\nMLF-UPDATE-001: not run\n")
    result, found = run(suite, *arguments)
    assert result.ret == 1
    assert {it["id"]: it["result"] for it in found["expectations"]} == {
        "MLF-CREATE-001": "passed",
        "MLF-CREATE-002": "failed",
        "MLF-CREATE-003": "failed",
        "MLF-CREATE-005": "failed",
        "MLF-NOTHING-001": "no such requirement",
        "MLF-UPDATE-001": "not run",
    }
    result.stdout.fnmatch_lines(
        ["MLF-CREATE-001 was expected to fail, and passed*", "MLF-NOTHING-001 *no such*"]
    )


def test_a_failure_that_may_be_another(suite: pytest.Pytester) -> None:
    """A test that fails as expected for one requirement says nothing of its other one."""
    file = suite.path / "known.txt"
    file.write_text("MLF-CREATE-002: never did\n")
    _, found = run(suite, f"--conformance-expectations={file}", "-k", "False")
    (other,) = [it for it in found["requirements"] if it["id"] == "MLF-CREATE-003"]
    assert (other["result"], other["reason"]) == (
        "not run",
        "its tests failed as expected for MLF-CREATE-002",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MLF-CREATE-001", "1: 'MLF-CREATE-001' is neither"),
        ("\nMLF-CREATE-001:\n", "2: 'MLF-CREATE-001:' is neither"),
        ("lacks : reason", "is neither"),
        ("A-1: one\nA-1: two", "2: A-1 stands there twice"),
        (b"\xff", "decode"),
    ],
)
def test_expectations_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    """A file with lines that are none is refused, line by line."""
    file = tmp_path / "known.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidExpectations, match=message):
        Expectations.read(file)


@pytest.mark.parametrize(
    "argument", ["--subject=both", "--conformance-profile=slow", "--conformance-expectations=/no/such/file"]
)
def test_wrong_options(suite: pytest.Pytester, argument: str) -> None:
    """A value that there is not is refused before any test runs."""
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {argument.partition('=')[0]}:*"])


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/report"])
def test_a_report_that_cannot_be_written(suite: pytest.Pytester, place: str) -> None:
    """A directory that cannot be made or written to is refused by its name before any test runs."""
    (suite.path / "file").write_text("mine")
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", f"--conformance-report={place}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --conformance-report: '{place}' is no directory in which *no test was run."]
    )
    assert (suite.path / "file").read_text() == "mine"


def test_options_table() -> None:
    """The README's table of the suite's options has all of them, as they are."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for option in OPTIONS:
        cells = (f"`{option.usage}`", f"`{option.environment}`", f"`{option.ini}`")
        default = f"`{option.default}`" if option.default else "none"
        row = " | ".join((*cells, default, option.help)).replace("|", "\\|").replace(" \\| ", " | ")
        assert f"| {row} |" in readme


def test_another_suite_is_left_alone(pytester: pytest.Pytester) -> None:
    """A run without any of the suite's tests has no summary, and no report."""
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--conformance-report=out")
    assert "conformance:" not in result.stdout.str()
    assert not (pytester.path / "out" / "report.json").exists()
