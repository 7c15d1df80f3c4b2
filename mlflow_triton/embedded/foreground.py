"""An embedded server in the foreground of a terminal or a process manager."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mlflow_triton import lazy_errors as errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from mlflow_triton.embedded.process import EmbeddedTriton

__all__ = ["serve"]

_POLL = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _EndRequested(BaseException):
    """SIGINT or SIGTERM has arrived."""


def serve(
    server: EmbeddedTriton,
    announce: Callable[[EmbeddedTriton], str] | None = None,
    *,
    ready_file: Path | None = None,
) -> None:
    """Run a server until SIGINT or SIGTERM.

    The server's log goes to stderr. One line of JSON goes to stdout once the server is ready, unless `announce` says
    something else.

    Args:
        server: A server that is not started yet.
        announce: Called once the server is ready; what it returns goes to stdout.
        ready_file: Appears with the same line once the server is ready, and is removed when it ends.

    Raises:
        EmbeddedServerError: The server cannot be started, or ends by itself.
        OSError: The ready file cannot be written.
    """
    if ready_file is not None and not ready_file.parent.is_dir():
        raise errors.InvalidParameter(
            f"The ready file {ready_file} cannot be written: {ready_file.parent} is not a directory. "
            "No server was started."
        )
    ready = False  # an error before that shows the end of the log itself
    with _ended_by_signal():
        try:
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)  # one that a killed server left would tell a lie
            server.start()
            ready = True
            if announce is None:
                _announce(server, ready_file)
            else:
                said = announce(server)
                _pass_on_log(server)  # so that what is said comes last
                sys.stdout.write(said)
                sys.stdout.flush()
            while (code := server.poll()) is None:
                _pass_on_log(server)
                time.sleep(_POLL)
            raise errors.EmbeddedServerError(
                f"The embedded Triton server ended by itself (exit code {code}). The model repository is as it "
                "was; the log above says what happened."
            )
        finally:
            for number in _SIGNALS:  # ending is bounded; a second Ctrl-C must not cut it short
                signal.signal(number, signal.SIG_IGN)
            server.stop()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)
            if ready:
                _pass_on_log(server)


def _announce(server: EmbeddedTriton, ready_file: Path | None) -> None:
    _pass_on_log(server)
    sys.stderr.write(
        f"export TRITON_URL={server.http_url} TRITON_GRPC_URL={server.grpc_url} "
        f"TRITON_MODEL_REPO={server.model_repository}\n"
    )
    sys.stderr.flush()
    about = {
        "http_url": server.http_url,
        "grpc_url": server.grpc_url,
        "metrics_url": server.metrics_url,
        "model_repository": str(server.model_repository),
        "version": server.version,
        "pid": server.pid,
    }
    line = f"{json.dumps(about)}\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    if ready_file is not None:
        partial = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        partial.write_text(line)
        partial.replace(ready_file)


def _pass_on_log(server: EmbeddedTriton) -> None:
    sys.stderr.write(server.unread_log())
    sys.stderr.flush()


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Leave the block without an error when SIGINT or SIGTERM arrives."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _EndRequested

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        with suppress(_EndRequested):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
