"""`mlflow deployments run-local`, as a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_mlflow_triton.handles import PublishOnnx

pytestmark = pytest.mark.slow

RUN_LOCAL = [sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "triton", "--name", "local"]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The only place for temporary files of the processes that a test starts."""
    directory = tmp_path / "t"
    directory.mkdir()
    return directory


def environment(temporary: Path) -> dict[str, str]:
    """What the processes of a test get; without the file that MLflow's telemetry keeps."""
    return {**os.environ, "TMPDIR": str(temporary), "DO_NOT_TRACK": "true"}


@contextmanager
def run_local(uri: str, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a model locally; yield the process and the command that it prints."""
    process = subprocess.Popen(
        [*RUN_LOCAL, "-m", uri],
        env=environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        command = next(
            (line.strip() for line in lines if line.startswith("mlflow deployments predict")), None
        )
        assert command is not None, process.stderr and process.stderr.read()
        yield process, command
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def left(processes: list[psutil.Process], directory: Path) -> list[object]:
    """Wait until processes have ended and a directory is empty, for 15 seconds at most; return what is left."""
    deadline = time.monotonic() + 15
    while remains := [*(process for process in processes if process.is_running()), *directory.rglob("*")]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return remains


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_until_the_end(publish_onnx: PublishOnnx, temporary: Path, number: signal.Signals) -> None:
    """The printed command predicts as it stands; when the process ends, however, nothing is left."""
    uri = publish_onnx(models.constant(5.0))
    with run_local(uri, temporary) as (process, command):
        below = psutil.Process(process.pid).children(recursive=True)
        assert any("tritonserver" in child.name() for child in below)
        answer = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert answer.stdout.strip() == '{"outputs": {"y": [[5.0]]}}'
        os.kill(process.pid, number)
        assert process.wait(20) == (-number if number == signal.SIGKILL else 0)
        assert left(below, temporary) == []


@pytest.mark.usefixtures("mlflow_environment")
def test_a_model_that_cannot_be_deployed(temporary: Path) -> None:
    """A wrong model URI is an error of one line after the server's log, and nothing is left."""
    done = subprocess.run(
        [*RUN_LOCAL, "-m", "models:/no-such-model/1"],
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("Error: models:/no-such-model/1 was not found")
    assert "Traceback" not in done.stderr
    assert left([], temporary) == []
