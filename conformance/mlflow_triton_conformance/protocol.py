"""The server's own protocol, over HTTP and without a client library: what a test says is what goes over the wire."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_mlflow_triton.handles import TritonServer

__all__ = ["Answer", "Protocol"]

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    Attributes:
        status: HTTP's.
        headers: By name in lower case.
        body: As it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of a refusal; the answer must be one."""
        assert self.status >= 400, (self.status, self.body[:500])
        message = self.json["error"]
        assert isinstance(message, str)
        return message

    def __repr__(self) -> str:
        return f"HTTP {self.status}: {self.body[:500]!r}"


@dataclass(frozen=True, slots=True)
class Protocol:
    """A server.

    Attributes:
        server: Where it is.
    """

    server: TritonServer

    def get(self, path: str) -> Answer:
        """Send GET to a path below ``/v2``."""
        return self._send(path, None, {})

    def post(self, path: str, document: Any = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Send JSON, or the bytes that are given, with POST to a path below ``/v2``."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self._send(path, b"" if document is None else body, headers or {})

    def infer(self, model: str, document: Any, version: str = "") -> Answer:
        """Send an inference request."""
        return self.post(f"/models/{model}{f'/versions/{version}' if version else ''}/infer", document)

    def load(self, model: str, **parameters: Any) -> Answer:
        """Load a model, over HTTP."""
        return self.post(f"/repository/models/{model}/load", {"parameters": parameters} if parameters else {})

    def unload(self, model: str, **parameters: Any) -> Answer:
        """Unload a model, over HTTP."""
        return self.post(
            f"/repository/models/{model}/unload", {"parameters": parameters} if parameters else {}
        )

    def index(self, model: str, *, ready: bool = False) -> list[dict[str, str]]:
        """Return the entries of a model in the index of the repository."""
        entries: list[dict[str, str]] = self.post("/repository/index", {"ready": ready}).json
        return [entry for entry in entries if entry["name"] == model]

    def is_ready(self, model: str, version: str = "") -> bool:
        """Ask whether a model, or a version of it, is ready for requests."""
        return self.get(f"/models/{model}{f'/versions/{version}' if version else ''}/ready").status == 200

    def let_go(self, model: str) -> None:
        """Unload a model without waiting until it has gone: Triton sleeps a second for each process of a Python model."""
        answer = self.unload(model)
        assert answer.status == 200, f"{model} cannot be unloaded: {answer.status} {answer.body!r}"

    def remove(self, model: str) -> None:
        """Unload a model and wait until it has gone."""
        self.unload(model)
        deadline = time.monotonic() + TIMEOUT
        while self.is_ready(model) or any(it.get("state") == "UNLOADING" for it in self.index(model)):
            assert time.monotonic() < deadline, f"{model} has not been unloaded"
            time.sleep(0.02)

    def _send(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        request = urllib.request.Request(f"{self.server.http_url}/v2{path}", body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())
