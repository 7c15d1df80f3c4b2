"""The owner's side of a supervised server: start it, watch it, read its log, end it."""

# ruff: noqa: S603 - programs are started from lists of arguments, without a shell

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from mlflow_triton import lazy_errors as errors
from mlflow_triton.embedded import supervisor
from mlflow_triton.embedded.runtime import safe_temporary_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_triton.embedded.runtime import Runtime

__all__ = ["SupervisedServer"]

_FIRST_REPORT = 30.0  # seconds that a supervisor may take to start on a busy machine
_MARGIN = 10.0  # seconds that ending the server may take beyond its grace


class SupervisedServer:
    """A tritonserver process that ends when it is stopped, or when the process that owns it ends.

    Args:
        runtime: Where the server is.
        arguments: The server's arguments.
        gpu: Let it see the GPUs.
        grace: Seconds that the server may take to end after SIGTERM, before SIGKILL.
        log_path: A file to append the server's log to; by default one without a name.
        discard: Directories to remove when the server has ended, however it or its owner ended.

    Attributes:
        pid: The server's process id.

    Raises:
        EmbeddedServerError: The process cannot be started.
        OSError: The log cannot be written.
    """

    def __init__(  # noqa: PLR0913 - what a server needs is decided by its one user
        self,
        runtime: Runtime,
        arguments: Sequence[str],
        *,
        gpu: bool,
        grace: float,
        log_path: Path | None,
        discard: Sequence[Path] = (),
    ) -> None:
        self._owner = os.getpid()
        self._grace = grace
        self._discard = discard
        self._exit: int | None = None
        self._final_log = b""
        self._shared_memory = f"mlflow-triton-{uuid.uuid4().hex[:12]}-"
        self._log: IO[bytes] = log_path.open("ab+") if log_path else tempfile.TemporaryFile("ab+")  # noqa: SIM115 - closed when the server has ended
        self._log_start = os.fstat(self._log.fileno()).st_size
        naming = f"--backend-config=python,shm-region-prefix-name={self._shared_memory}"  # for backends based on it too
        specification = {
            "owner": self._owner,
            "command": [str(runtime.tritonserver), naming, *arguments],
            "temporary": safe_temporary_directory(),
            "shared_memory": self._shared_memory,
            "log": self._log.fileno(),
            "grace": grace,
            "discard": [str(path) for path in discard],
        }
        self._supervisor = subprocess.Popen(
            [runtime.python, "-I", "-S", supervisor.__file__, json.dumps(specification)],
            env=runtime.environment(gpu=gpu),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self._log.fileno()],
            start_new_session=True,  # Ctrl-C in a terminal is the owner's to decide about
            text=True,
        )
        self._lifeline = cast("IO[str]", self._supervisor.stdin)
        self._reports = cast("IO[str]", self._supervisor.stdout)
        try:
            report = self._first_report()
        except BaseException:
            self._end_supervisor()
            self._reports.close()
            self._log.close()
            raise
        self.pid: int = report["pid"]
        self._directory = Path(report["directory"])

    def poll(self) -> int | None:
        """Return the server's exit code (negative: the signal that ended it), or None while it runs."""
        if self._owned and self._supervisor.poll() is not None:
            self._finish()
        return self._exit

    def log(self, start: int = 0) -> bytes:
        """Return what the server has logged, from a position in bytes on. It stays readable when it has ended."""
        return self._final_log[start:] if self._log.closed else self._read_log(start)

    def stop(self) -> None:
        """End the server: SIGTERM, and SIGKILL after the grace. May be called again."""
        if self._owned:
            self._end_supervisor()
            self._finish()

    @property
    def _owned(self) -> bool:
        """Whether there is something left to end, and this process, not a fork of it, is the one to do so."""
        return self._exit is None and os.getpid() == self._owner

    def _first_report(self) -> dict[str, Any]:
        if not select.select([self._reports], [], [], _FIRST_REPORT)[0]:
            raise errors.EmbeddedServerError(
                f"The embedded Triton server was not started within {_FIRST_REPORT:.0f} s, and was given up. "
                "The machine may be overloaded."
            )
        line = self._reports.readline()
        if line.startswith("{"):
            return cast("dict[str, Any]", json.loads(line))
        said = (line + self._reports.read()).strip()
        raise errors.EmbeddedServerError(f"The embedded Triton server cannot be started: {said[-1000:]}")

    def _end_supervisor(self) -> None:
        self._lifeline.close()  # which tells it to end the server
        try:
            self._supervisor.wait(self._grace + _MARGIN)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()

    def _finish(self) -> None:
        """Learn how the server ended; clean up in the place of a supervisor that was killed."""
        self._lifeline.close()
        last = self._reports.read()
        self._reports.close()
        if last.startswith("{"):
            self._exit = json.loads(last)["exit"]
        else:
            supervisor.sweep(self.pid, self._shared_memory, self._directory, *self._discard)
            self._exit = -signal.SIGKILL
        self._final_log = self._read_log(0)
        self._log.close()

    def _read_log(self, start: int) -> bytes:
        # pread leaves the position alone, which the server's own descriptor shares.
        start += self._log_start
        return os.pread(self._log.fileno(), max(0, os.fstat(self._log.fileno()).st_size - start), start)
