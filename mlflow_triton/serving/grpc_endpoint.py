"""gRPC to Triton: one channel for each process, and gRPC's errors as this package's own.

Messages are given and taken as bytes: tensors need not pass through protobuf, which copies them twice each way.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc

from mlflow_triton.errors import (
    DeploymentNotFound,
    InvalidSetting,
    ServerTimeout,
    ServerUnavailable,
    TritonPluginError,
)
from mlflow_triton.serving.forks import under_way
from mlflow_triton.serving.http import one_line
from mlflow_triton.serving.refusal import refused
from mlflow_triton.serving.request import PLAIN
from mlflow_triton.serving.trust import credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.settings import Settings

__all__ = ["GrpcEndpoint"]

SERVICE = "/inference.GRPCInferenceService/"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # else a new channel would take over the old one's broken connection
    ("grpc.enable_http_proxy", 0),  # as over HTTP
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
COMPRESSION = {
    None: None,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
#: What gRPC itself says under the status that Triton uses for full queues and models that are not ready.
BROKEN = re.compile(
    r"failed to connect|socket closed|recvmsg|sendmsg|reset by peer|broken pipe|goaway|unreachable|errors? resolving"
    r"|resolution failed|ping timeout|keepalive|endpoint clos|stream removed|fd shutdown|transport closed",
    re.IGNORECASE,
)
#: What a gRPC server says that is no Triton; C++'s, Python's, Go's.
NO_TRITON = re.compile(r"|method not found!|unknown (service|method) .*", re.IGNORECASE)


#: Seconds for the end of a stream.
GRACE = 2.0


class GrpcEndpoint:
    """Triton's gRPC endpoint. Safe to share between threads, and after a fork.

    Args:
        settings: `grpc_url`, `headers` and `request_timeout` are used.

    Attributes:
        url: ``HOST:PORT``, with ``grpcs://`` before it for TLS.

    Raises:
        InvalidSetting: No gRPC URL is known, or a header cannot be sent over gRPC.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.grpc_url.value is None:
            raise InvalidSetting(
                f"No gRPC URL is known for Triton at {settings.http_url.value}. Nothing was sent. Set TRITON_GRPC_URL, "
                "or use the target URI triton://HOST:PORT?grpc_url=HOST:PORT."
            )
        self.url = settings.grpc_url.value
        self._source = str(settings.grpc_url)
        self._timeout = settings.request_timeout.value
        self._headers = settings.headers
        self._reset()
        self._metadata({})

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._proven = False

    def unary(
        self,
        method: str,
        message: bytes,
        name: str,
        options: RequestOptions = PLAIN,
        *,
        repeatable: bool,
    ) -> bytes:
        """Send one message and return the answer.

        Args:
            method: Of Triton's gRPC service.
            message: Serialized.
            name: The model that it is for.
            options: Its headers, time limit and compression are those of the call.
            repeatable: Whether it may be sent again where a connection that has worked turns out to be broken.

        Raises:
            DeploymentNotFound: The server does not serve the model.
            InferenceFailed: The model or the server answered with an error.
            ServerTimeout: No answer in time.
            ServerUnavailable: No usable answer.
        """
        metadata = self._metadata(options.headers)
        seconds = options.patience or self._timeout
        compression = COMPRESSION[options.compression]
        end = time.monotonic() + seconds
        while True:
            with under_way():
                channel, proven = self._connected()
                call = channel.unary_unary(SERVICE + method)
                try:
                    answer: bytes = call(
                        message,
                        timeout=max(end - time.monotonic(), 0.001),
                        metadata=metadata,
                        compression=compression,
                    )
                except grpc.RpcError as error:
                    if self._breaks(error, channel) and repeatable and proven:
                        continue  # on a new channel, which is not proven
                    raise self._error(error, method, name, seconds) from None
            if self._channel is channel:
                self._proven = True
            return answer

    @contextmanager
    def stream(
        self,
        method: str,
        requests: Iterator[bytes],
        name: str,
        options: RequestOptions = PLAIN,
    ) -> Iterator[Callable[[], bytes | None]]:
        """Open a stream of messages both ways.

        Leaving the block, also by an error, waits a moment for the server to end it, so `requests` must have ended; leaving
        by the end of a generator, and what is still under way then, cancels.

        Args:
            method: Of Triton's gRPC service.
            requests: Serialized; read by a thread of gRPC's until it ends.
            name: The model that they are for.
            options: Its headers and compression are those of the call, its time limit that of each answer.

        Yields:
            A function that returns the next answer, and ``None`` when the server has ended the stream.

        Raises:
            ServerTimeout: No answer in time. And the other errors of `unary`.
        """
        seconds = options.patience or self._timeout
        with under_way():
            channel, _ = self._connected()
            call = channel.stream_stream(SERVICE + method)(
                requests,
                metadata=self._metadata(options.headers),
                compression=COMPRESSION[options.compression],
            )
        watch = _Watch(call, seconds)
        try:
            yield watch.next
        except grpc.RpcError as error:
            if watch.expired:
                raise self._late(method, seconds) from None
            self._breaks(error, channel)
            raise self._error(error, method, name, seconds) from None
        except Exception:
            _drain(call)
            raise
        else:
            _drain(call)
        finally:
            watch.end()
            call.cancel()

    def _connected(self) -> tuple[grpc.Channel, bool]:
        """Return this process's channel, and whether it has carried an answer."""
        if self._process != os.getpid():
            self._reset()  # the parent's carries its answers, and a thread of it may have held the lock
        with self._lock:
            if self._channel is None:
                self._proven = False
                host = self.url.removeprefix("grpcs://")
                self._channel = (
                    grpc.insecure_channel(host, OPTIONS)
                    if host == self.url
                    else grpc.secure_channel(host, credentials(), OPTIONS)
                )
            return self._channel, self._proven

    def _breaks(self, error: grpc.RpcError, channel: grpc.Channel) -> bool:
        """Say whether the connection is at fault; then the next request gets another channel."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not BROKEN.search(error.details() or ""):
            return False
        with self._lock:
            if self._channel is channel:
                self._channel = None  # requests that are still on it keep it
        return True

    def _error(self, error: grpc.RpcError, method: str, name: str, seconds: float) -> TritonPluginError:
        """Return what a failed call means; see `unary`."""
        what = f"Triton's gRPC endpoint {self._source}"
        code, reason = error.code(), one_line(error.details() or "")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._late(method, seconds)
        if code is grpc.StatusCode.UNAVAILABLE and "handshake failed" in reason:
            return ServerUnavailable(
                f"{what} cannot be reached: TLS failed: {reason} SSL_CERT_FILE names the certificates to trust; for a "
                "server without TLS, write grpc:// in TRITON_GRPC_URL."
            )
        if code is grpc.StatusCode.UNAVAILABLE and BROKEN.search(reason):
            return ServerUnavailable(
                f"{what} cannot be reached, or broke off {method}: {reason} Start the server, look at its log, or set "
                "TRITON_GRPC_URL to where it speaks gRPC."
            )
        if code is grpc.StatusCode.UNIMPLEMENTED and NO_TRITON.fullmatch(reason.rstrip(".")):
            return ServerUnavailable(
                f"{what} does not know {method}: is it a Triton server? Set TRITON_GRPC_URL to where one listens."
            )
        if code is grpc.StatusCode.NOT_FOUND and "shared memory" not in reason:
            return DeploymentNotFound(
                f"{what} serves no model {name!r}: {reason} "
                "See what is deployed with: mlflow deployments list -t triton"
            )
        return refused(name, what, reason or f"{code.name}.")

    def _late(self, method: str, seconds: float) -> ServerTimeout:
        return ServerTimeout(
            f"Triton's gRPC endpoint {self._source} did not answer {method} within {seconds:g} s. Look at the server's log; "
            "TRITON_REQUEST_TIMEOUT sets this limit."
        )

    def _metadata(self, headers: Mapping[str, str]) -> tuple[tuple[str, str | bytes], ...]:
        pairs = {key.lower(): value for key, value in {**self._headers.value, **headers}.items()}
        for key in pairs:
            if not re.fullmatch(r"[a-z0-9_.-]+", key):
                raise InvalidSetting(
                    f"The header {key!r} cannot be sent over gRPC, where a name is letters, digits, dashes, dots and "
                    "underscores. Nothing was sent."
                )
        # Of such a name, gRPC encodes the bytes itself.
        return tuple((key, value.encode() if key.endswith("-bin") else value) for key, value in pairs.items())


def _drain(call: Any) -> None:
    """Let the server end a stream: cancelled just after a last answer, Triton may keep its model in use for ever."""
    timer = threading.Timer(GRACE, call.cancel)
    timer.daemon = True
    timer.start()
    with suppress(grpc.RpcError):  # what was asked for has been answered
        for _ in call:
            pass
    timer.cancel()


class _Watch:
    """Cancels a stream when an answer takes too long: gRPC's own deadline is one for all of them."""

    def __init__(self, call: Any, seconds: float) -> None:
        self.expired = False
        self._call = call
        self._seconds = seconds
        self._until = math.inf
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="mlflow-triton-stream", daemon=True).start()

    def next(self) -> bytes | None:
        """Return the next answer; ``None``: there is none."""
        self._until = time.monotonic() + self._seconds
        with under_way():
            answer: bytes | None = next(self._call, None)
        self._until = math.inf  # what the caller does with it takes as long as it takes
        return answer

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds / 10):
            if time.monotonic() > self._until:
                self.expired = True
                self._call.cancel()
                return
