"""System shared memory: tensors that a server on the same machine reads and writes in place.

A region is a file in /dev/shm of an unguessable name, which its user alone may open. A server that can
register such a name sees this machine's memory: nothing else has a file of that name. A region is
locked (flock) as long as its process lives, however that ends; what is not locked is collected.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import multiprocessing
import multiprocessing.util
import os
import secrets
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_triton.errors import TritonPluginError
from mlflow_triton.serving.http import Response

if TYPE_CHECKING:
    from mlflow_triton.serving.http import HttpEndpoint

__all__ = ["LARGE", "LARGE_OUTPUT", "Region", "Regions", "aligned"]

log = logging.getLogger(__name__)

#: Bytes of a tensor from which shared memory is quicker than HTTP. For an output, unless it was selected, the model's
#: metadata have to be asked for as well.
LARGE = 256 * 1024
LARGE_OUTPUT = 4 << 20
DIRECTORY = Path("/dev/shm")  # noqa: S108 - where shm_open, and so Triton, looks; names are unguessable
PREFIX = "mlflow_triton_tensors_"
#: Bytes that one client keeps registered and unused; the region that was used last is kept, however large it is.
KEPT = 1 << 30
#: Bytes of a region from which it is given back when nobody has used it for so many seconds: its memory can serve nothing
#: else meanwhile. Smaller ones are not worth the thread that sees to it.
HUGE = 64 << 20
UNUSED = 60.0
#: Seconds after which what a process has left is collected: Triton may still be at work with it.
LEFTOVER_AGE = 600.0
#: Seconds for a request about a region, which Triton answers at once.
TIMEOUT = 10.0


def aligned(size: int) -> int:
    """Return the next multiple of 64 bytes, at which the next tensor may begin."""
    return -(-size // 64) * 64


class Region:
    """A piece of memory that this process and the server share.

    Args:
        size: Bytes.

    Attributes:
        name: Of the file, and of the region in the server.
        size: Bytes.
        memory: All of it.
        unused_since: When it was last handed back, by time.monotonic.

    Raises:
        OSError: There is no such memory, or not enough.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.unused_since = time.monotonic()
        self.name = f"{PREFIX}{secrets.token_hex(16)}"
        self._path = DIRECTORY / self.name
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # A file with holes would kill the process with SIGBUS where the memory is not enough.
            os.posix_fallocate(self._file, 0, size)
            self._map = mmap.mmap(self._file, size)
        except BaseException:
            self.discard()
            raise
        self.memory = np.frombuffer(self._map, np.uint8)

    def discard(self) -> None:
        """Remove the file; the memory is freed when nobody has it mapped."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._file)


class Regions:
    """The regions that a process shares with one server. Safe to share between threads, and after a fork.

    Args:
        http: The server.
    """

    def __init__(self, http: HttpEndpoint) -> None:
        self._http = http
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._shared: bool | None = None
        self._idle: list[Region] = []
        self._all: dict[str, Region] = {}
        self._over = threading.Event()
        self._watched = False
        release = weakref.finalize(self, _release, self._http, self._all, self._process, self._over)
        if multiprocessing.parent_process() is not None:
            # Such a process ends without the exit handlers of others.
            multiprocessing.util.Finalize(self, release, exitpriority=0)

    def take(self, size: int) -> Region | None:
        """Return a region of at least `size` bytes, for one request; ``None``: there can be none.

        It is handed back with `put` once the server has answered. If it does not, the region stays out of
        use, since the server may still write to it.
        """
        if self._process != os.getpid():
            self._reset()  # the parent's serve its own requests
        with self._lock:
            if self._shared is None:
                self._shared = self._prove()
            if not self._shared:
                return None
            fitting = [region for region in self._idle if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda one: one.size)
                self._idle.remove(region)
                return region
            outgrown = self._forget(sorted(self._idle, key=lambda one: one.size)[-1:])
        for one in outgrown:
            _drop(self._http, one)
        return self._made(
            1 << max(20, (size - 1).bit_length()) if size <= 1 << 26 else -(-size // (1 << 26)) << 26
        )

    def put(self, region: Region) -> None:
        """Hand a region back that the server has done with."""
        with self._lock:
            region.unused_since = time.monotonic()
            self._idle.append(region)
            dropped = []
            while len(self._idle) > 1 and sum(one.size for one in self._idle) > KEPT:
                dropped += self._forget(self._idle[:1])
            if region.size >= HUGE and not self._watched:
                with contextlib.suppress(RuntimeError):  # no threads at the end of a process
                    threading.Thread(target=_watch, args=(weakref.ref(self), self._over), daemon=True).start()
                    self._watched = True
        for one in dropped:
            _drop(self._http, one)

    def give_back_unused(self) -> bool:
        """Give huge regions back that nobody has used for long.

        Returns:
            Whether there are others that may come to it.
        """
        with self._lock:
            huge = [one for one in self._idle if one.size >= HUGE]
            unused = [one for one in huge if one.unused_since + UNUSED <= time.monotonic()]
            self._watched = len(unused) < len(huge)
            dropped = self._forget(unused)
        for one in dropped:
            _drop(self._http, one)
        return self._watched

    def refused(self, region: Region) -> None:
        """Let go of a region that the server refused, and of all others: it may have been restarted."""
        with self._lock:
            self._shared = None
            forgotten = self._forget([*self._idle, region])
        for one in forgotten:
            _drop(self._http, one)

    def _forget(self, regions: list[Region]) -> list[Region]:
        """Return those that are now the caller's to drop: at the end of the process they are dropped beside it."""
        self._idle = [one for one in self._idle if one not in regions]
        return [one for one in regions if self._all.pop(one.name, None)]

    def _made(self, size: int) -> Region | None:
        """Make and register a region."""
        try:
            state = os.statvfs(DIRECTORY)
            # Triton's Python models use the same memory, and die without it.
            if size > state.f_bavail * state.f_frsize // 2:
                return None
            region = Region(size)
        except OSError as error:
            log.debug("No shared memory of %s bytes: %s", size, error)
            return None
        try:
            answer = self._http.json(
                "POST",
                f"/v2/systemsharedmemory/region/{region.name}/register",
                {"key": f"/{region.name}", "offset": 0, "byte_size": size},
                timeout=TIMEOUT,
            )
        except BaseException:
            region.discard()
            raise
        if isinstance(answer, Response):
            region.discard()
            log.debug("Triton shares no memory with this process: %s", answer.error)
            return None
        self._all[region.name] = region
        return region

    def _prove(self) -> bool:
        """Say whether the server sees this machine's shared memory, and collect what was left in it."""
        try:
            region = self._made(mmap.PAGESIZE)
            if region is None:
                return False
            self._idle.append(region)
            self._collect()
        except TritonPluginError as error:
            log.debug("Whether Triton shares memory with this process is not known: %s", error)
            return False
        return True

    def _collect(self) -> None:
        """Take away what processes have left that were killed."""
        entries = self._http.json("GET", "/v2/systemsharedmemory/status", timeout=TIMEOUT)
        known = (
            {str(entry.get("name")) for entry in entries if isinstance(entry, dict)}
            if isinstance(entries, list)
            else set()
        )
        for path in DIRECTORY.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # another one collects it, or it is another user's
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(file).st_ctime > LEFTOVER_AGE:
                        if path.name in known:
                            _unregister(self._http, path.name)
                        path.unlink()
                finally:
                    os.close(file)


def _unregister(http: HttpEndpoint, name: str) -> None:
    http.json("POST", f"/v2/systemsharedmemory/region/{name}/unregister", {}, timeout=TIMEOUT)


def _drop(http: HttpEndpoint, region: Region) -> None:
    try:
        _unregister(http, region.name)
    except TritonPluginError as error:
        log.debug("Triton was not told that %s is gone: %s", region.name, error)
    finally:
        region.discard()


def _watch(regions: weakref.ref[Regions], over: threading.Event) -> None:
    """Have unused regions given back until there are none, or nobody has the regions any more."""
    while not over.wait(UNUSED / 4):
        found = regions()
        if found is None or not found.give_back_unused():
            return
        del found


def _release(http: HttpEndpoint, regions: dict[str, Region], process: int, over: threading.Event) -> None:
    if process == os.getpid():
        over.set()
        while regions:
            _drop(http, regions.popitem()[1])
