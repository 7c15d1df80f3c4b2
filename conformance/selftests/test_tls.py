from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InvalidSetting, ServerTimeout, ServerUnavailable
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.trust import OWN
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        found = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in found]
"""
CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP64 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP64 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate of 127.0.0.1 that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


def write_model(repository: Path) -> None:
    """Write a model that answers with its input."""
    version = repository / "identity" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Run a server with a model that answers with its input."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository)
    with EmbeddedTriton(repository, arguments=["--load-model=identity"]) as running:
        yield running


@contextmanager
def tls(certificate: Path, behaviour: Callable[[ssl.SSLSocket], None]) -> Iterator[str]:
    """Listen for TLS, and give each connection to `behaviour` in a thread; yields HOST:PORT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(plain: socket.socket) -> None:
        plain.settimeout(20)
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                behaviour(connection)
        except OSError:
            plain.close()

    def accept() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(plain,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def to(server: EmbeddedTriton) -> Callable[[ssl.SSLSocket], None]:
    """Pass requests and answers on, as a proxy that ends TLS does."""
    host, _, port = server.http_url.removeprefix("http://").partition(":")

    def behave(connection: ssl.SSLSocket) -> None:
        with socket.create_connection((host, int(port)), timeout=20) as behind:
            connection.settimeout(0.005)
            behind.settimeout(0.005)
            while True:
                for source, target in ((connection, behind), (behind, connection)):
                    try:
                        data = source.recv(1 << 20)
                    except TimeoutError:
                        continue
                    if not data:
                        return
                    target.settimeout(20)
                    target.sendall(data)
                    target.settimeout(0.005)

    return behave


def test_a_proxy_that_ends_tls(
    server: EmbeddedTriton, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over https://, small and large tensors come back bit by bit, over one kept connection."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connections: list[ssl.SSLSocket] = []

    def behave(connection: ssl.SSLSocket) -> None:
        connections.append(connection)
        to(server)(connection)

    with tls(certificate, behave) as address:
        monkeypatch.setenv("TRITON_URL", f"https://{address}")
        # Tensors over HTTP only: the server shares this machine's memory.
        monkeypatch.setattr("mlflow_triton.serving.shared_memory.Regions.take", lambda *_: None)
        client = TritonDeploymentClient("triton")
        for size in (1, 1000, 1 << 18, 1 << 20):
            x = np.random.default_rng(size).random(size)
            answer = client.predict("identity", {"x": x})["outputs"]["y"]
            np.testing.assert_array_equal(answer, x, strict=True)
        del client
    assert len(connections) == 1


def test_a_certificate_that_nobody_trusts(certificate: Path) -> None:
    """A certificate that is not trusted is refused, before anything is sent."""
    asked: list[bytes] = []

    def behave(connection: ssl.SSLSocket) -> None:
        asked.append(connection.recv(100))

    with (
        tls(certificate, behave) as address,
        pytest.raises(ServerUnavailable, match=r"TLS failed: .*(self-signed|CERTIFICATE_VERIFY_FAILED)"),
    ):
        HttpEndpoint(Settings.parse("triton", {"TRITON_URL": f"https://{address}"})).request("GET", "/v2")
    assert not asked


def test_https_to_a_server_that_speaks_plain_http(server: EmbeddedTriton) -> None:
    """Over https:// to Triton itself, which has no TLS, the error asks about that."""
    url = server.http_url.replace("http://", "https://")
    with pytest.raises(ServerUnavailable, match="Triton itself speaks plain HTTP"):
        HttpEndpoint(Settings.parse("triton", {"TRITON_URL": url})).request("GET", "/v2", timeout=5)


@pytest.mark.parametrize(
    "content", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["], ids=["head", "body"]
)
@pytest.mark.parametrize("ending", ["silence", "trickle", "end", "cut"])
def test_a_server_that_breaks_off(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, ending: str
) -> None:
    """Silence, single bytes and an end of the connection are told in time inside TLS, too."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def behave(connection: ssl.SSLSocket) -> None:
        connection.recv(65536)
        if content:
            connection.sendall(content)
        if ending == "end":
            connection.unwrap()
        elif ending == "silence":
            connection.recv(1)
        elif ending == "trickle":
            for byte in b"HTTP/1.1" if not content else b"       ":
                time.sleep(0.2)
                connection.sendall(bytes([byte]))

    expected = ServerTimeout if ending in ("silence", "trickle") else ServerUnavailable
    with tls(certificate, behave) as address:
        http = HttpEndpoint(Settings.parse("triton", {"TRITON_URL": f"https://{address}"}))
        started = time.monotonic()
        with pytest.raises(expected) as caught:
            http.request("GET", "/v2", timeout=0.5)
        assert time.monotonic() - started < 3
    assert isinstance(caught.value, ServerTimeout) == (expected is ServerTimeout)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[EmbeddedTriton]:
    """Run a server that speaks gRPC over TLS alone."""
    repository = tmp_path_factory.mktemp("encrypted")
    write_model(repository)
    arguments = [
        "--load-model=identity",
        "--grpc-use-ssl=1",
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={certificate}",
    ]
    with EmbeddedTriton(repository, arguments=arguments) as running:
        yield running


def over_grpcs(server: EmbeddedTriton) -> TritonDeploymentClient:
    """Return a client that sends its tensors over gRPC and TLS."""
    host = server.http_url.partition("://")[2]
    return TritonDeploymentClient(
        f"triton://{host}?transport=grpc&shared_memory=off&grpc_url=grpcs://{server.grpc_url}"
    )


def test_grpc_over_tls(
    encrypted: EmbeddedTriton,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Over grpcs://, tensors come back bit by bit, streamed too, and models are loaded that way."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.delenv(OWN, raising=False)
    client = over_grpcs(encrypted)
    x = np.random.default_rng(7).random(1 << 18)
    np.testing.assert_array_equal(client.predict("identity", {"x": x})["outputs"]["y"], x, strict=True)
    (answer,) = client.predict_stream("identity", {"x": x})
    np.testing.assert_array_equal(answer["outputs"]["y"], x, strict=True)
    settings = Settings.parse(client.target_uri, {})
    control = Control(HttpEndpoint(settings), settings)
    control.load("identity", config_json=json.dumps(control.config("identity")))
    assert not caplog.messages


def test_a_certificate_that_nobody_trusts_over_grpc(encrypted: EmbeddedTriton) -> None:
    """The error says that TLS failed, and where trusted certificates are looked for; so for a server without TLS."""
    with pytest.raises(ServerUnavailable, match=r"TLS failed: .*SSL_CERT_FILE"):
        over_grpcs(encrypted).predict("identity", {"x": [1.0]})


def test_grpcs_to_a_server_without_tls(server: EmbeddedTriton) -> None:
    """The error says what to write instead."""
    with pytest.raises(ServerUnavailable, match=r"TLS failed: .*write grpc://"):
        over_grpcs(server).predict("identity", {"x": [1.0]})


def test_trusted_certificates_that_cannot_be_read(
    encrypted: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named, with the reason."""
    gone = tmp_path / "gone.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(gone))
    monkeypatch.delenv(OWN, raising=False)
    monkeypatch.setattr("os.path.isfile", lambda _: True)  # root may read any file: it goes in between
    with pytest.raises(InvalidSetting, match=r"gone\.pem cannot be read: No such file"):
        over_grpcs(encrypted).predict("identity", {"x": [1.0]})
