"""Model control: load and unload, over gRPC where it is reachable; what is served, over HTTP.

A load over HTTP occupies the server's worker thread that accepted it, and every inference
connection pinned to that thread waits for the whole load; over gRPC none does.
"""

from __future__ import annotations

import base64
import logging
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import LoadFailed, ServerRefused, ServerTimeout, ServerUnavailable
from mlflow_triton.serving.http import HttpEndpoint, Response, one_line, segment
from mlflow_triton.serving.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow_triton.settings import Settings

__all__ = ["Control", "IndexEntry", "ServerInfo"]

log = logging.getLogger(__name__)

GRPC_CONNECT_TIMEOUT = 2.0
#: What Triton says of an entry of the repository that has gone, or is a broken link; and seconds before each new try.
VANISHED = "failed to stat"
INDEX_PAUSES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
NOT_EXPLICIT = "explicit model load / unload is not allowed"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What ``GET /v2`` says."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of one model in the server's repository index.

    Attributes:
        name: The model's name, which is its directory's.
        version: ``None`` for a directory of which nothing is or was loaded.
        state: ``READY``, ``LOADING``, ``UNLOADING``, ``UNAVAILABLE``; ``None`` like `version`.
        reason: Why it is unavailable, in Triton's words; may be empty.
    """

    name: str
    version: str | None
    state: str | None
    reason: str


class Control:
    """Model control of one server. Safe to share between threads.

    Args:
        http: Where the server's state is read, and models are loaded when gRPC is out of reach.
        settings: `grpc_url`, `headers`, `request_timeout` and `load_timeout` are used.

    Attributes:
        http: As given.
        settings: As given.
    """

    def __init__(self, http: HttpEndpoint, settings: Settings) -> None:
        self.http = http
        self.settings = settings
        self._warned = False

    def server(self) -> ServerInfo:
        """Return the server's name, version and extensions."""
        document = self._get("/v2", dict)
        if not isinstance(document.get("name"), str) or not isinstance(document.get("version"), str):
            raise ServerUnavailable(f"{self._where} answered /v2 in a form that Triton never uses.")
        return ServerInfo(document["name"], document["version"], tuple(document.get("extensions") or ()))

    def index(self, *, timeout: float | None = None) -> list[IndexEntry]:
        """List every directory of the server's model repositories, with the state of each version.

        The index is driven by directories, not by what is loaded: a model whose directory is gone
        goes on serving, and is missing here.

        Args:
            timeout: Seconds; default: the setting `request_timeout`.
        """
        path = "/v2/repository/index"
        answer = self.http.json("POST", path, {}, timeout=timeout)
        for pause in INDEX_PAUSES:
            # Triton lists the repository and then looks at each entry: other operations' come and go meanwhile.
            if not (isinstance(answer, Response) and VANISHED in answer.error):
                break
            time.sleep(pause)
            answer = self.http.json("POST", path, {}, timeout=timeout)
        entries = self._checked(answer, list, path)
        if not all(map(_is_entry, entries)):
            raise ServerUnavailable(
                f"{self._where} answered /v2/repository/index in a form that Triton never uses."
            )
        return [
            IndexEntry(
                entry["name"],
                entry.get("version"),
                entry.get("state"),
                one_line(entry.get("reason") or ""),
            )
            for entry in entries
        ]

    def lists(self, name: str) -> bool:
        """Say whether the server's model repositories have a directory of this name."""
        return any(entry.name == name for entry in self.index())

    def config(
        self, name: str, version: str | None = None, *, timeout: float | None = None
    ) -> dict[str, Any] | None:
        """Return the configuration with which the server runs a model; ``None`` when it serves none.

        Args:
            name: The model.
            version: The one that is meant; default: the one that answers requests which name none.
            timeout: Seconds; default: the setting `request_timeout`.
        """
        versions = "" if version is None else f"/versions/{segment(version)}"
        path = f"/v2/models/{segment(name)}{versions}/config"
        answer = self.http.json("GET", path, timeout=timeout)
        if isinstance(answer, Response) and answer.status in (400, 404):
            return None
        config: dict[str, Any] = self._checked(answer, dict, path)
        return config

    def statistics(self) -> list[dict[str, Any]]:
        """Return the inference statistics of every model version that is loaded."""
        path = "/v2/models/stats"
        entries = self._get(path, dict).get("model_stats")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ServerUnavailable(f"{self._where} answered {path} in a form that Triton never uses.")
        return entries

    def is_ready(self, name: str, version: int | None = None) -> bool:
        """Say whether a model (version) answers inference requests."""
        versions = "" if version is None else f"/versions/{version}"
        return self.http.request("GET", f"/v2/models/{segment(name)}{versions}/ready").status == 200

    def is_server_ready(self) -> bool:
        """Say whether the server as a whole calls itself ready.

        With Triton's default, strict readiness, one failed load makes it unready until a model of the
        same name and version has been loaded.
        """
        return self.http.request("GET", "/v2/health/ready").status == 200

    def load(
        self,
        name: str,
        *,
        config_json: str,
        files: Mapping[str, bytes] | None = None,
        timeout: float | None = None,
        reached: Callable[[float], bool] | None = None,
    ) -> None:
        """Load or reload a model from the repository's files, with a configuration of ours.

        Args:
            name: The model's directory.
            config_json: Replaces config.pbtxt for this load.
            files: Replace the repository's, by path in the model directory; Triton keeps them in memory.
            timeout: Seconds; default: the setting `load_timeout`.
            reached: Says, within the seconds that it is given, whether the server serves what it was to load: if so,
                the load has ended, also if Triton's answer is lost. Default: only the answer ends it.

        Raises:
            LoadFailed: Triton refused; its reason is in the message. What it served before it still serves.
            ServerTimeout: No answer in time; the load may still end either way.
            ServerUnavailable: The server is out of reach, or went away during the load.
        """
        seconds = timeout or self.settings.load_timeout.value
        contents = {f"file:{path}": content for path, content in (files or {}).items()}
        with self._grpc() as grpc:

            def call() -> None:
                if grpc is None:
                    encoded = {key: base64.b64encode(content).decode() for key, content in contents.items()}
                    self._post("load", name, {"parameters": {"config": config_json, **encoded}}, seconds)
                    return
                with self._grpc_errors("load", name, seconds):
                    grpc.load_model(
                        name,
                        config=config_json,
                        files=contents or None,
                        headers=self._grpc_headers,
                        client_timeout=seconds,
                    )

            if reached is None:
                call()
            else:
                watched(call, reached, what=f"load of {name!r}", seconds=seconds)

    def require_explicit(self) -> None:
        """Refuse a server that does not load and unload models on request.

        Unloading what does not exist is no error in EXPLICIT mode, and refused in the others.

        Raises:
            ServerRefused: It runs in another model control mode.
        """
        try:
            seconds = self.settings.request_timeout.value
            with self._grpc() as grpc:
                self._unload(grpc, f"mlflow-triton-{uuid.uuid4().hex}", seconds)
        except LoadFailed as error:
            if NOT_EXPLICIT not in error.message:
                raise
            raise ServerRefused(
                f"{self._where} does not load models on request: it runs in the model control mode none or poll. "
                "Nothing was changed. Start it with --model-control-mode=explicit."
            ) from None

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Unload a model and wait until the server has really let go of it.

        Unloading what is not loaded is no error.

        Raises:
            LoadFailed: Triton refused.
            ServerTimeout: It was still unloading when the time was over.
            ServerUnavailable: The server is out of reach.
        """
        seconds = timeout or self.settings.load_timeout.value
        deadline = time.monotonic() + seconds

        def holds(timeout: float, *states: str) -> bool:
            index = self.index(timeout=timeout)
            return any(entry.name == name and entry.state in states for entry in index)

        with self._grpc() as grpc:
            watched(
                lambda: self._unload(grpc, name, seconds),
                # A load that is under way has its turn first.
                lambda left: not holds(left, "READY", "UNLOADING", "LOADING"),
                what=f"unload of {name!r}",
                seconds=seconds,
            )
        pause = 0.005
        while holds(max(deadline - time.monotonic(), 1.0), "READY", "UNLOADING"):
            if time.monotonic() > deadline:
                raise ServerTimeout(
                    f"{self._where} was still unloading {name!r} after {seconds:g} s: requests in flight hold it. "
                    "It ends when they do."
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def _unload(self, grpc: Any, name: str, seconds: float) -> None:
        if grpc is None:
            self._post("unload", name, {}, seconds)
            return
        with self._grpc_errors("unload", name, seconds):
            grpc.unload_model(name, headers=self._grpc_headers, client_timeout=seconds)

    def _post(self, verb: str, name: str, body: Mapping[str, Any], seconds: float) -> None:
        answer = self.http.json(
            "POST", f"/v2/repository/models/{segment(name)}/{verb}", body, timeout=seconds
        )
        if isinstance(answer, Response):
            raise self._refused(verb, name, answer.error)

    def grpc_answers(self) -> bool:
        """Say whether models are loaded over gRPC."""
        with self._grpc() as grpc:
            return grpc is not None

    @property
    def _where(self) -> str:
        return f"Triton at {self.settings.http_url}"

    def _get(self, path: str, kind: type) -> Any:
        return self._checked(self.http.json("GET", path), kind, path)

    def _checked(self, answer: Any, kind: type, path: str) -> Any:
        if isinstance(answer, Response):
            hint = ""
            if VANISHED in answer.error:
                hint = " A broken symbolic link in the model repository does this: remove it."
            elif answer.status == 403:
                hint = " Set TRITON_HEADERS to the header that it expects."
            raise ServerRefused(f"{self._where} refused {path}: {answer.error}{hint}")
        if not isinstance(answer, kind):
            raise ServerUnavailable(f"{self._where} answered {path} in a form that Triton never uses.")
        return answer

    def _refused(self, verb: str, name: str, reason: str) -> LoadFailed:
        hint = " Correct the model and log it again." if verb == "load" else ""
        if NOT_EXPLICIT in reason:
            hint = " Start the server with --model-control-mode=explicit."
        elif "failed to poll from model repository" in reason:
            hint = " Triton says more in its log only ('Poll failed for model directory')."
        return LoadFailed(f"{self._where} could not {verb} {name!r}: {reason}{hint}")

    @property
    def _grpc_headers(self) -> Mapping[str, str]:
        return {key.lower(): value for key, value in self.settings.headers.value.items()}

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning("Models are loaded over HTTP, which stalls inference requests meanwhile: %s.", reason)
            self._warned = True

    @contextmanager
    def _grpc(self) -> Iterator[Any]:
        """Yield a gRPC client that is connected, or ``None``."""
        setting = self.settings.grpc_url
        if setting.value is None:
            self._warn(f"no gRPC URL is known for {self._where}; set TRITON_GRPC_URL")
            yield None
            return
        from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 - 0.3 s that predict does not need
        from tritonclient.utils import InferenceServerException  # noqa: PLC0415 - same

        from mlflow_triton.serving.trust import credentials  # noqa: PLC0415 - same

        host = setting.value.removeprefix("grpcs://")
        client = InferenceServerClient(host, creds=None if host == setting.value else credentials())
        try:
            try:
                client.is_server_live(headers=self._grpc_headers, client_timeout=GRPC_CONNECT_TIMEOUT)
            except InferenceServerException as error:
                self._warn(f"Triton's gRPC endpoint {setting} gives no usable answer ({error.message()})")
                yield None
            else:
                yield client
        finally:
            client.close()

    @contextmanager
    def _grpc_errors(self, verb: str, name: str, seconds: float) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException  # noqa: PLC0415 - 0.2 s that predict does not need

        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "")
            message = str(error.message())
            if "DEADLINE_EXCEEDED" in status:
                raise ServerTimeout(
                    f"{self._where} did not {verb} {name!r} within {seconds:g} s; it may still do so. "
                    "-C load_timeout=SECONDS or TRITON_LOAD_TIMEOUT gives it longer."
                ) from None
            # Triton itself uses UNAVAILABLE for "not in explicit mode" and for a restricted protocol.
            if "UNAVAILABLE" in status and NOT_EXPLICIT not in message and "restricted" not in message:
                raise ServerUnavailable(
                    f"{self._where} went away during the {verb} of {name!r} ({message}). Look at its log."
                ) from None
            raise self._refused(verb, name, one_line(message)) from None


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and all(isinstance(entry.get(key, ""), str) for key in ("version", "state", "reason"))
    )
