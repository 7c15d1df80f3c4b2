"""Disk and memory of one operation, which is run in a process of its own.

* written: what the process caused to be written to disks (``write_bytes`` of proc_pid_io(5)): counted when a page
  becomes dirty, so that a later or never finished write to the disk counts all the same; a link costs nothing. On
  a filesystem in memory it is 0.
* disk: the blocks of all files below a directory, each counted once however many links it has (what du(1) counts),
  looked at fifty times a second; the highest growth is the peak.
* memory: ``VmHWM`` of proc_pid_status(5), the highest resident memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Usage", "measure", "memory", "reset_peak"]

TIMEOUT = 600.0
_PAUSE = 0.02  # seconds; less would take the processor from what is measured


@dataclass(frozen=True, slots=True)
class Usage:
    """What one operation took.

    Attributes:
        seconds: Its duration, without the start of its process.
        written: Bytes.
        peak_disk: Bytes more than before, at the worst moment.
        disk: Bytes more than before, afterwards.
        peak_memory: Bytes of the process, at the worst moment.
        grown_memory: Bytes of that beyond what the process had when the operation began.
    """

    seconds: float
    written: float
    peak_disk: float
    disk: float
    peak_memory: float
    grown_memory: float


def measure(operation: Mapping[str, object], directory: Path) -> Usage:
    """Run an operation in a process of its own.

    Args:
        operation: See `main`.
        directory: All of the operation's files lie below it; its temporary files as well.
    """
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    watch = _DiskWatch(directory)
    with watch:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.usage", json.dumps(operation)],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
    return Usage(**json.loads(done.stdout), peak_disk=watch.peak, disk=watch.last)


class _DiskWatch:
    """Looks at the disk while the block runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._before = 0
        self.peak = self.last = 0

    def __enter__(self) -> None:
        self._before = _blocks(self._directory)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.last = _blocks(self._directory) - self._before

    def _look(self) -> None:
        while not self._stop.wait(_PAUSE):
            self.peak = max(self.peak, _blocks(self._directory) - self._before)


def _blocks(directory: str) -> int:
    """Return the bytes of all blocks below a directory that changes meanwhile."""
    seen: dict[int, int] = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                found = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - thousands of times
            except FileNotFoundError:
                continue
            seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def memory(key: str) -> int:
    """Return bytes that this process has: ``VmRSS``, or ``VmHWM`` at the worst moment since `reset_peak`."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def available() -> int:
    """Return bytes that the machine has left for processes."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def reset_peak() -> None:
    """Let the highest memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _written() -> int:
    found = re.search(r"^write_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main(verb: str, target: str, model: str, files: Mapping[str, str]) -> None:
    """Do one operation and print what it took, as JSON.

    Args:
        verb: ``create`` or ``update``: the plugin's; ``fetch``: the floor's.
        target: The target URI; for ``fetch`` the directory to be made.
        model: The model URI.
        files: For ``fetch``; see `benchmarks.floor.fetch`.
    """
    if verb == "fetch":
        from benchmarks.floor import fetch  # noqa: PLC0415 - each verb pays for its own imports

        def operate() -> None:
            fetch(files, Path(target))
    else:
        from mlflow.deployments import get_deploy_client  # noqa: PLC0415 - same

        client = get_deploy_client(target)
        operate = {
            "create": lambda: client.create_deployment("plugin", model),
            "update": lambda: client.update_deployment("plugin", model),
        }[verb]

    reset_peak()
    before, written, start = memory("VmRSS"), _written(), time.perf_counter()
    operate()
    taken = time.perf_counter() - start
    peak = memory("VmHWM")
    usage = {
        "seconds": taken,
        "written": _written() - written,
        "peak_memory": peak,
        "grown_memory": max(0, peak - before),
    }
    print(json.dumps(usage))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
