"""HTTP to Triton over kept connections."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import urllib3.exceptions

from mlflow_triton.errors import ServerTimeout, ServerUnavailable
from mlflow_triton.serving.answer import BrokenAnswer
from mlflow_triton.serving.connections import CONNECT_TIMEOUT, Connections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlflow_triton.serving.answer import Answer
    from mlflow_triton.settings import Settings

    T = TypeVar("T")

__all__ = ["HttpEndpoint", "Response", "lines", "response", "segment"]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: status, headers in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """Triton's error text, or the beginning of whatever body there is."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            return one_line(str(document["error"]))
        return f"HTTP {self.status} {self.body[:200].decode(errors='replace')!r}."


def one_line(reason: str) -> str:
    """Return Triton's reason as one sentence, without the traceback that Python backends append."""
    text = (
        " ".join(reason.partition("\n\nAt:\n")[0].split())
        .rstrip(";. ")
        .removeprefix("[request id: <id_unknown>] ")
    )
    return f"{text}." if text else ""


class HttpEndpoint:
    """Triton's HTTP endpoint. Safe to share between threads, and after a fork.

    Args:
        settings: `http_url`, `headers` and `request_timeout` are used.

    Attributes:
        url: The setting.
        timeout: Seconds that a request has, unless it says otherwise.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.http_url.value
        self._source = settings.http_url
        self.timeout = settings.request_timeout.value
        # Without "identity", Triton compresses every answer: 62 instead of 8 ms for 1 MB.
        self._own = {
            "host": self.url.partition("://")[2],
            "accept-encoding": "identity",
            **settings.headers.value,
        }
        self._headers = lines(self._own)
        self._connections = Connections(self.url)

    def exchange(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        *,
        body: Sequence[memoryview | bytes] = (),
        headers: str = "",
        instead: Mapping[str, str] | None = None,
        encoding: str | None = None,
        timeout: float | None = None,
        repeatable: bool,
    ) -> T:
        """Send one request, and have its answer read.

        Args:
            method: ``GET`` or ``POST``.
            path: Begins with a slash; already quoted.
            read: Called with the answer.
            body: The request's body in pieces, which are neither joined nor copied if they are large.
            headers: In addition to the settings' headers: lines, each with its end.
            instead: Headers that take the place of the settings' of the same names.
            encoding: Of the answer, beside none: ``gzip`` or ``deflate``.
            timeout: Seconds for all of it, also if the answer comes byte by byte; default: the setting.
            repeatable: Whether it may be sent again where a kept connection turns out to be broken.

        Returns:
            What `read` returns.

        Raises:
            ServerTimeout: No answer in time.
            ServerUnavailable: Nothing listens, the connection broke, or it does not speak HTTP.
        """
        seconds = timeout or self.timeout
        length = f"content-length: {sum(map(len, body))}\r\n" if method == "POST" else ""
        usual = self._headers if not instead else lines(self._replaced(instead))
        head = f"{method} {path} HTTP/1.1\r\n{usual}{headers}{length}\r\n".encode("latin-1")
        try:
            return self._connections.exchange(
                (head, *body), read, seconds, repeatable=repeatable, encoding=encoding
            )
        except (BrokenAnswer, urllib3.exceptions.HTTPError, OSError, MemoryError) as error:
            raise self._explained(error, f"{method} {path}", seconds) from None

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Like `exchange`, and read the whole answer; only a ``GET`` is ever sent twice."""
        pieces = () if body is None else (body,)
        return self.exchange(
            method,
            path,
            response,
            body=pieces,
            headers=lines(headers or {}),
            timeout=timeout,
            repeatable=method == "GET",
        )

    def json(self, method: str, path: str, body: object = None, *, timeout: float | None = None) -> Any:
        """Like `request`, for JSON both ways; ``None`` stands for an empty body.

        Returns:
            The parsed answer when the status is 200, else the `Response`.

        Raises:
            ServerUnavailable: As `request`, or a 200 whose body is not JSON.
        """
        data = None if body is None else json.dumps(body).encode()
        response = self.request(method, path, body=data, timeout=timeout)
        if response.status != 200:
            return response
        if not response.body:
            return None
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError):
            raise ServerUnavailable(
                f"{self._source} answered {method} {path} with something that is not JSON "
                f"({response.body[:80]!r}): is it a Triton server?"
            ) from None

    def _replaced(self, instead: Mapping[str, str]) -> dict[str, str]:
        names = {name.lower() for name in instead}
        return {name: value for name, value in self._own.items() if name.lower() not in names} | dict(instead)

    def _explained(self, error: Exception, request: str, seconds: float) -> ServerUnavailable:
        """Say what an error of the operating system, urllib3 or `Answer` means."""
        what = f"Triton at {self._source}"
        # A refused connection is a kind of ConnectTimeoutError in urllib3.
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            reason = str(error).rpartition(": ")[2]
            return ServerUnavailable(
                f"{what} cannot be reached: {reason}. Start the server, or set TRITON_URL "
                "(or the target URI triton://HOST:PORT) to where it listens."
            )
        if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
            limit = min(CONNECT_TIMEOUT, seconds)
            return ServerTimeout(
                f"{what} could not be reached within {limit:g} s. Check the address and the network."
            )
        if isinstance(error, ssl.SSLError):
            return ServerUnavailable(
                f"{what}: TLS failed: {error}. Triton itself speaks plain HTTP; check https://."
            )
        if isinstance(error, TimeoutError):
            return ServerTimeout(
                f"{what} accepted {request} but did not answer within {seconds:g} s. "
                "Look at the server's log; TRITON_REQUEST_TIMEOUT (for a load, -C load_timeout or TRITON_LOAD_TIMEOUT) sets this limit."
            )
        if isinstance(error, MemoryError):
            return ServerUnavailable(
                f"{what} answered {request} with more than the memory of this process has room for."
            )
        reason = str(error) if isinstance(error, BrokenAnswer) else repr(error)
        return ServerUnavailable(
            f"{what} broke off {request}: {reason[:120]}. It may have crashed or may not speak HTTP there; "
            "look at the server's log."
        )


def response(answer: Answer) -> Response:
    """Read all of an answer."""
    return Response(answer.status, answer.headers, answer.read())


def lines(headers: Mapping[str, str]) -> str:
    """Write headers, a line each."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def segment(text: str) -> str:
    """Quote one path segment."""
    return quote(text, safe="")
