"""Servers that hang, cut connections or are something else, and models that die."""

from __future__ import annotations

import shutil
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models
from mlflow_triton_conformance.wire import request, tensor
from mlflow_triton_conformance.zoo import KINDS, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
X = {"x": np.ones((1, 1), np.float32)}
SILENT, GARBAGE = b"", b"SSH-2.0-OpenSSH_9.2p1\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"


@contextmanager
def stub(says: bytes, *, hangs: bool) -> Iterator[str]:
    """Play a fault that no server plays on demand: say something to everyone, then hang or close the connection."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # it is over
                    return
                connections.append(connection)
                connection.settimeout(5)
                try:
                    connection.recv(65536)
                    connection.sendall(says)
                except OSError:  # the client has gone
                    continue
                if not hangs:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for connection in connections:
        connection.close()


FAULTS = {
    "garbage": (GARBAGE, "MLF-FAULT-006"),
    "cut": (CUT, "MLF-FAULT-007"),
    "closed": (SILENT, "MLF-FAULT-007"),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=requirement(identifier)) for name, (_, identifier) in FAULTS.items()]
)
def test_no_triton(deployment_client: Any, target: str, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """What does not speak the protocol, or stops in the midst of it, is an MlflowException for every reading verb."""
    with stub(FAULTS[fault][0], hangs=False) as url:
        monkeypatch.setenv("TRITON_URL", url)
        client = get_deploy_client(target)
        for call in (
            client.list_deployments,
            lambda: client.get_deployment("any"),
            lambda: client.predict("any", X),
        ):
            with pytest.raises(MlflowException):
                call()


@requirement("MLF-FAULT-005")
def test_hanging(deployment_client: Any, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing is given up in the time that is set."""
    monkeypatch.setenv("TRITON_REQUEST_TIMEOUT", "0.5")
    with stub(SILENT, hangs=True) as url:
        monkeypatch.setenv("TRITON_URL", url)
        started = time.monotonic()
        with pytest.raises(MlflowException):
            get_deploy_client(target).predict("any", X)
        assert time.monotonic() - started < 20


@requirement("MLF-SEC-009")
def test_headers_are_not_told(deployment_client: Any, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret in a header is in no message, whatever the server does with the request."""
    secret = uuid.uuid4().hex
    monkeypatch.setenv("TRITON_HEADERS", f'{{"Authorization": "Bearer {secret}"}}')
    with stub(CUT, hangs=False) as url:
        monkeypatch.setenv("TRITON_URL", url)
        client = get_deploy_client(target)
        for call in (client.list_deployments, lambda: client.predict("any", X)):
            with pytest.raises(MlflowException) as caught:
                call()
            assert secret not in str(caught.value)


@requirement("MLF-FAULT-008")
def test_model_that_fails(module_client: Any, protocol: Protocol, zoo: dict[str, str]) -> None:
    """What a model says of its failure is in the MlflowException."""
    with pytest.raises(MlflowException, match="the model fails"):
        module_client.predict(zoo["add"], {"x": np.full((1, 1), np.inf, np.float32)})


@requirement("TRT-FAULT-001")
def test_client_that_goes_away(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A request whose sender does not wait for the end of its own body harms nobody."""
    host, _, port = protocol.server.http_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            f"POST /v2/models/{zoo['add']}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{{".encode()
        )
    asked = request(tensor("x", "FP32", [1, 1], [1.0]))
    assert protocol.infer(zoo["add"], asked).status == 200


@requirement("TRT-FAULT-002")
@pytest.mark.parametrize(
    "text", [b"\0\1\2\3" * 50, b"GET\r\n\r\n", b"POST /v2 HTTP/9.9\r\nContent-Length: -1\r\n\r\n"]
)
def test_no_http(protocol: Protocol, text: bytes) -> None:
    """Bytes that are no request harm nobody."""
    host, _, port = protocol.server.http_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
    assert protocol.get("/health/live").status == 200


@requirement("MLF-SEC-004")
def test_external_data_elsewhere(
    deployment_client: Any, deployment_name: str, world: Callable[[], object], tmp_path: Path
) -> None:
    """A model whose external data lie outside of it brings nothing of them into the repository."""
    model = models.with_weights(np.ones(1024, np.float32))
    saved = tmp_path / "model"
    mlflow.onnx.save_model(models.constant(1.0), str(saved), pip_requirements=["onnx"])
    onnx.save(
        model, str(saved / "model.onnx"), save_as_external_data=True, location="weights", size_threshold=0
    )
    file = saved / "model.onnx"
    assert b"weights" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b"weights", b"../eigh", 1))
    (tmp_path / "eigh").write_bytes((saved / "weights").read_bytes())
    before = world()
    with pytest.raises(MlflowException):
        deployment_client.create_deployment(deployment_name, str(saved), flavor="onnx")
    assert world() == before


@requirement("TRT-SEC-001", "TRT-SEC-002")
def test_names_that_lead_out(protocol: Protocol) -> None:
    """A model beside the repository is neither loaded nor listed by a name that leads to it."""
    root = protocol.server.model_repository
    outside = root.parent / f"outside-{uuid.uuid4().hex[:8]}"
    write(outside, KINDS["add"])
    try:
        for name in (f"../{outside.name}", f"..%2F{outside.name}", f"{root.name}/../../{outside.name}"):
            assert protocol.load(name).status >= 400
            assert not protocol.is_ready(name)
        assert protocol.index(f"../{outside.name}") == []
    finally:
        shutil.rmtree(outside)
