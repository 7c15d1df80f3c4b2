"""One connection to a server, whose every wait ends with the time of the whole exchange."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Wire"]

#: Bytes. Pieces that are smaller leave together: to copy them costs less than a packet of their own.
SMALL = 64 * 1024
#: Pieces that the operating system takes at once (IOV_MAX).
MOST_PIECES = 1024
#: In a second: the limits of waits are whole ones, so that most are still that of the wait before.
TICKS = 100
_TIMEVAL = struct.Struct("ll")


class Wire:
    """A connection.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        timeout: Seconds to connect in, the TLS handshake included.

    Attributes:
        buffer: Memory for the beginnings of answers.

    Raises:
        HTTPError: urllib3's: the host cannot be reached.
        OSError: TLS failed, or the connection broke.
    """

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        connection: HTTPConnection
        if parts.scheme == "https":
            context = create_urllib3_context()
            context.load_default_certs()
            connection = HTTPSConnection(host, parts.port, timeout=timeout, ssl_context=context)
        else:
            connection = HTTPConnection(host, parts.port, timeout=timeout)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        self._socket = cast("socket.socket", connection.sock)
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        if self._plain:
            self._socket.settimeout(
                None
            )  # the kernel's own limits cost no call of poll before each other call
        self._limits: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.buffer = memoryview(bytearray(SMALL))

    def send(self, pieces: Sequence[memoryview | bytes], until: float) -> None:
        """Send pieces, the large ones from where they lie.

        Args:
            pieces: Of single bytes.
            until: A time of time.monotonic.

        Raises:
            TimeoutError: It is not all sent by then.
            OSError: The connection broke.
        """
        waiting = _joined(pieces)
        while waiting:
            self._limit(socket.SO_SNDTIMEO, until)
            try:
                if self._plain:
                    sent = self._socket.sendmsg(waiting[:MOST_PIECES])
                else:
                    self._socket.sendall(waiting[0])  # its time is one for the whole
                    sent = len(waiting[0])
            except BlockingIOError:
                raise TimeoutError("timed out") from None
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = memoryview(waiting[0])[sent:]

    def receive(self, view: memoryview, until: float, *, all_of_it: bool = False) -> int:
        """Receive what has come, or comes first, into `view`.

        Args:
            view: Of single bytes.
            until: A time of time.monotonic.
            all_of_it: Wait until `view` is full, if that can be had in one call.

        Returns:
            How many bytes; 0: the other side has closed the connection.

        Raises:
            TimeoutError: Nothing came by then.
            OSError: The connection broke.
        """
        self._limit(socket.SO_RCVTIMEO, until)
        if not self._plain:
            return self._socket.recv_into(view)
        try:
            return self._socket.recv_into(view, 0, socket.MSG_WAITALL if all_of_it else 0)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def is_quiet(self) -> bool:
        """Say whether nothing has come that nobody asked for, such as the connection's end."""
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _limit(self, option: int, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if not self._plain:
            self._socket.settimeout(left)
            return
        ticks = math.ceil(left * TICKS)
        if self._limits.get(option) != ticks:
            seconds, rest = divmod(ticks, TICKS)
            self._socket.setsockopt(
                socket.SOL_SOCKET, option, _TIMEVAL.pack(seconds, rest * 1_000_000 // TICKS)
            )
            self._limits[option] = ticks


def _joined(pieces: Sequence[memoryview | bytes]) -> list[memoryview | bytes]:
    """Put small pieces together with their neighbours."""
    joined: list[memoryview | bytes] = []
    small: list[memoryview | bytes] = []
    for piece in pieces:
        if len(piece) < SMALL:
            small.append(piece)
        else:
            joined += [b"".join(small), piece]
            small = []
    return [*joined, b"".join(small)] if small else joined
