"""Kept connections to one server, and exchanges of a request and an answer that copy no payload."""

from __future__ import annotations

import http.client
import os
import weakref
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from urllib3.util.connection import is_connection_dropped

from mlflow_triton.serving.deadline import connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from urllib3.connection import HTTPConnection

__all__ = ["Answer", "Connections"]

#: How many connections stay open per client; further ones are opened and closed as needed.
KEPT = 64
CONNECT_TIMEOUT = 10.0
#: Bytes. Pieces of a request that are smaller leave in one packet with their neighbours: a copy of
#: them costs less than a packet of their own.
SMALL = 64 * 1024


class Answer:
    """The answer to a request, whose body is read as far, and into what, the reader wants.

    Attributes:
        status: The status code.
        headers: By name in lower case.
        length: Bytes of the body; ``None`` if the server did not say.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.length = response.length
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise http.client.HTTPException(
                f"the answer is encoded as {encoding[:20]}, which was not asked for"
            )

    def read(self) -> bytes:
        """Return the rest of the body."""
        return self._response.read()

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes of the body.

        Raises:
            IncompleteRead: There are fewer.
        """
        data = self._response.read(size)
        if len(data) < size:
            raise http.client.IncompleteRead(data, size - len(data))
        return data

    def read_into(self, view: memoryview) -> None:
        """Fill `view`, of single bytes, with the next bytes of the body.

        Raises:
            IncompleteRead: There are fewer.
        """
        done = 0
        while done < len(view):
            count = self._response.readinto(view[done:])
            if not count:
                raise http.client.IncompleteRead(b"", len(view) - done)
            done += count


class Connections:
    """The connections of one process to one server. Safe to share between threads.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = os.getpid()
        self._idle: deque[HTTPConnection] = deque()
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def exchange(
        self,
        method: str,
        head: bytes,
        body: Sequence[memoryview | bytes],
        timeout: float,
        *,
        repeatable: bool,
    ) -> Iterator[Answer]:
        """Send one request and yield its answer, to be read in the block.

        The connection is kept if the block has read the whole body. One that had been kept and breaks
        before anything was answered is replaced, and the request sent again, once.

        Args:
            method: ``GET`` or ``POST``.
            head: The request's first line and headers, with the empty line that ends them.
            body: Its pieces.
            timeout: Seconds to connect in.
            repeatable: Whether the request may be executed twice.

        Raises:
            HTTPException, OSError, HTTPError: http.client's, the operating system's and urllib3's.
        """
        connection = self._kept()
        response: http.client.HTTPResponse | None = None
        try:
            if connection is not None:
                try:
                    response = _send(connection, method, head, body)
                except (http.client.RemoteDisconnected, ConnectionError):
                    if not repeatable:
                        raise
                    connection.close()
            if response is None:
                connection = connect(self._url, min(timeout, CONNECT_TIMEOUT))
                response = _send(connection, method, head, body)
            yield Answer(response)
            if response.isclosed() and not response.will_close and len(self._idle) < KEPT:
                self._idle.append(cast("HTTPConnection", connection))
                connection = None
        finally:
            if connection is not None:
                if response is not None:
                    response.close()
                connection.close()

    def _kept(self) -> HTTPConnection | None:
        if self._process != os.getpid():
            # Those of the process that forked this one carry its answers.
            self._process, self._idle = os.getpid(), deque()
            weakref.finalize(self, _close_all, self._idle)
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not is_connection_dropped(connection):
                return connection
            connection.close()


def _send(
    connection: HTTPConnection, method: str, head: bytes, body: Sequence[memoryview | bytes]
) -> http.client.HTTPResponse:
    """Send a request and read the head of its answer."""
    sock = cast("socket.socket", connection.sock)
    broken: ConnectionError | None = None
    try:
        together: list[memoryview | bytes] = [head]
        for piece in body:
            if len(piece) < SMALL:
                together.append(piece)
            else:
                sock.sendall(b"".join(together))
                together = []
                sock.sendall(piece)
        if together:
            sock.sendall(b"".join(together))
    except ConnectionError as error:
        broken = error  # a server that refuses a request need not read all of it
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
    except BaseException as error:
        response.close()
        if broken is not None and isinstance(error, OSError | http.client.RemoteDisconnected):
            raise broken from None
        raise
    return response


def _close_all(connections: deque[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
