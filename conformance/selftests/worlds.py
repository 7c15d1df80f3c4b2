"""A server with its repository, clients of it that run in processes of their own, and faults at the steps that they take."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow.artifacts
import mlflow.deployments
import tritonclient.grpc

import mlflow_triton.deploy
from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.repository import claim

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a client imports when it needs it: here before it is forked, for 200 clients that start quickly.
PRELOADED = (mlflow.artifacts, tritonclient.grpc, mlflow_triton.deploy)

MODEL = """\
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answer = np.array([{value}], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)]) for _ in requests]
"""
CONFIG = """\
backend: "python"
max_batch_size: 0
instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
OLD, NEW, NEXT = 1, 2, 3
VALUES = {"old": OLD, "new": NEW, "next": NEXT}
#: Events of sys.addaudithook that change something; "open" does if it is for writing.
EVENTS = {
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.rmtree",
    "ctypes.dlsym",
    "fcntl.flock",
}
#: What a full disk refuses. Renames and removals need no space.
NEEDS_SPACE = {"open", "os.mkdir", "os.write"}
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES, "EIO": errno.EIO}


@dataclass(slots=True)
class Fault:
    """What happens at which step of a client.

    Attributes:
        kind: ``none``, ``kill client``, ``kill server``, or a key of `ERRORS`.
        step: At this call.
        server: The process to kill.
        root: Calls below this directory count.
        lasting: Whether an error is that of each call after the step as well.
        seen: The calls so far.
    """

    kind: str
    step: int
    server: int
    root: str
    lasting: bool = True
    seen: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Watch this process from now on."""
        write, fsync = os.write, os.fsync

        def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(descriptor: int, *arguments: Any) -> Any:
                path = opened(descriptor)
                self.happen(name, path)
                return call(descriptor, *arguments)

            return wrapper

        os.write, os.fsync = watched("os.write", write), watched("os.fsync", fsync)
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at one audit event."""
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.happen(event, arguments[0])
        elif event == "ctypes.dlsym":
            if arguments[1] == "renameat2":
                self.happen("renameat2", self.root)
        elif event in EVENTS:
            path = arguments[0]
            relative = any(isinstance(argument, int) and argument >= 0 for argument in arguments[1:])
            if event in ("os.remove", "os.rmdir") and relative:
                path = self.root  # relative to a directory of shutil.rmtree's
            elif isinstance(path, int):
                path = opened(path)
            self.happen(event, path)

    def happen(self, event: str, path: Any) -> None:
        """Count one call, and let the fault happen if it is its turn."""
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(self.root):
            return
        self.seen.append(event)
        at = len(self.seen) - 1
        if self.kind == "kill client" and at == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "kill server" and at == self.step:
            os.kill(self.server, signal.SIGKILL)
        elif self.kind in ERRORS and (at >= self.step if self.lasting else at == self.step):
            self.fail(event, os.fspath(path))

    def fail(self, event: str, path: str) -> None:
        """Raise the fault's error, where the call can end with it."""
        number = ERRORS[self.kind]
        if (number == errno.ENOSPC and event not in NEEDS_SPACE) or event == "fcntl.flock":
            return
        raise OSError(number, os.strerror(number), path)


@dataclass(slots=True)
class World:
    """One server with its repository, and clients of it that may be killed."""

    directory: Path
    models: dict[str, str]
    grpc: bool = True
    server: EmbeddedTriton = field(init=False)

    def start(self) -> None:
        """Start the server, or another one in the place of a dead one."""
        self.repository.mkdir(parents=True, exist_ok=True)
        self.server = EmbeddedTriton(
            self.repository,
            arguments=[
                "--disable-auto-complete-config",
                "--backend-config=python,shm-default-byte-size=1048576",
            ],
        )
        self.server.start()

    def stop(self) -> None:
        """Stop the present server."""
        self.server.stop()

    @property
    def repository(self) -> Path:
        """The model repository."""
        return self.directory / "repository"

    def client(self, fault: Fault | None, verb: str, *arguments: Any) -> tuple[str, list[str]]:
        """Run one verb in a process of its own; return how it ended, and the calls that it made."""
        return self.forked(lambda client: getattr(client, verb)(*arguments), fault)

    def forked(self, work: Callable[[Any], Any], fault: Fault | None = None) -> tuple[str, list[str]]:
        """Do something with a client in a process of its own; return how it ended, and the calls that it made.

        It ended with ``done``, with the result as JSON, with an error's name and message, or ``killed``.
        """
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - another process
            os.close(reading)
            seen: list[str] = []
            try:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.directory}/mlflow.db"
                client = mlflow.deployments.get_deploy_client(self.target)
                if fault is not None:
                    fault.install()
                    seen = fault.seen
                result = work(client)
                outcome = "done" if result is None else json.dumps(result, default=str)
            except BaseException as error:  # noqa: BLE001 - to be told to the parent, whatever it is
                outcome = f"{type(error).__name__}: {error}"
            if fault is not None:
                fault.kind = "none"
            with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
                json.dump([outcome, seen], pipe)
            os._exit(0)
        os.close(writing)
        with open(reading) as pipe:  # noqa: PTH123 - a descriptor
            text = pipe.read()
        os.waitpid(pid, 0)
        outcome, seen = json.loads(text) if text else ("killed", [])
        return outcome, seen

    @property
    def target(self) -> str:
        """The target URI of the server and its repository."""
        query = {"model_repository": self.repository} | (
            {"grpc_url": self.server.grpc_url} if self.grpc else {}
        )
        return f"{self.server.http_url.replace('http://', 'triton://')}?{urlencode(query)}"

    def run(self, operation: str, fault: Fault | None, model: str, name: str = "m") -> tuple[str, list[str]]:
        """Run one operation on a deployment."""
        if operation in ("delete", "rollback"):
            return self.client(fault, f"{operation}_deployment", name)
        if operation == "keep":
            keep = {"keep_previous": "true"}
            return self.client(fault, "update_deployment", name, self.models[model], None, keep)
        return self.client(fault, f"{operation}_deployment", name, self.models[model])

    def answers(self, name: str = "m") -> int | None:
        """What the server answers for a model; ``None``: it does not serve it."""
        tensor = {"name": "x", "datatype": "INT32", "shape": [1], "data": [0]}
        request = urllib.request.Request(
            f"{self.server.http_url}/v2/models/{name}/infer", data=json.dumps({"inputs": [tensor]}).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(json.load(answer)["outputs"][0]["data"][0])
        except (urllib.error.HTTPError, urllib.error.URLError):
            return None

    def on_disk(self, inside: str = "") -> int | None:
        """Which model lies in the repository as m, or in m as what it keeps, whole; ``None``: none."""
        directory = self.repository / "m" / inside
        if not directory.exists():
            return None
        record = json.loads((directory / "mlflow-meta.json").read_text())
        text = (directory / "1" / "model.py").read_text()
        (value,) = [value for value in VALUES.values() if text == MODEL.format(value=value)]
        assert record["mlflow_model_uri"] == self.models[{v: k for k, v in VALUES.items()}[value]]
        assert (directory / "config.pbtxt").read_text() == CONFIG
        return value

    def leftovers(self) -> list[str]:
        """What is ours in the repository and beside it."""
        return [
            path.name
            for path in [*self.repository.iterdir(), *self.directory.iterdir()]
            if path.name.startswith(claim.PREFIX)
        ]


def opened(descriptor: int) -> str:
    """Return the path of an open file."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def succeeded(outcome: str) -> bool:
    """Say whether a client returned: a deployment, or nothing."""
    return outcome == "done" or outcome.startswith("{")


def save_models(top: Path) -> dict[str, str]:
    """Save models that tell by their answers which one they are; return their paths."""
    saved = {}
    for name, value in VALUES.items():
        (top / name / "1").mkdir(parents=True)
        (top / name / "1" / "model.py").write_text(MODEL.format(value=value))
        (top / name / "config.pbtxt").write_text(CONFIG)
        flavor.save_model(top / name, top / f"{name}-saved")
        saved[name] = str(top / f"{name}-saved")
    return saved
