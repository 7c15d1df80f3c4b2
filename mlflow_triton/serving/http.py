"""HTTP to Triton over one pooled, thread-safe connection pool."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import urllib3

from mlflow_triton.errors import ServerTimeout, ServerUnavailable
from mlflow_triton.serving.deadline import deadline, pool_manager

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_triton.settings import Settings

__all__ = ["HttpEndpoint", "Response"]

#: How many connections stay open per client; further ones are opened and closed as needed.
POOL_SIZE = 64
CONNECT_TIMEOUT = 10.0


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
    """Triton's HTTP endpoint.

    Args:
        settings: `http_url`, `headers` and `request_timeout` are used.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.http_url.value
        self._source = settings.http_url
        self._timeout = settings.request_timeout.value
        # Without "identity", Triton compresses every answer: 62 instead of 8 ms for 1 MB.
        self._headers = {"accept-encoding": "identity", **settings.headers.value}
        self._process = os.getpid()
        self._pool = pool_manager(POOL_SIZE)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Send one request and read the whole answer.

        Args:
            method: ``GET`` or ``POST``.
            path: Begins with a slash; already quoted.
            body: The request's body.
            headers: In addition to the settings' headers.
            timeout: Seconds for all of it, also if the answer comes byte by byte; default: the setting.

        Raises:
            ServerTimeout: No answer in time.
            ServerUnavailable: Nothing listens, the connection broke, or it does not speak HTTP.
        """
        seconds = timeout or self._timeout
        with self._mapped(method, path, seconds), deadline(seconds):
            answer = self._own_pool().request(
                method,
                self.url + path,
                body=body,
                headers={**self._headers, **(headers or {})},
                timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, seconds), read=seconds),
                redirect=False,
            )
        return Response(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.data)

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

    def _own_pool(self) -> urllib3.PoolManager:
        """Return this process's connections: those of a process that forked this one carry its answers."""
        if self._process != os.getpid():
            self._process, self._pool = os.getpid(), pool_manager(POOL_SIZE)
        return self._pool

    @contextmanager
    def _mapped(self, method: str, path: str, seconds: float) -> Iterator[None]:
        what = f"Triton at {self._source}"
        silent = ServerTimeout(
            f"{what} accepted {method} {path} but did not answer within {seconds:g} s. "
            "Look at the server's log; TRITON_REQUEST_TIMEOUT (for a load, -C load_timeout or TRITON_LOAD_TIMEOUT) sets this limit."
        )
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
        except urllib3.exceptions.ReadTimeoutError:
            raise silent from None
        except urllib3.exceptions.SSLError as error:
            raise ServerUnavailable(
                f"{what}: TLS failed: {error}. Triton itself speaks plain HTTP; check https://."
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # urllib3 wraps what really happened as its last argument.
            cause = error.args[-1] if error.args else error
            if isinstance(cause, TimeoutError):  # while the request was sent
                raise silent from None
            reason = repr(cause) if isinstance(cause, Exception) else str(cause)
            raise ServerUnavailable(
                f"{what} broke off {method} {path}: {reason[:120]}. It may have crashed or may not speak HTTP there; "
                "look at the server's log."
            ) from None


def segment(text: str) -> str:
    """Quote one path segment."""
    return quote(text, safe="")
