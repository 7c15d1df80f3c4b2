"""mlflow-triton status: disk, server, registry and statistics side by side."""

from __future__ import annotations

import json
import os
import re
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
from mlflow_triton.repository.claim import claim
from mlflow_triton.repository.layout import KEPT
from mlflow_triton.repository.record import RECORD_NAME
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

#: What NVIDIA's plugin writes into a record.
NVIDIAS = ("name", "triton_model_path", "mlflow_model_uri", "flavor")


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

    record = server.model_repository / "m" / RECORD_NAME
    known = json.loads(record.read_text())
    record.write_text(json.dumps({key: known[key] for key in NVIDIAS}))
    code, found = look(target)
    (row,) = found["deployments"]
    assert (code, row["state"], row["digest"], row["changed_files"]) == (1, "READY", None, [])
    assert row["problems"] == ["deployed by NVIDIA's plugin, which keeps no record of what serves"]
    client.delete_deployment("m")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Put records of deployments that no server has loaded into a repository; return the target of it, and no server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    repository = tmp_path / "repository"
    repository.mkdir()

    def write(name: str, uri: str, /, **more: object) -> str:
        (repository / name).mkdir()
        four = dict(zip(NVIDIAS, (name, "", uri, "triton"), strict=True))
        (repository / name / RECORD_NAME).write_text(json.dumps({**four, **more}))
        return f"triton://127.0.0.1:9?model_repository={repository}"

    return write


@pytest.mark.filterwarnings("ignore:.*transition_model_version_stage:FutureWarning")
def test_what_a_uri_means_now(records: Callable[..., str], tmp_path: Path) -> None:
    """An alias, a stage and the latest version are looked up in the registry; a version and a path mean what they meant."""
    source = models.write_python(tmp_path / "source", {1: 5})
    for _ in range(2):
        publish("registered", source, aliases=("champion",))
    client = mlflow.MlflowClient()
    client.transition_model_version_stage("registered", "1", "Production")
    given = {
        "alias": ("models:/registered@champion", "1"),
        "gone": ("models:/registered@loser", "1"),
        "latest": ("models:/registered/latest", "2"),
        "path": (str(source), None),
        "stage": ("models:/registered/Production", "1"),
        "version": ("models:/registered/1", "1"),
    }
    for name, (uri, version) in given.items():
        target = records(name, uri, model_name="registered", model_version=version)
    found = {row["name"]: row for row in look(target)[1]["deployments"]}
    assert {name: (row["registry_version"], row["drift"]) for name, row in found.items()} == {
        "alias": ("2", True),
        "gone": (None, None),
        "latest": ("2", False),
        "path": (None, None),
        "stage": ("1", False),
        "version": (None, None),
    }
    assert {name for name, row in found.items() if row["registry_error"]} == {"gone"}


def test_without_mlflow(records: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That MLflow is down is told where it matters, and is no problem of the deployment."""
    records("a", "models:/registered@champion", model_name="registered", model_version="1")
    target = records("b", "models:/registered/1", model_name="registered", model_version="1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    moved, fixed = look(target)[1]["deployments"]
    assert "cannot be reached" in moved["registry_error"]
    assert (moved["drift"], fixed["registry_error"]) == (None, None)
    assert moved["problems"] == fixed["problems"] == ["the server did not say what it runs"]


def test_what_is_not_whole(records: Callable[..., str], tmp_path: Path) -> None:
    """An interrupted operation, a corrupt record and a corrupt one of what is kept are rows with the reason; others are as ever."""
    target = records("kept", "models:/registered/2")
    (tmp_path / "repository" / "kept" / KEPT).mkdir()
    (tmp_path / "repository" / "kept" / KEPT / RECORD_NAME).write_text("{")
    records("well", "models:/registered/1")
    records("corrupt", "models:/registered/1", name="another")
    if (pid := os.fork()) == 0:
        root = tmp_path / "repository"
        with claim(root, "well", "create", timeout=1) as well, claim(root, "new", "create", timeout=1) as new:
            for held in (well, new):
                held.begin("0" * 32, was_ready=False, server_was_ready=True)
            os._exit(0)
    os.waitpid(pid, 0)
    code, found = look(target)
    rows = {row["name"]: (row["state"], *row["problems"]) for row in found["deployments"]}
    interrupted = rf"create by process {pid} on .*, which was interrupted.*finishes or undoes it"
    expected = {
        "corrupt": "it is the record of 'another'.*Restore",
        "kept": f"corrupt.*{KEPT}.*keeps for a rollback; 'kept' itself is untouched",
        "new": f"{interrupted}.*MLflow has deployed nothing under this name",
        "well": interrupted,
    }
    assert (code, sorted(rows)) == (1, sorted(expected))
    for name, words in expected.items():
        assert re.search(words, " ".join(rows[name])), rows[name]
    result = CliRunner().invoke(main, ["status", "-t", target, "../kept"])
    assert result.exit_code != 0
    assert "deployment name '../kept'" in result.output
