"""A temporary directory that outlives nobody: that of a process which was killed is removed by the next operation.

Its process holds a lock on it (flock(2)), which ends with the process: one that nobody holds was left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["abandoned", "remove_abandoned", "scratch"]

log = logging.getLogger(__name__)

PREFIX = "mlflow-triton-scratch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Make an empty directory for the block, among the system's temporary ones; remove it, and abandoned ones.

    Raises:
        OSError: It cannot be made.
    """
    remove_abandoned()
    path, held = _make()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def abandoned() -> list[Path]:
    """List this user's directories that no process holds any more."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with _hold(path) as held:
            found += [path] if held else []
    return found


def remove_abandoned() -> list[Path]:
    """Remove the directories that no process holds any more, and return them."""
    removed = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with _hold(path) as held:
            if held:
                log.info("Removing %s, which a process that died has left.", path)
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def _make() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # taken for an abandoned one, as it was not held yet
            continue
        with suppress(OSError):  # a filesystem without locks, where none is taken for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)


@contextmanager
def _hold(path: Path) -> Iterator[bool]:
    """Lock a directory for the block; say whether it is this user's, and nobody else has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_uid == os.getuid()
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
