from __future__ import annotations

import os
import shutil
import socket
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton import doctor
from mlflow_triton.doctor import AFTER_HTTP, Finding, diagnose
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mlflow_triton.handles import MlflowServer, TritonServer

# MLflow and SQLAlchemy use what one another deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CHECKS = ["mlflow", "target", "triton http", *AFTER_HTTP, "operations"]


def names(path: Path) -> list[str]:
    """Return the names in a directory, in order."""
    return sorted(item.name for item in path.iterdir())


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def findings(**environment: str) -> dict[str, Finding]:
    """Run the doctor with this environment beside the present one."""
    found = list(diagnose(Settings.parse("triton", {**os.environ, **environment})))
    assert [finding.check for finding in found] == CHECKS
    for finding in found:
        assert finding.level in {"ok", "warning", "failed"}
        assert finding.text
        assert finding.text.isprintable()
    return {finding.check: finding for finding in found}


def repository_finding(path: str) -> Finding:
    """Make the check of the model repository alone."""
    settings = Settings.parse("triton", {**os.environ, "TRITON_MODEL_REPO": path})
    control = Control(HttpEndpoint(settings), settings)
    return doctor._finding("model repository", lambda: doctor._repository(control, settings))


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """Return what is not well."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}


@pytest.fixture
def servers(mlflow_environment: None, triton_environment: None) -> None:
    """Both servers, and an environment that names them."""


@pytest.mark.usefixtures("servers")
def test_all_is_well(triton_server: TritonServer, mlflow_server: MlflowServer) -> None:
    """With both servers there every check is ok, a broken model beside or not; the repository keeps no trace of it."""
    beside = names(triton_server.model_repository.parent)
    broken = triton_server.model_repository / "broken-by-a-test"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text("{")
    before = names(triton_server.model_repository)
    try:
        found = findings()
        assert names(triton_server.model_repository) == before
    finally:
        shutil.rmtree(broken)
    assert levels(found) == {}
    assert mlflow_server.tracking_uri in found["mlflow"].text
    assert f"server {mlflow_server.version}" in found["mlflow"].text
    assert metadata.version("mlflow-triton-plugin") in found["target"].text
    assert triton_server.http_url in found["triton http"].text
    assert triton_server.version in found["triton http"].text
    assert str(triton_server.model_repository) in found["model repository"].text
    assert names(triton_server.model_repository.parent) == beside


@pytest.mark.usefixtures("servers")
def test_a_repository_that_the_server_does_not_read(tmp_path: Path) -> None:
    """A directory that is writable but not the server's is found out, and left as it was."""
    root = tmp_path / "models"
    root.mkdir()
    found = repository_finding(str(root))
    assert found.level == "failed"
    text = found.text
    assert (
        f"{root} (from environment variable TRITON_MODEL_REPO) is writable, but is not what the server reads"
        in text
    )
    assert names(root) == []
    assert names(tmp_path) == ["models"]


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(
    ("path", "words"),
    [("", "TRITON_MODEL_REPO is not set"), ("/nowhere/models", "does not exist on this machine")],
)
def test_a_repository_that_is_not_there(path: str, words: str) -> None:
    """A repository that is not set, or missing, is a failure that says what to set."""
    found = repository_finding(path)
    assert found.level == "failed"
    assert words in found.text


@pytest.mark.usefixtures("servers")
def test_without_grpc() -> None:
    """A gRPC endpoint that does not answer, or is not known, is a warning: a deployment works without it."""
    port = closed_port()
    found = findings(TRITON_GRPC_URL=f"127.0.0.1:{port}")
    assert levels(found) == {"triton grpc": "warning"}
    assert (
        f"127.0.0.1:{port} (from environment variable TRITON_GRPC_URL): no usable answer"
        in found["triton grpc"].text
    )
    settings = Settings.parse("triton", {**os.environ, "TRITON_GRPC_URL": ""})
    level, text = doctor._grpc(Control(HttpEndpoint(settings), settings), settings)
    assert level == "warning"
    assert "no gRPC URL is known" in text


@pytest.mark.usefixtures("mlflow_environment")
def test_without_triton(tmp_path: Path) -> None:
    """Where Triton does not answer, the checks that need it say so, and the others are made."""
    port = closed_port()
    found = findings(TRITON_URL=f"127.0.0.1:{port}", TRITON_MODEL_REPO=str(tmp_path))
    assert set(levels(found)) == {"triton http", *AFTER_HTTP}
    assert f"http://127.0.0.1:{port}" in found["triton http"].text
    assert "Connection refused" in found["triton http"].text
    for check in AFTER_HTTP:
        assert found[check].text == "not checked, as Triton does not answer over HTTP"
    assert names(tmp_path) == []


@pytest.mark.usefixtures("triton_environment")
def test_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLflow does not answer, its check fails, with its address but no password, and the others are made."""
    port = closed_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush@127.0.0.1:{port}")
    found = findings()
    assert levels(found) == {"mlflow": "failed"}
    assert f"http://***@127.0.0.1:{port} cannot be reached: Connection refused" in found["mlflow"].text


def test_mlflow_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in the place of MLflow's server is well, too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    level, text = doctor._mlflow()
    assert level == "ok"
    assert text == f"sqlite:///{tmp_path}/mlflow.db answers (client {metadata.version('mlflow')})"


@pytest.mark.parametrize(
    ("points", "level", "words"),
    [
        ([], "failed", "pip install mlflow-triton-plugin"),
        ([("triton", "a:b")], "ok", "triton is a:b"),
        ([("triton", "a:b"), ("triton", "c:d")], "failed", "a:b, c:d. Uninstall all but one"),
        ([("triton", "a:b"), ("triton", "a:b")], "ok", "a:b"),
        ([("other", "a:b"), ("triton", "c:d")], "ok", "c:d"),
    ],
)
def test_who_claims_the_target(
    points: list[tuple[str, str]], level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly one distribution may claim the target triton, since MLflow takes any of several in silence."""

    def entry_points(**_: Any) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint(name, value, "mlflow.deployments") for name, value in points]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    found, text = doctor._target()
    assert found == level
    assert words in text
