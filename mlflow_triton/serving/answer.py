"""Answers over HTTP: llhttp (httptools) reads their heads and chunks; a body of known length is read past it, uncopied."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from mlflow_triton.serving.wire import Wire

__all__ = ["Answer", "BrokenAnswer", "NothingAnswered"]

#: Bytes of a head, beyond which it is none.
LONGEST_HEAD = 64 * 1024


class BrokenAnswer(Exception):
    """An answer that is no HTTP, or not all of it."""


class NothingAnswered(BrokenAnswer):
    """The connection ended before a byte of an answer came."""


class _Message:
    """What llhttp finds, which calls these methods."""

    def __init__(self) -> None:
        self.parser = HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.headed = self.complete = self.is_last = False

    def on_message_begin(self) -> None:
        if self.headed:
            raise ValueError
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.headed = self.status >= 200  # those below announce that the answer comes
        self.is_last = not self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = self.headed


class Answer:
    """The answer to a request, whose body is read as far, and into what, the reader wants.

    Args:
        wire: Where it comes from.
        until: A time of time.monotonic, at which it must have come.
        encoding: That the body may have beside none: ``gzip`` or ``deflate``.

    Attributes:
        status: The status code.
        headers: By name in lower case.
        length: Bytes of the body, decoded.
        is_last: Whether the connection ends with it.
        rest: Bytes of the body that are not read yet.

    Raises:
        NothingAnswered: None came.
        BrokenAnswer: It is no answer, or not all of one.
        TimeoutError: The time is over.
        OSError: TLS failed.
    """

    def __init__(self, wire: Wire, until: float, encoding: str | None = None) -> None:
        self._wire, self._until = wire, until
        message = _Message()
        try:
            self._receive_head(message)
            self.status, self.headers, self.is_last = message.status, message.headers, message.is_last
            encoded = self.headers.get("content-encoding", "identity")
            if encoded not in ("identity", encoding):
                raise BrokenAnswer(f"the answer is encoded as {encoded[:20]}, which was not asked for")
            # llhttp has looked at these two headers: there is one at most, and the length is a number.
            if not message.complete and (
                "transfer-encoding" in self.headers or "content-length" not in self.headers
            ):
                self._receive_all(message)
                self.is_last = self.is_last or not message.complete
                message.complete = True
        except (HttpParserError, HttpParserUpgrade) as error:
            raise BrokenAnswer(f"the answer is no HTTP ({error})") from None
        finally:
            del message.parser  # which holds the message
        self._early = memoryview(b"".join(message.pieces))
        early = len(self._early)
        self.length = self.rest = early if message.complete else int(self.headers["content-length"])
        if encoded != "identity":
            self._early = memoryview(_decoded(self.read()))
            self.length = self.rest = len(self._early)

    def _receive_head(self, message: _Message) -> None:
        received = 0
        while not message.headed:
            try:
                count = self._receive_some(message)
            except BrokenAnswer as error:
                raise error if received else NothingAnswered(str(error)) from None
            if not count:
                raise (BrokenAnswer if received else NothingAnswered)("the connection was closed")
            received += count
            if received > LONGEST_HEAD and not message.headed:
                raise BrokenAnswer(f"the answer's head has more than {LONGEST_HEAD} bytes")

    def _receive_all(self, message: _Message) -> None:
        """Receive a body of a length that the head does not tell."""
        while not message.complete and self._receive_some(message):
            pass
        if not message.complete and "transfer-encoding" in self.headers:
            raise BrokenAnswer("the answer was cut off")

    def _receive_some(self, message: _Message) -> int:
        count = self._received(self._wire.buffer)
        message.parser.feed_data(self._wire.buffer[:count])
        return count

    def _received(self, view: memoryview, *, all_of_it: bool = False) -> int:
        try:
            return self._wire.receive(view, self._until, all_of_it=all_of_it)
        except ConnectionError as error:
            raise BrokenAnswer(str(error)) from None

    def read(self) -> bytes:
        """Return the rest of the body. Raises as `read_into`."""
        return self.read_exactly(self.rest)

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes of the body. Raises as `read_into`."""
        if size <= len(self._early):
            data, self._early = self._early[:size].tobytes(), self._early[size:]
            self.rest -= size
            return data
        if size > self.rest:
            raise BrokenAnswer(f"the answer has {self.rest} more bytes instead of {size}")
        buffer = bytearray(size)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def read_into(self, view: memoryview) -> None:
        """Fill `view`, of single bytes, with the next bytes of the body.

        Raises:
            BrokenAnswer: There are fewer, or the connection broke.
            TimeoutError: The time is over.
            OSError: TLS failed.
        """
        if len(view) > self.rest:
            raise BrokenAnswer(f"the answer has {self.rest} more bytes instead of {len(view)}")
        done = min(len(self._early), len(view))
        view[:done] = self._early[:done]
        self._early = self._early[done:]
        while done < len(view):
            count = self._received(view[done:], all_of_it=True)
            if not count:
                raise BrokenAnswer(f"the answer was cut off {self.rest - done} bytes before its end")
            done += count
        self.rest -= done


def _decoded(data: bytes) -> bytes:
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of gzip or of zlib, as the data say
    try:
        content = decoder.decompress(data)
    except zlib.error as error:
        raise BrokenAnswer(f"the answer's compressed body cannot be read ({error})") from None
    if not decoder.eof or decoder.unused_data:
        raise BrokenAnswer("the answer's compressed body does not end where it should")
    return content
