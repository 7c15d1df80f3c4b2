"""A server that ends during a test of the suite costs that test, and no other."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ("pytester",)

CONFTEST = "from mlflow_triton_conformance.conftest import *"
TESTS = """
import contextlib
import http.client

import pytest
from mlflow_triton_conformance.zoo import KINDS, write

requirement = pytest.mark.requirement

@requirement("OIP-HEALTH-001")
def test_before(zoo, protocol):
    assert protocol.is_ready(zoo["echo"])

@requirement("OIP-HEALTH-002")
def test_kills(protocol, triton_server):
    write(triton_server.model_repository / "kills", KINDS["echo"])
    (triton_server.model_repository / "kills" / "99999999999999999999").mkdir()
    with contextlib.suppress(OSError, http.client.HTTPException):
        protocol.load("kills")  # such a number ends the server

@requirement("OIP-HEALTH-003")
def test_after(zoo, protocol):
    assert protocol.is_ready(zoo["echo"])
"""


@pytest.mark.slow
def test_an_ended_server(pytester: pytest.Pytester) -> None:
    """The report says during which test the server ended; those that follow have another one, with the same models in it."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--triton-launcher=embedded", "--subject=server", "--conformance-report=out"
    )
    result.assert_outcomes(passed=3, errors=1)
    found = json.loads((pytester.path / "out" / "report.json").read_text())
    (failed,) = [it for it in found["tests"] if it["outcome"] != "passed"]
    assert failed["id"].endswith("::test_kills")
    assert "The Triton server ended during this test." in failed["message"]
    assert "Triton server log" in failed["server_log"]
