"""A server of a test's own, which may be restarted and killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton.embedded.process import EmbeddedTriton
from mlflow_triton.embedded.runtime import provision, safe_temporary_directory
from mlflow_triton_conformance.protocol import Protocol
from pytest_mlflow_triton.handles import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Restarted", "restarted"]

PATIENCE = 30.0
"""Seconds for a killed server to be gone."""


class Restarted:
    """A server that can be ended and started again, on ports of its own each time, with the same repository.

    Args:
        server: The server, running.
    """

    def __init__(self, server: EmbeddedTriton) -> None:
        self._server = server

    @property
    def protocol(self) -> Protocol:
        """The server as it runs now."""
        server = self._server
        return Protocol(
            TritonServer(
                launcher="embedded",
                version=server.version,
                log_path=None,
                http_url=server.http_url,
                grpc_url=server.grpc_url,
                metrics_url=server.metrics_url,
                model_repository=server.model_repository,
            )
        )

    def restart(self, *, kill: bool) -> None:
        """End the server, by SIGTERM or SIGKILL, and start it again.

        Raises:
            EmbeddedServerError: It does not get ready.
        """
        if kill:
            os.kill(self._server.pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
            while self._server.poll() is None:
                assert time.monotonic() < deadline, "a killed server is still there"
                time.sleep(0.02)
        self._server.stop()
        self._server.start()


@contextmanager
def restarted(version: str) -> Iterator[Restarted]:
    """Run a server with an empty repository.

    Args:
        version: Triton's; empty for the newest.
    """
    directory = Path(tempfile.mkdtemp(prefix="restarts-", dir=safe_temporary_directory()))
    repository = directory / "models"
    repository.mkdir()
    try:
        with EmbeddedTriton(repository, runtime=provision(version=version) if version else None) as server:
            yield Restarted(server)
    finally:
        shutil.rmtree(directory)
