"""Proxies of a real server that can be told to play a defect: HTTP, of which the metrics are a part, and gRPC."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Answer", "Forward", "Proxies", "Refused", "Request", "proxies"]

LENGTH = "inference-header-content-length"
TIMEOUT = 60.0  # seconds
OURS = {"connection", "content-length", "transfer-encoding", "keep-alive"}
LARGEST = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes:
        method: HTTP's.
        path: As it came.
        headers: By name in lower case.
        body: As it came.
        abused: Whether somebody has sent what is no whole request before.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    abused: bool = False

    @property
    def document(self) -> Any:
        """The JSON part of the body; None if it has none."""
        try:
            return json.loads(self.body[: int(self.headers.get(LENGTH, len(self.body)))])
        except ValueError:
            return None

    def saying(self, document: Any) -> Request:
        """Return it with another JSON part."""
        tail = self.body[int(self.headers.get(LENGTH, len(self.body))) :]
        head = json.dumps(document).encode()
        headers = self.headers | ({LENGTH: str(len(head))} if LENGTH in self.headers else {})
        return replace(self, body=head + tail, headers=headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers.

    Attributes:
        status: HTTP's.
        headers: By name in lower case.
        body: As it came.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"

    @property
    def _length(self) -> int:
        return int(self.headers.get(LENGTH, len(self.body)))

    @property
    def document(self) -> Any:
        """The JSON part of the body."""
        return json.loads(self.body[: self._length])

    @property
    def tail(self) -> bytes:
        """The binary data behind it."""
        return self.body[self._length :]

    def saying(self, document: Any, tail: bytes | None = None) -> Answer:
        """Return it with another JSON part, and other binary data."""
        head = json.dumps(document).encode()
        headers = self.headers | ({LENGTH: str(len(head))} if LENGTH in self.headers else {})
        return replace(self, body=head + (self.tail if tail is None else tail), headers=headers)


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """What a server refuses over gRPC.

    Attributes:
        code: gRPC's.
        text: Why.
    """

    code: grpc.StatusCode
    text: str


if TYPE_CHECKING:
    Forward = Callable[[Request], Answer]
    Http = Callable[[Request, Forward], Answer]
    Rpc = Callable[[str, Any, Callable[[Any], Any]], Any]


class Proxies:
    """What stands before a server.

    Attributes:
        http: The defect that is played over HTTP, if there is one.
        rpc: The same over gRPC: method and message, and what asks the server.
        abused: Whether somebody has sent what is no whole request since a defect is played.
        broken: What went wrong in the proxies themselves, and not in the server.
    """

    def __init__(self) -> None:
        self.http: Http | None = None
        self.rpc: Rpc | None = None
        self.abused = False
        self.broken: list[Exception] = []

    def play(self, http: Http | None, rpc: Rpc | None) -> None:
        """Play a defect, or none."""
        self.http, self.rpc, self.abused = http, rpc, False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away, and send what is no request; that is what some tests are about."""


def _handler(owner: Proxies, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length) if length > 0 else b""
            if len(body) < length or length < 0:
                owner.abused = True
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body, owner.abused)
            played = owner.http
            try:
                answer = (
                    _ask(upstream, request)
                    if played is None
                    else played(request, lambda it: _ask(upstream, it))
                )
            except Exception as error:
                owner.broken.append(error)
                raise
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - the library's names

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            owner.abused = True
            super().send_error(code, message, explain)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    return Handler


def _ask(upstream: str, request: Request) -> Answer:
    connection = http.client.HTTPConnection(upstream, timeout=TIMEOUT)
    try:
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name not in OURS:
                connection.putheader(name, value)
        if request.method != "GET":
            connection.putheader("content-length", str(len(request.body)))
        connection.endheaders(request.body or None)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in OURS}
        return Answer(answer.status, headers, answer.read())
    finally:
        connection.close()


class _Rpc(grpc.GenericRpcHandler):  # type: ignore[misc] # gRPC has no types
    def __init__(self, owner: Proxies, channel: Any) -> None:
        self._owner = owner
        self._channel = channel

    def service(self, details: Any) -> Any:
        """Handle any method."""
        method = details.method.rpartition("/")[2]
        if method == "ModelStreamInfer":
            call = self._channel.stream_stream(details.method)
            return grpc.stream_stream_rpc_method_handler(lambda asked, _: self._stream(call, asked))
        call = self._channel.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(
            lambda asked, context: self._unary(call, method, asked, context)
        )

    def _unary(self, call: Any, method: str, asked: bytes, context: Any) -> bytes:
        played = self._owner.rpc
        try:
            if played is None:
                return bytes(call(asked, timeout=TIMEOUT))
            question = getattr(service_pb2, f"{method}Request").FromString(asked)
            reply = getattr(service_pb2, f"{method}Response")
            answer = played(
                method,
                question,
                lambda it: reply.FromString(call(it.SerializeToString(), timeout=TIMEOUT)),
            )
            return bytes(answer.SerializeToString())
        except Refused as error:
            context.abort(error.code, error.text)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        except Exception as error:
            self._owner.broken.append(error)
            raise
        raise AssertionError("abort raises")

    def _stream(self, call: Any, asked: Iterator[bytes]) -> Iterator[bytes]:
        played = self._owner.rpc
        if played is None:
            yield from call(asked)
            return
        for answer in call(asked):
            message = service_pb2.ModelStreamInferResponse.FromString(answer)
            changed = played("ModelStreamInfer", None, partial(_same, message))
            if changed is not None:
                yield changed.SerializeToString()


def _same(message: Any, _: Any) -> Any:
    return message


@contextmanager
def proxies(http_url: str, grpc_url: str, metrics_url: str) -> Iterator[tuple[Proxies, str, str, str]]:
    """Stand before a server.

    Args:
        http_url: ``http://host:port``.
        grpc_url: ``host:port``.
        metrics_url: ``http://host:port/metrics``.

    Yields:
        The proxies, and the three addresses at which they are.
    """
    owner = Proxies()
    servers, addresses = [], []
    for url in (http_url, metrics_url):
        host, _, path = url.removeprefix("http://").partition("/")
        server = _Server(("127.0.0.1", 0), _handler(owner, host))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        addresses.append(f"http://127.0.0.1:{server.server_port}{f'/{path}' if path else ''}")
    channel = grpc.insecure_channel(grpc_url, options=LARGEST)
    rpc = grpc.server(ThreadPoolExecutor(32), handlers=[_Rpc(owner, channel)], options=LARGEST)
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    try:
        yield owner, addresses[0], f"127.0.0.1:{port}", addresses[1]
    finally:
        rpc.stop(1).wait()
        channel.close()
        for server in servers:
            server.shutdown()
            server.server_close()
