"""The supervisor: a small process between a Triton server and the process that owns it.

It runs as ``python -I -S supervisor.py SPECIFICATION`` and sees to it that the server, its stubs, their shared
memory and their temporary files never outlive the owner, not even one that is killed with SIGKILL:

* The owner holds the other end of the supervisor's stdin, a pipe; when that closes, the server is ended.
  A process that the owner forked may hold a copy of the pipe, so the parent's id is watched as well.
* The kernel kills the server when the supervisor dies (PR_SET_PDEATHSIG). That signal follows the *thread* that
  forked, which is why the owner, with its many threads, cannot ask for it itself.
* Stubs that lose their server become the supervisor's children (PR_SET_CHILD_SUBREAPER) and are killed.

It writes one JSON line to stdout when the server runs and one when all is over. Standard library only.
"""

# ruff: noqa: S603 - programs are started from lists of arguments, without a shell

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OWNER_CHECK = 1.0  # seconds between looks at the parent's id
_REAP_LIMIT = 5.0  # seconds; a killed process ends at once unless the kernel holds it


def sweep(group: int, shared_memory: str, *directories: Path) -> None:
    """Remove all that one server may have left: processes, shared memory, temporary files.

    Args:
        group: The server's process group.
        shared_memory: The prefix of the names of its shared memory, unique to this server.
        directories: Those that are its own.
    """
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{shared_memory}*"):  # noqa: S108 - where shm_open(3) puts them
        region.unlink(missing_ok=True)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _run(specification: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    directory = Path(tempfile.mkdtemp(prefix="mlflow-triton-", dir=specification["temporary"]))
    try:
        server = subprocess.Popen(
            specification["command"],
            env={**os.environ, "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=specification["log"],
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_supervisor,  # noqa: PLW1509 - this process has one thread only
        )
    except BaseException:
        shutil.rmtree(directory)
        raise
    try:
        _tell({"pid": server.pid, "directory": str(directory)})
        _wait(server, specification["owner"], woken)
        _end(server, specification["grace"])
    finally:
        discarded = map(Path, specification.get("discard", ()))
        sweep(server.pid, specification["shared_memory"], directory, *discarded)
    _tell({"exit": server.returncode})


def _wait(server: subprocess.Popen[bytes], owner: int, woken: socket.socket) -> None:
    """Return when the server has ended or has to be ended."""
    while server.poll() is None and os.getppid() == owner:
        ready, _, _ = select.select([sys.stdin, woken], [], [], _OWNER_CHECK)
        if sys.stdin in ready:
            return
        if woken in ready and set(woken.recv(64)) - {signal.SIGCHLD}:
            return


def _end(server: subprocess.Popen[bytes], grace: float) -> None:
    """End the server and every process below it; reap them all."""
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + _REAP_LIMIT
    while time.monotonic() < deadline:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            with suppress(
                FileNotFoundError
            ):  # a kernel without this list: the group is all that can be killed
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.005)


def _tell(report: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the owner is gone
        sys.stdout.write(f"{json.dumps(report)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
