"""What a transaction leaves when the server itself fails, with servers that may be harmed."""

from __future__ import annotations

import asyncio
import copy
import errno
import multiprocessing
import os
import pickle
import signal
import threading
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton, process
from mlflow_triton.errors import (
    DeploymentExists,
    LoadFailed,
    RepositoryError,
    ServerRefused,
    ServerTimeout,
    ServerUnavailable,
)
from mlflow_triton.repository.local import Workspace
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

SLOW = """\
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep({seconds})
    def execute(self, requests):
        return []
"""


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[EmbeddedTriton, Any]]]:
    """Start a Triton of the test's own; return it and a deployment client for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    servers = []

    def starter(*arguments: str) -> tuple[EmbeddedTriton, Any]:
        repository = tmp_path / "repository"
        repository.mkdir()
        server = EmbeddedTriton(repository, arguments=arguments)
        server.start()
        servers.append(server)
        query = urlencode({"model_repository": repository, "grpc_url": server.grpc_url})
        return server, get_deploy_client(f"{server.http_url.replace('http://', 'triton://')}?{query}")

    yield starter
    for server in servers:
        server.stop()


def slow_model(tmp_path: Path, seconds: float) -> str:
    """Save a model that takes its time to load and return its path."""
    directory = models.write_python(tmp_path / "slow", {1: 1})
    (directory / "1" / "model.py").write_text(SLOW.format(seconds=seconds))
    flavor.save_model(directory, tmp_path / "saved")
    return str(tmp_path / "saved")


@pytest.fixture
def onnx_model(tmp_path: Path) -> Callable[[Any], str]:
    """Save an ONNX model and return its path as a model URI."""

    def save(model: Any) -> str:
        path = tmp_path / f"model-{time.monotonic_ns()}"
        mlflow.onnx.save_model(model, str(path), pip_requirements=["onnx"])
        return str(path)

    return save


def ready(server: EmbeddedTriton) -> bool:
    """Ask the server whether it is ready as a whole."""
    try:
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def leftovers(tmp_path: Path) -> list[str]:
    """What lies in the repository, and in workspaces beside it."""
    repository = tmp_path / "repository"
    return [str(path) for path in [*repository.rglob("*"), *tmp_path.glob(".mlflow-triton-*")]]


def test_strict_readiness(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str], tmp_path: Path
) -> None:
    """A failed create leaves a server with strict readiness, Triton's default, as ready as it was."""
    server, client = start("--strict-readiness=true")
    assert ready(server)
    with pytest.raises(LoadFailed, match=r"NoSuchOperator.*Nothing of 'm' is left behind"):
        client.create_deployment("m", onnx_model(models.unloadable()))
    assert ready(server)
    assert leftovers(tmp_path) == []
    client.create_deployment("m", onnx_model(models.constant(1.0)))
    assert client.predict("m", {"x": [[1]]})["outputs"]["y"].tolist() == [[2.0]]


def test_server_dies_during_a_load(start: Callable[..., tuple[EmbeddedTriton, Any]], tmp_path: Path) -> None:
    """A server that dies in the middle of a load is reported, and the repository is as it was."""
    server, client = start()

    def kill_during_load() -> None:
        deadline = time.monotonic() + 60
        while "loading: m" not in server.log() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(server.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_during_load)
    killer.start()
    with pytest.raises((ServerUnavailable, RepositoryError), match="went away during the load"):
        client.create_deployment("m", slow_model(tmp_path, 20))
    killer.join()
    assert leftovers(tmp_path) == [str(tmp_path / "repository" / ".mlflow-triton-m.lock")]


def test_load_timeout(start: Callable[..., tuple[EmbeddedTriton, Any]], tmp_path: Path) -> None:
    """A load that takes longer than it may ends in a clear error, and is taken back."""
    _, client = start()
    with pytest.raises(ServerTimeout, match=r"did not load 'm' within 1 s.*load_timeout") as caught:
        client.create_deployment("m", slow_model(tmp_path, 4), config={"load_timeout": "1"})
    assert caught.value.error_code == "DEADLINE_EXCEEDED"
    assert leftovers(tmp_path) == []


def test_not_in_explicit_mode(
    start: Callable[..., tuple[EmbeddedTriton, Any]],
    onnx_model: Callable[[Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server in another control mode is named as the reason, with the flag that it needs."""
    monkeypatch.setattr(process, "check_arguments", lambda _: None)  # which would refuse the mode
    _, client = start("--model-control-mode=none")
    with pytest.raises(ServerRefused, match="--model-control-mode=explicit") as caught:
        client.create_deployment("m", onnx_model(models.constant(1.0)))
    assert "Undoing" not in caught.value.message
    assert leftovers(tmp_path) == []


def test_restarted_server(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str], tmp_path: Path
) -> None:
    """After a restart, which loads nothing, a deployment is still listed, and can be updated or deleted."""
    server, client = start()
    uri = onnx_model(models.constant(1.0))
    client.create_deployment("a", uri)
    client.create_deployment("b", uri)
    server.stop()
    with EmbeddedTriton(tmp_path / "repository") as again:
        query = urlencode({"model_repository": tmp_path / "repository", "grpc_url": again.grpc_url})
        client = get_deploy_client(f"{again.http_url.replace('http://', 'triton://')}?{query}")
        assert [(entry["name"], entry["state"]) for entry in client.list_deployments()] == [
            ("a", "NOT_LOADED"),
            ("b", "NOT_LOADED"),
        ]
        client.update_deployment("a", uri)
        assert client.predict("a", {"x": [[1]]})["outputs"]["y"].tolist() == [[2.0]]
        client.delete_deployment("b")
        assert [(entry["name"], entry["state"]) for entry in client.list_deployments()] == [("a", "READY")]


def test_permissions(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str], tmp_path: Path
) -> None:
    """Who may read the repository may read what is published, whatever the model's permissions and the umask."""
    _, client = start()
    path = onnx_model(models.constant(1.0))
    Path(path, "model.onnx").chmod(0o600)
    (tmp_path / "repository").chmod(0o755)
    before = os.umask(0o077)
    try:
        client.create_deployment("m", path)
    finally:
        os.umask(before)
    deployed = tmp_path / "repository" / "m"
    assert oct(deployed.stat().st_mode & 0o777) == "0o755"
    assert {oct(file.stat().st_mode & 0o777) for file in deployed.rglob("*") if file.is_file()} == {"0o644"}


def test_delete_that_cannot_remove(
    start: Callable[..., tuple[EmbeddedTriton, Any]],
    onnx_model: Callable[[Any], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deletion whose files cannot be taken away puts the model back into service, and says so."""
    _, client = start()
    client.create_deployment("m", onnx_model(models.constant(1.0)))

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "m")

    with monkeypatch.context() as broken:
        broken.setattr(Workspace, "remove", fail)
        with pytest.raises(RepositoryError, match="'m' is as it was before: Permission denied"):
            client.delete_deployment("m")
    assert client.predict("m", {"x": [[1]]})["outputs"]["y"].tolist() == [[2.0]]
    assert client.get_deployment("m")["in_sync"] is True


def test_two_create_one_name(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str], tmp_path: Path
) -> None:
    """Of several that create one name at once, one wins, and what it published serves; the others are told."""
    _, client = start()
    uris = [onnx_model(models.constant(float(value))) for value in range(4)]
    outcomes: dict[int, str] = {}

    def create(number: int) -> None:
        try:
            client.create_deployment("m", uris[number])
            outcomes[number] = "created"
        except DeploymentExists as error:
            outcomes[number] = error.message

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, outcome in outcomes.items() if outcome == "created"]
    assert all("exists already" in outcomes[number] for number in outcomes if number != winner)
    assert len(outcomes) == 4
    assert client.predict("m", {"x": [[0]]})["outputs"]["y"].tolist() == [[float(winner)]]
    assert client.get_deployment("m")["mlflow_model_uri"] == uris[winner]
    assert [path for path in leftovers(tmp_path) if ".mlflow-triton-" in path] == []


def test_updates_under_load(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str]
) -> None:
    """While a deployment is updated, threads that share one client get answers, of the old model or the new one."""
    _, client = start()
    uris = [onnx_model(models.constant(float(value))) for value in (1, 2)]
    client.create_deployment("m", uris[0])
    stop = threading.Event()
    seen: set[float] = set()
    failures: list[Exception] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.add(float(client.predict("m", {"x": [[0]]})["outputs"]["y"][0, 0]))
            except Exception as error:  # noqa: BLE001, PERF203 - whatever it is, it must not be
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(4):
            client.update_deployment("m", uris[(turn + 1) % 2])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen == {1.0, 2.0}


def test_update_that_times_out(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str], tmp_path: Path
) -> None:
    """A model whose load outlasts its time limit does not come to serve later: the old one does, on disk and there."""
    _, client = start()
    client.create_deployment("m", onnx_model(models.constant(1.0)))
    with pytest.raises(ServerTimeout, match=r"did not load 'm' within 1 s.*'m' still serves"):
        client.update_deployment("m", slow_model(tmp_path, 4), config={"load_timeout": "1"})
    time.sleep(5)
    assert client.predict("m", {"x": [[1]]})["outputs"]["y"].tolist() == [[2.0]]
    assert client.get_deployment("m")["in_sync"] is True


def test_forked_client(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str]
) -> None:
    """Processes that a client's process forks each get their own answers."""
    _, client = start()
    client.create_deployment("m", onnx_model(models.constant(0.0)))
    client.predict("m", {"x": [[0]]})

    def right_answers(number: int) -> int:
        wanted = [[float(number)]]
        return sum(client.predict("m", {"x": wanted})["outputs"]["y"].tolist() == wanted for _ in range(100))

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # forking a process with threads is the point here
        with multiprocessing.get_context("fork").Pool(
            3, initializer=_remember, initargs=(right_answers,)
        ) as pool:
            results = pool.map_async(_remembered, [1, 2, 3], chunksize=1)
            assert right_answers(9) == 100
            assert results.get(60) == [100, 100, 100]


_FUNCTION: dict[str, Callable[[int], int]] = {}


def _remember(function: Callable[[int], int]) -> None:
    _FUNCTION["it"] = function


def _remembered(number: int) -> int:
    return _FUNCTION["it"](number)


def test_pickled_client(
    start: Callable[..., tuple[EmbeddedTriton, Any]], onnx_model: Callable[[Any], str]
) -> None:
    """A client that has been used can be pickled and copied, and the copy works."""
    _, client = start()
    client.create_deployment("m", onnx_model(models.constant(1.0)))
    asyncio.run(client.predict_async("m", {"x": [[1]]}))
    list(client.predict_stream("m", {"x": [[1]]}))
    for other in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):  # noqa: S301 - our own
        assert other.predict("m", {"x": [[1]]})["outputs"]["y"].tolist() == [[2.0]]
