"""A server with its repository, clients of it that run in processes of their own, and faults at the steps that they take."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import traceback
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow.artifacts
import mlflow.deployments
import psutil
import tritonclient.grpc

import mlflow_triton.deploy
from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.models.download import LARGE
from mlflow_triton.repository import claim
from system_calls import Call, hand_over, supervise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
#: linux/sched.h, linux/mount.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER = 0x20000, 0x4000000, 0x10000000
BIND = 4096
_libc = ctypes.CDLL(None, use_errno=True)

#: What a full disk refuses; on some filesystems, a rename needs space in its directory.
NEEDS_SPACE = {
    *(
        "open",
        "openat",
        "creat",
        "mkdir",
        "mkdirat",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "rename",
        "renameat",
    ),
    *(
        "renameat2",
        "write",
        "pwrite64",
        "writev",
        "fallocate",
        "sendfile",
        "copy_file_range",
        "ioctl",
        "fsync",
    ),
}
#: What needs no permission once a file is open.
NEEDS_NONE = {
    *(
        "write",
        "pwrite64",
        "writev",
        "fallocate",
        "sendfile",
        "copy_file_range",
        "ioctl",
        "fsync",
        "fdatasync",
    ),
    "ftruncate",
}
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES, "EIO": errno.EIO}


@dataclass(slots=True)
class Fault:
    """What happens at which system call of a client, before it is made.

    Attributes:
        kind: ``none``, ``kill client``, ``kill server``, or a key of `ERRORS`.
        step: At this call, counted from 0.
        server: The process to kill.
        root: Calls that change something below this directory count.
        lasting: Whether an error is that of each call after the step as well.
        plain_renames: Whether renameat2(2) is not to be had, as on some filesystems.
        seen: The calls so far.
    """

    kind: str
    step: int
    server: int
    root: str
    lasting: bool = True
    plain_renames: bool = False
    seen: list[Call] = field(default_factory=list)

    def happen(self, client: int, call: Call) -> int | None:
        """Count a call, and let the fault happen if it is its turn; return what `supervise` wants to be told."""
        if not any(path == self.root or path.startswith(f"{self.root}/") for path in call.paths):
            return 0
        if self.plain_renames and call.name == "renameat2":
            return errno.EINVAL
        self.seen.append(call)
        at = len(self.seen) - 1
        if self.kind == "kill client" and at == self.step:
            os.kill(client, signal.SIGKILL)
            return None
        if self.kind == "kill server" and at == self.step:
            server = psutil.Process(self.server)
            server.kill()
            server.wait(10)
        elif (at >= self.step if self.lasting else at == self.step) and can_fail(call, self.kind):
            return ERRORS[self.kind]
        return 0


def can_fail(call: Call, kind: str) -> bool:
    """Say whether a call can end with the error that a fault is."""
    if kind == "ENOSPC":
        return call.name in NEEDS_SPACE
    if kind == "EACCES":
        return call.name not in NEEDS_NONE | {"flock"}
    return kind == "EIO" and call.name != "flock"


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
        self.elsewhere.mkdir(parents=True, exist_ok=True)
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

    def client(self, fault: Fault | None, verb: str, *arguments: Any) -> str:
        """Run one verb in a process of its own; return how it ended."""
        return self.forked(lambda client: getattr(client, verb)(*arguments), fault)

    def forked(self, work: Callable[[Any], Any], fault: Fault | None = None, *, away: bool = False) -> str:
        """Do something with a client in a process of its own, or as good as on another machine; return how it ended.

        It ended with ``done``, with the result as JSON, with an error's name and message, or ``killed``.
        """
        reading, writing = os.pipe()
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - another process
            os.close(reading)
            try:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.directory.parent}/mlflow.db"
                client = mlflow.deployments.get_deploy_client(
                    self.target_of(self.mounted() if away else self.repository)
                )
                if fault is not None:
                    hand_over(there)
                result = work(client)
                outcome = "done" if result is None else json.dumps(result, default=str)
            except BaseException as error:  # noqa: BLE001 - to be told to the parent, whatever it is
                outcome = f"{type(error).__name__}: {error}"
            with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
                pipe.write(outcome)
            os._exit(0)
        os.close(writing)
        there.close()
        with here, open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor
            if fault is None:
                text = pipe.read()
            else:
                text = supervise(here, reading, lambda call: fault.happen(pid, call))
        os.waitpid(pid, 0)
        return text.decode() or "killed"

    def mounted(self) -> Path:
        """Mount the repository where only this process sees it; return where."""
        own_namespaces()
        mount(str(self.repository), self.elsewhere, BIND)
        return self.elsewhere

    @property
    def elsewhere(self) -> Path:
        """Where another machine mounts the repository."""
        return self.directory / "elsewhere" / "models"

    @property
    def target(self) -> str:
        """The target URI of the server and its repository."""
        return self.target_of(self.repository)

    def target_of(self, repository: Path) -> str:
        """Return the target URI of the server and its repository, wherever that is mounted."""
        query = {"model_repository": repository} | ({"grpc_url": self.server.grpc_url} if self.grpc else {})
        return f"{self.server.http_url.replace('http://', 'triton://')}?{urlencode(query)}"

    def run(
        self, operation: str, fault: Fault | None, model: str, name: str = "m", *, away: bool = False
    ) -> str:
        """Run one operation on a deployment."""
        verb = "update" if operation == "keep" else operation
        arguments: tuple[Any, ...] = (name,)
        if operation not in ("delete", "rollback"):
            arguments += (
                self.models[model],
                None,
                {"keep_previous": "true"} if operation == "keep" else None,
            )
        return self.forked(lambda client: getattr(client, f"{verb}_deployment")(*arguments), fault, away=away)

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
        assert (directory / "1" / "weights").read_bytes() == weights(value)
        assert record["mlflow_model_uri"] == self.models[{v: k for k, v in VALUES.items()}[value]]
        assert (directory / "config.pbtxt").read_text() == CONFIG
        return value

    def leftovers(self) -> list[str]:
        """What is ours in the repository and beside it."""
        return [
            path.name
            for path in (
                *self.repository.iterdir(),
                *self.directory.iterdir(),
                *self.elsewhere.parent.iterdir(),
            )
            if path.name.startswith(claim.PREFIX)
        ]


def own_namespaces() -> None:
    """Let this process mount filesystems, for itself only.

    Raises:
        OSError: The kernel does not let this user.
    """
    user, group = os.getuid(), os.getgid()
    _answered(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    socket.sethostname("elsewhere")


def mount(source: str, target: Path, flags: int = 0, kind: str = "none", options: str = "") -> None:
    """Mount a filesystem in this process's own namespace.

    Raises:
        OSError: The kernel does not let this user.
    """
    arguments = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _answered(_libc.mount(*arguments), f"mount {target}")


def _answered(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def alone(work: Callable[[], Any]) -> Any:
    """Do something in a process of its own that may mount filesystems, for itself only.

    Returns:
        What it returns; a text, if the kernel does not let this user.

    Raises:
        AssertionError: It has raised something.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        os.close(reading)
        error = None
        result: Any = None
        try:
            own_namespaces()
        except OSError as problem:
            result = f"no namespaces for this user: {problem}"
        else:
            try:
                result = work()
            except BaseException:  # noqa: BLE001 - to be told to the parent, whatever it is
                error = traceback.format_exc()
        with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
            json.dump([result, error], pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(pid, 0)
    result, error = json.loads(text)
    assert error is None, error
    return result


def succeeded(outcome: str) -> bool:
    """Say whether a client returned: a deployment, a list, or nothing."""
    return outcome == "done" or outcome[:1] in "[{"


def weights(value: int) -> bytes:
    """Return a large file of a model, which is cloned or linked where that is possible."""
    return bytes([value]) * LARGE


@contextmanager
def worlds_in(top: Path, models: dict[str, str], count: int) -> Iterator[list[World]]:
    """Start so many worlds, and stop them in the end."""
    worlds = [World(top / f"world{number}", models) for number in range(count)]
    with ExitStack() as stack:
        for world in worlds:
            world.start()
            stack.callback(world.stop)
        yield worlds


def save_models(top: Path) -> dict[str, str]:
    """Save models that tell by their answers which one they are; return their paths."""
    saved = {}
    for name, value in VALUES.items():
        (top / name / "1").mkdir(parents=True)
        (top / name / "1" / "model.py").write_text(MODEL.format(value=value))
        (top / name / "1" / "weights").write_bytes(weights(value))
        (top / name / "config.pbtxt").write_text(CONFIG)
        flavor.save_model(top / name, top / f"{name}-saved")
        saved[name] = str(top / f"{name}-saved")
    return saved
