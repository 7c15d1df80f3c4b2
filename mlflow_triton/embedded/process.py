"""A real Triton server as a child of this process, without Docker."""

from __future__ import annotations

import codecs
import http.client
import json
import re
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton import lazy_errors as errors
from mlflow_triton.embedded.runtime import provision, reads_safely
from mlflow_triton.embedded.supervision import SupervisedServer
from mlflow_triton.host_gpu import host_gpu

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlflow_triton.embedded.runtime import Runtime

__all__ = ["EmbeddedTriton", "check_arguments"]

_EXIT_TIMEOUT = 2  # seconds that Triton waits for requests and models before it exits all the same
_GRACE = 3.0  # seconds beyond that before it is killed
_PORT_ATTEMPTS = 5
_POLL = 0.01
_TAIL = 25
_OURS = ("http", "grpc", "metrics")
#: What a server's launcher sets, and tells others: nobody else may.
_FIXED = (
    "--model-repository",
    "--model-store",
    "--model-control-mode",
    *(f"--{protocol}-{part}" for protocol in _OURS for part in ("port", "address")),
    *(f"--allow-{protocol}" for protocol in _OURS),
)


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments for tritonserver that would make untrue what is said of a server that is started here.

    Triton takes any beginning of an option's name for the option (getopt_long(3)).

    Raises:
        InvalidParameter: One sets the model repository, the model control mode, or where an endpoint is.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > len("--") and any(fixed.startswith(name) for fixed in _FIXED):
            raise errors.InvalidParameter(
                f"{argument} cannot be passed on to Triton: the model repository, the model control mode and the "
                "addresses of the three endpoints are set already. No server was started. Leave it out; what of these "
                "can be chosen is chosen where the server is asked for, not in its arguments."
            )


class EmbeddedTriton:
    """A tritonserver in EXPLICIT model control mode, started on entry and ended on exit.

    The server binds its three ports on ``host`` and ends when this object is stopped or when this process ends,
    however it ends. It writes nothing outside the model repository but its log.

    Args:
        model_repository: An existing directory, with a path that Triton's Python backend can read (see
            :func:`~mlflow_triton.embedded.runtime.reads_safely`).
        discard_repository: Remove the repository when the server has ended, also if this process was killed.
        host: The address to bind.
        http_port: 0 takes a free one, as for the other two ports.
        grpc_port: The port of the gRPC protocol.
        metrics_port: The port of the Prometheus metrics.
        gpu: Let the server use the GPUs of this machine, with a runtime of its own (2 GB to download, once).
        arguments: More arguments for tritonserver, but none that `check_arguments` refuses; they come last, so they
            override those given here.
        startup_timeout: Seconds until the server must be ready, not counting provisioning.
        log_path: A file to append the server's log to; by default it is kept as long as this object.
        runtime: The tritonserver to run; by default the one from
            :func:`~mlflow_triton.embedded.runtime.provision`.

    Attributes:
        model_repository: The absolute path of the repository.
    """

    def __init__(  # noqa: PLR0913 - each one is a property of the server that users set
        self,
        model_repository: str | os.PathLike[str],
        *,
        discard_repository: bool = False,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        gpu: bool = False,
        arguments: Sequence[str] = (),
        startup_timeout: float = 60.0,
        log_path: str | os.PathLike[str] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.model_repository = Path(model_repository).absolute()
        self._discard = (self.model_repository,) if discard_repository else ()
        self._host = host
        self._address = ""
        self._wanted_ports = dict(zip(_OURS, (http_port, grpc_port, metrics_port), strict=True))
        self._gpu = gpu
        self._arguments = tuple(arguments)
        self._startup_timeout = startup_timeout
        self._log_path = Path(log_path) if log_path is not None else None
        self._runtime = runtime
        self._ports: dict[str, int] = {}
        self._server: SupervisedServer | None = None
        self._version = ""
        self._log_read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it is ready; provision it first if need be.

        Raises:
            EmbeddedServerError: It cannot be provisioned or does not become ready; the end of its log is shown.
            RepositoryError: The model repository cannot be served.
            InvalidParameter: An argument contradicts what this object is for.
        """
        if self.poll() is None and self._server is not None:
            raise errors.EmbeddedServerError(
                f"This embedded Triton server is running already, at {self.http_url}."
            )
        self._check()
        self._address = self._resolve_host()
        runtime = self._runtime or self._provision()
        runtime.verify()
        deadline = time.monotonic() + self._startup_timeout
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._ports = self._choose_ports()
            self._log_read = 0
            try:
                self._server = SupervisedServer(
                    runtime,
                    self._command_line(runtime),
                    gpu=self._gpu,
                    grace=self._exit_timeout() + _GRACE,
                    log_path=self._log_path,
                    discard=self._discard,
                )
                ended = self._wait_until_ready(self._server, deadline)
            except BaseException as error:
                self.stop()
                if isinstance(error, OSError):
                    raise errors.EmbeddedServerError(
                        f"The embedded Triton server cannot be started: {error}"
                    ) from error
                raise
            if ended is None:
                return
            if attempt == _PORT_ATTEMPTS or not self._lost_a_port():
                raise errors.EmbeddedServerError(
                    self._failure(f"ended with {_reason(ended)} before it was ready")
                )

    def stop(self) -> None:
        """End the server and all its processes: SIGTERM, then SIGKILL. May be called again."""
        if self._server is not None:
            self._server.stop()

    def poll(self) -> int | None:
        """Return None while the server runs, and its exit code (negative: a signal) when it has ended."""
        return self._server.poll() if self._server is not None else None

    def log(self) -> str:
        """Return the server's log since its start; it stays readable after the server's end."""
        return self._require_started().log().decode(errors="replace")

    def log_tail(self, lines: int = _TAIL) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def unread_log(self) -> str:
        """Return what the server has logged since the last call, and nothing if it was never started."""
        news = self._server.log(self._log_read) if self._server is not None else b""
        self._log_read += len(news)
        return self._decoder.decode(news)

    @property
    def http_url(self) -> str:
        """Where Triton's HTTP protocol is, such as ``http://127.0.0.1:8000``."""
        return f"http://{self._reachable('http')}"

    @property
    def grpc_url(self) -> str:
        """Where Triton's gRPC protocol is, such as ``127.0.0.1:8001``."""
        return self._reachable("grpc")

    @property
    def metrics_url(self) -> str:
        """Where the Prometheus metrics are, such as ``http://127.0.0.1:8002/metrics``."""
        return f"http://{self._reachable('metrics')}/metrics"

    @property
    def version(self) -> str:
        """The version that the server reports, such as ``2.51.0``."""
        self._require_started()
        return self._version

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self._require_started().pid

    def _require_started(self) -> SupervisedServer:
        if self._server is None:
            raise errors.EmbeddedServerError("This embedded Triton server was never started.")
        return self._server

    def _reachable(self, protocol: str) -> str:
        self._require_started()
        host = "127.0.0.1" if self._address == "0.0.0.0" else self._address  # noqa: S104 - compared, not bound
        return f"{host}:{self._ports[protocol]}"

    def _check(self) -> None:
        """Refuse what would make Triton hang or this object lie, before anything is started."""
        if not self.model_repository.is_dir():
            raise errors.RepositoryError(
                f"The model repository {self.model_repository} is not a directory. No server was started. "
                f"Create it with `mkdir -p {self.model_repository}`."
            )
        if not reads_safely(self.model_repository):
            raise errors.RepositoryError(
                f"Triton cannot load Python or ONNX models from {str(self.model_repository)!r}: a space, a "
                "non-ASCII letter or a character that the shell interprets in its path makes loads hang. No "
                "server was started. Use a path without them, for instance a symbolic link to this directory."
            )
        check_arguments(self._arguments)

    def _provision(self) -> Runtime:
        if self._gpu and not (host := host_gpu(process=True)).present:
            raise errors.EmbeddedServerError(
                f"The embedded Triton server was to use a GPU: {host.reason}. Nothing was downloaded or started. "
                "Leave out --gpu (gpu=True), or go to a machine that has one."
            )
        return provision(gpu=self._gpu)

    def _resolve_host(self) -> str:
        """Return the IPv4 address of the host, the only kind that Triton's HTTP server binds."""
        try:
            address = socket.gethostbyname(self._host)
            with socket.socket() as probe:
                probe.bind((address, 0))
        except OSError as error:
            raise errors.InvalidParameter(
                f"The embedded Triton server cannot bind {self._host}: {error}. No server was started. Give an "
                "IPv4 address of this machine, such as 127.0.0.1."
            ) from error
        return address

    def _choose_ports(self) -> dict[str, int]:
        """Find a free port for each one that is 0; all are held while looking, so they differ."""
        with ExitStack() as held:
            ports = {}
            for protocol, port in self._wanted_ports.items():
                if port == 0:
                    probe = held.enter_context(socket.socket())
                    probe.bind((self._address, 0))
                    port = probe.getsockname()[1]  # noqa: PLW2901 - the same thing, now known
                ports[protocol] = port
            return ports

    def _command_line(self, runtime: Runtime) -> list[str]:
        command = [
            f"--model-repository={self.model_repository}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",  # or one model that fails to load would make the server not ready for good
            f"--exit-timeout-secs={_EXIT_TIMEOUT}",
            f"--backend-directory={runtime.backend_dir}",
            f"--cache-directory={runtime.cache_dir}",
        ]
        for protocol, port in self._ports.items():
            command += [f"--{protocol}-address={self._address}", f"--{protocol}-port={port}"]
        if not self._gpu:  # a server without GPUs complains in its log about each attempt to use one
            command += ["--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false"]
        return [*command, *self._arguments]

    def _exit_timeout(self) -> int:
        given = re.findall(r"--exit-timeout-secs[= ](\d+)", " ".join(self._arguments))
        return int(given[-1]) if given else _EXIT_TIMEOUT

    def _wait_until_ready(self, server: SupervisedServer, deadline: float) -> int | None:
        """Return None when the server is ready, or its exit code when it has ended."""
        while (ended := server.poll()) is None:
            # Another server may have taken a port in the meantime, and would answer in this one's place.
            if set(self._ports.values()) <= _listening_ports(server.pid) and self._answers():
                return None
            if time.monotonic() > deadline:
                self.stop()
                raise errors.EmbeddedServerError(
                    self._failure(
                        f"was not ready after {self._startup_timeout:g} s; look for a model that hangs"
                    )
                )
            time.sleep(_POLL)
        return ended

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self._reachable("http"), timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                return False
            connection.request("GET", "/v2")
            self._version = json.load(connection.getresponse())["version"]
        except (OSError, http.client.HTTPException, ValueError):
            return False  # not yet; the deadline says when to give up
        finally:
            connection.close()
        return True

    def _lost_a_port(self) -> bool:
        """Tell whether another process took one of the ports that were found free."""
        taken = re.search(r"Socket '.*:(\d+)' already in use", self.log())
        free = (port for protocol, port in self._ports.items() if self._wanted_ports[protocol] == 0)
        return taken is not None and int(taken[1]) in free

    def _failure(self, what: str) -> str:
        log, _, usage = self.log().partition("\nUsage: ")
        if usage:
            hint = "It does not understand the arguments passed on to it. "
        elif "already in use" in log:
            hint = "Another process has the port: choose another one, or 0 for a free one. "
        elif "failed to load all models" in log:
            hint = "A model to be loaded at the start is missing or broken. "
        else:
            hint = ""
        # Triton draws tables of its options, which would push the reason out of sight.
        lines = [line for line in log.splitlines() if line and not line.startswith(("|", "+"))]
        tail = "".join(f"\n  {line}" for line in lines[-_TAIL:])
        return f"The embedded Triton server {what}. {hint}Nothing of it is left running. Its log ends:{tail}"


def _reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which a process listens (proc_pid_fd(5), proc_pid_net(5))."""
    process = Path(f"/proc/{pid}")
    sockets = set()
    ports = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # the process ends, or has no IPv6
        for descriptor in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                sockets.add(str(descriptor.readlink()))
        for table in ("tcp", "tcp6"):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                    ports.add(int(local.rpartition(":")[2], 16))
    return ports
