"""HTTP to Triton over kept connections."""

from __future__ import annotations

import http.client
import json
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import urllib3.exceptions

from mlflow_triton.errors import ServerTimeout, ServerUnavailable
from mlflow_triton.serving.connections import CONNECT_TIMEOUT, Connections
from mlflow_triton.serving.deadline import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow_triton.serving.connections import Answer
    from mlflow_triton.settings import Settings

__all__ = ["HttpEndpoint", "Response"]


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
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.http_url.value
        self._source = settings.http_url
        self._timeout = settings.request_timeout.value
        # Without "identity", Triton compresses every answer: 62 instead of 8 ms for 1 MB.
        headers = {
            "host": self.url.partition("://")[2],
            "accept-encoding": "identity",
            **settings.headers.value,
        }
        self._headers = _lines(headers)
        self._connections = Connections(self.url)

    @contextmanager
    def exchange(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str,
        *,
        body: Sequence[memoryview | bytes] = (),
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        repeatable: bool,
    ) -> Iterator[Answer]:
        """Send one request and yield its answer, to be read in the block.

        Args:
            method: ``GET`` or ``POST``.
            path: Begins with a slash; already quoted.
            body: The request's body in pieces, which are neither joined nor copied.
            headers: In addition to the settings' headers.
            timeout: Seconds for all of it, also if the answer comes byte by byte; default: the setting.
            repeatable: Whether it may be sent again where a kept connection turns out to be broken.

        Raises:
            ServerTimeout: No answer in time.
            ServerUnavailable: Nothing listens, the connection broke, or it does not speak HTTP.
        """
        seconds = timeout or self._timeout
        size = sum(map(len, body))
        length = f"content-length: {size}\r\n" if method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}{_lines(headers or {})}{length}\r\n".encode(
            "latin-1"
        )
        with (
            self._mapped(method, path, seconds),
            deadline(seconds),
            self._connections.exchange(method, head, body, seconds, repeatable=repeatable) as answer,
        ):
            yield answer

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
        with self.exchange(
            method, path, body=pieces, headers=headers, timeout=timeout, repeatable=method == "GET"
        ) as answer:
            return Response(answer.status, answer.headers, answer.read())

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

    @contextmanager
    def _mapped(self, method: str, path: str, seconds: float) -> Iterator[None]:
        what = f"Triton at {self._source}"
        try:
            yield
        # A refused connection is a kind of ConnectTimeoutError in urllib3.
        except urllib3.exceptions.NewConnectionError as error:
            reason = str(error).rpartition(": ")[2]
            raise ServerUnavailable(
                f"{what} cannot be reached: {reason}. Start the server, or set TRITON_URL "
                "(or the target URI triton://HOST:PORT) to where it listens."
            ) from None
        except urllib3.exceptions.ConnectTimeoutError:
            limit = min(CONNECT_TIMEOUT, seconds)
            raise ServerTimeout(
                f"{what} could not be reached within {limit:g} s. Check the address and the network."
            ) from None
        except ssl.SSLError as error:
            raise ServerUnavailable(
                f"{what}: TLS failed: {error}. Triton itself speaks plain HTTP; check https://."
            ) from None
        except TimeoutError:
            raise ServerTimeout(
                f"{what} accepted {method} {path} but did not answer within {seconds:g} s. "
                "Look at the server's log; TRITON_REQUEST_TIMEOUT (for a load, -C load_timeout or TRITON_LOAD_TIMEOUT) sets this limit."
            ) from None
        except MemoryError:
            raise ServerUnavailable(
                f"{what} answered {method} {path} with more than the memory of this process has room for."
            ) from None
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise ServerUnavailable(
                f"{what} broke off {method} {path}: {repr(error)[:120]}. It may have crashed or may not speak HTTP there; "
                "look at the server's log."
            ) from None


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def segment(text: str) -> str:
    """Quote one path segment."""
    return quote(text, safe="")
