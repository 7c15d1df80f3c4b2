"""The benchmarks still run: what they measure is not looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks"]


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    """A quick run shows a table of each benchmark, writes them as JSON, finds nothing wrong and leaves nothing."""
    document = tmp_path / "figures.json"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [*COMMAND, "--quick", "--json", str(document)],
        cwd=ROOT / "conformance",
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(document.read_text())
    assert "updates_under_load" in found
    for benchmark in found.keys() - {"machine"}:
        assert found[benchmark]["problems"] == []
        for table in found[benchmark]["tables"]:
            assert table["title"] in done.stdout
            assert table["rows"]
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run ends its servers and removes its files."""
    process = subprocess.Popen(
        [*COMMAND, "updates_under_load"],
        cwd=ROOT / "conformance",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        assert "updates_under_load: " in process.stderr.readline()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/repository-*/busy-HTTP")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(tmp_path.glob("*/repository-*/busy-HTTP"))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
