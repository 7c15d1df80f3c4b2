"""A server that ends, or begins to hang, during a test of the suite costs that test, and no other."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ("pytester",)

CONFTEST = "from mlflow_triton_conformance.conftest import *"
TESTS = """
import contextlib
import http.client
import urllib.request

import pytest
from mlflow_triton_conformance.zoo import KINDS, write

requirement = pytest.mark.requirement

@requirement("OIP-HEALTH-002")
def test_kills(protocol, triton_server):
    write(triton_server.model_repository / "kills", KINDS["echo"])
    (triton_server.model_repository / "kills" / "99999999999999999999").mkdir()
    with contextlib.suppress(OSError, http.client.HTTPException):
        protocol.load("kills")  # such a number ends the server

@requirement("OIP-HEALTH-003")
def test_hangs(protocol, triton_server):
    write(triton_server.model_repository / "hangs", KINDS["echo"])
    (triton_server.model_repository / "hangs" / "1" / "model.py").unlink()
    for _ in range(8):
        with contextlib.suppress(TimeoutError):  # such a load does not come back
            urllib.request.urlopen(f"{triton_server.http_url}/v2/repository/models/hangs/load", b"", timeout=1)
    assert False

@requirement("OIP-HEALTH-001")
def test_load_hangs(protocol, triton_server):
    write(triton_server.model_repository / "hangs", KINDS["echo"])
    (triton_server.model_repository / "hangs" / "1" / "model.py").unlink()
    with contextlib.suppress(TimeoutError):
        urllib.request.urlopen(f"{triton_server.http_url}/v2/repository/models/hangs/load", b"", timeout=1)
    assert protocol.get("/health/live").status == 200
    assert False

@requirement("OIP-HEALTH-004")
def test_after(protocol):
    assert protocol.get("/health/live").status == 200
"""


@pytest.mark.slow
def test_an_ended_server(pytester: pytest.Pytester) -> None:
    """The report says during which test the server ended or hung; those that follow have another one."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--triton-launcher=embedded", "--subject=server", "--conformance-report=out"
    )
    result.assert_outcomes(passed=2, failed=2, errors=3)
    found = json.loads((pytester.path / "out" / "report.json").read_text())
    failed, *hung = [it for it in found["tests"] if it["outcome"] != "passed"]
    assert failed["id"].endswith("::test_kills")
    assert [it["id"].partition("::")[2] for it in hung] == ["test_hangs", "test_load_hangs"]
    assert all("The Triton server hangs since this test." in it["message"] for it in hung)
    assert "The Triton server ended during this test." in failed["message"]
    assert "Triton server log" in failed["server_log"]
