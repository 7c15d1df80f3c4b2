"""Sockets that keep a deadline for a whole request: a socket's own timeout begins anew with every byte."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["connect", "deadline"]


class _Deadline(threading.local):
    """When the present thread's request must be over (of time.monotonic); ``None``: it has no deadline."""

    at: float | None = None


_present = _Deadline()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let every wait of this thread for a server end with the block's time."""
    _present.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _present.at = None


def _limit(connection: socket.socket) -> None:
    if _present.at is not None:
        left = _present.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)


class _Socket(socket.socket):
    def recv_into(self, *arguments: Any, **options: Any) -> int:
        _limit(self)
        return super().recv_into(*arguments, **options)

    def sendall(self, *arguments: Any) -> None:  # its timeout is one for the whole already
        _limit(self)
        super().sendall(*arguments)


class _TlsSocket(ssl.SSLSocket):
    def recv_into(self, *arguments: Any, **options: Any) -> int:
        _limit(self)
        return super().recv_into(*arguments, **options)

    def sendall(self, *arguments: Any) -> None:
        _limit(self)
        super().sendall(*arguments)


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        plain = super()._new_conn()
        timeout = plain.gettimeout()
        kept = _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        kept.settimeout(timeout)
        return kept


def connect(url: str, timeout: float) -> HTTPConnection:
    """Connect to an HTTP endpoint with a socket that keeps the `deadline`.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        timeout: Seconds to connect in, the TLS handshake included.

    Raises:
        HTTPError: urllib3's: the host cannot be reached.
        OSError: TLS failed, or the connection broke.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: HTTPConnection
    if parts.scheme == "https":
        context = create_urllib3_context()
        context.load_default_certs()
        context.sslsocket_class = _TlsSocket
        connection = HTTPSConnection(host, parts.port, timeout=timeout, ssl_context=context)
    else:
        connection = _Connection(host, parts.port, timeout=timeout)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection
