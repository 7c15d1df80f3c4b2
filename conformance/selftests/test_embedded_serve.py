from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest
from click.testing import CliRunner

from mlflow_triton import __version__, host_gpu
from mlflow_triton.cli import main
from mlflow_triton.embedded import provision
from mlflow_triton.embedded.runtime import CACHE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SERVE = [sys.executable, "-c", "from mlflow_triton.cli import main; main()", "serve"]


@pytest.fixture(scope="module", autouse=True)
def provisioned() -> None:
    """Keep the download out of the tests."""
    provision()


@contextmanager
def serving(repository: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `mlflow-triton serve` in a session of its own, as a terminal would."""
    with subprocess.Popen(
        [*SERVE, "--model-repository", str(repository), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_announces_itself_and_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """The command writes one line of JSON to stdout and to the file, and ends with 0 on a signal to its group."""
    ready = tmp_path / "ready.json"
    ready.write_text("stale")
    with serving(tmp_path, "--ready-file", str(ready)) as process:
        assert process.stdout
        line = process.stdout.readline()
        about = json.loads(line)
        while not ready.exists():
            assert process.poll() is None
        assert ready.read_text() == line
        assert about["model_repository"] == str(tmp_path)
        with urllib.request.urlopen(f"{about['http_url']}/v2", timeout=5) as answer:
            assert json.load(answer)["version"] == about["version"]
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
        time.sleep(0.3)
        os.killpg(process.pid, number)  # an impatient second one, while Triton ends
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == ""
    variables = (
        f"TRITON_URL={about['http_url']} TRITON_GRPC_URL={about['grpc_url']} TRITON_MODEL_REPO={tmp_path}"
    )
    assert f"export {variables}\n" in err
    assert "Signal (15) received." in err  # Triton heard from its owner only, and its log is shown to the end
    assert not ready.exists()
    assert not psutil.pid_exists(about["pid"])


def test_serve_fails_when_the_server_dies(tmp_path: Path) -> None:
    """The command ends with an error when Triton does not run any more."""
    with serving(tmp_path) as process:
        assert process.stdout
        psutil.Process(json.loads(process.stdout.readline())["pid"]).kill()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Error: The embedded Triton server ended by itself (exit code -9)." in err
    assert "Traceback" not in err


def test_serve_passes_arguments_on(tmp_path: Path) -> None:
    """What follows -- reaches Triton, and a refused argument is told in one line with the log's end."""
    with serving(tmp_path, "--", "--no-such-option") as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert err.count("unrecognized option '--no-such-option'") == 1
    assert "Traceback" not in err


def test_serve_refuses_a_missing_repository(tmp_path: Path) -> None:
    """The command does not create a model repository, and says how to."""
    result = CliRunner().invoke(main, ["serve", "--model-repository", str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert f"mkdir -p {tmp_path / 'absent'}" in result.output


def test_serve_does_without_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--gpu on a machine without one is refused with the reason, before the big download begins."""
    monkeypatch.setattr(host_gpu, "_DRIVER", tmp_path / "absent")
    monkeypatch.setattr(host_gpu, "_DEVICES", tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    result = CliRunner().invoke(main, ["serve", "--gpu", "--model-repository", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == (
        "Error: The embedded Triton server was to use a GPU: no NVIDIA driver is loaded on this machine. Nothing was "
        "downloaded or started. Leave out --gpu (gpu=True), or go to a machine that has one.\n"
    )
    assert not (tmp_path / "cache").exists()


def test_the_version_is_the_packages() -> None:
    """--version prints the version of this package."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"mlflow-triton, version {__version__}\n"
