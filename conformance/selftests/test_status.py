"""mlflow-triton status: disk, server, registry and statistics side by side."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client

from mlflow_triton.cli import main
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.publish import publish
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server of this module's own."""
    repository = tmp_path_factory.mktemp("status") / "repository"
    repository.mkdir()
    with EmbeddedTriton(repository) as server:
        yield server


def look(target: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and what --json prints."""
    result = CliRunner().invoke(main, ["status", "-t", target, "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def test_status(server: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells what serves, how often it answered, drift, files that changed, and a server that never answers."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    query = f"model_repository={server.model_repository}&grpc_url={server.grpc_url}&request_timeout=3"
    target = f"{server.http_url.replace('http://', 'triton://')}?{query}"
    client = get_deploy_client(target)
    source = models.write_python(tmp_path / "source", {1: 5})
    publish("registered", source, aliases=("champion",))
    client.create_deployment("m", "models:/registered@champion")
    client.predict("m", {"x": [1]})
    code, found = look(target)
    (row,) = found["deployments"]
    assert (code, found["ok"], found["server_error"], row["problems"]) == (0, True, None, [])
    assert (row["state"], row["serving_versions"], row["changed_files"]) == ("READY", [1], [])
    assert (row["model_name"], row["model_version"], row["drift"]) == ("registered", "1", False)
    assert row["serving_id"] == row["deployment_id"] == client.get_deployment("m")["deployment_id"]
    assert (row["inferences"], row["requests"], row["failures"]) == (1, 1, 0)
    assert row["latency_ms"] >= row["queue_ms"] + row["compute_ms"] > 0

    publish("registered", source, aliases=("champion",))
    code, found = look(target, "m")
    assert (code, found["deployments"][0]["drift"], found["deployments"][0]["registry_version"]) == (
        0,
        True,
        "2",
    )

    (server.model_repository / "m" / "1" / "model.py").write_text("raise SystemExit")
    mlflow.MlflowClient().delete_registered_model_alias("registered", "champion")
    code, found = look(target)
    assert (code, found["deployments"][0]["changed_files"]) == (1, ["1/model.py"])
    assert "was not found" in found["deployments"][0]["registry_error"]
    lines = CliRunner().invoke(main, ["status", "-t", target, "m", "no-such"]).stdout.splitlines()
    assert any("NOT_DEPLOYED" in line for line in lines)
    assert max(map(len, lines)) <= 110

    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        hanging = f"triton://127.0.0.1:{silent.getsockname()[1]}?{query.replace('timeout=3', 'timeout=1')}"
        code, found = look(hanging)
    assert (code, found["deployments"][0]["state"], len(found["deployments"])) == (1, "UNKNOWN", 1)
    assert "did not answer within 1 s" in found["server_error"]
    assert time.monotonic() - started < 60
    client.delete_deployment("m")
