"""The server's index while other operations work in the repository."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from mlflow_triton.serving.control import VANISHED, Control
from mlflow_triton.serving.http import HttpEndpoint, Response
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from pytest_mlflow_triton.handles import TritonServer


@pytest.mark.slow
def test_entries_that_come_and_go(triton_server: TritonServer) -> None:
    """An entry that vanishes while Triton lists the repository fails Triton's answer, and is not seen by callers."""
    settings = Settings.parse(triton_server.http_url.replace("http://", "triton://"), {})
    http = HttpEndpoint(settings)
    control = Control(http, settings)
    stop = threading.Event()
    passing = triton_server.model_repository / f"passing-by-{os.getpid()}"

    def come_and_go() -> None:
        while not stop.is_set():
            passing.touch()
            passing.unlink()
            time.sleep(0.0005)

    visitor = threading.Thread(target=come_and_go)
    visitor.start()
    refused = 0
    deadline = time.monotonic() + 60
    try:
        while refused < 3 and time.monotonic() < deadline:
            control.index()
            answer = http.json("POST", "/v2/repository/index", {})
            refused += isinstance(answer, Response) and VANISHED in answer.error
    finally:
        stop.set()
        visitor.join()
    assert refused == 3
