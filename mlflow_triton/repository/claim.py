"""The claim on a deployment's name: one small file that is lock, notice and journal at once.

It lies in the repository's root, the one directory that every client of a repository has, however it is
mounted; Triton passes over plain files there. Its lock (flock(2)) is the kernel's: it ends with its
process, however that ends, and holds between machines on a shared filesystem. Its text tells others who
holds the name. Before the first change, the change is appended to it; removing the file commits the
change. So a file that nobody locks and that tells of a change is that of a process which died in it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
import stat
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from mlflow_triton.errors import DeploymentBusy, RepositoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

__all__ = ["PREFIX", "Change", "Claim", "Notice", "claim", "notices", "sync_directory"]

#: Begins the name of everything this plugin puts into or beside a repository for a while. A deployment's
#: name cannot begin with a dot.
PREFIX: Final = ".mlflow-triton-"
SUFFIX: Final = ".lock"
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_NAME: Final = re.compile(rf"{re.escape(PREFIX)}([A-Za-z0-9_][A-Za-z0-9_.-]*){re.escape(SUFFIX)}")
_LONGEST: Final = 1 << 16
#: What a filesystem without the call answers.
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)
_BUSY: Final = (errno.EWOULDBLOCK, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds or held a name.

    Attributes:
        operation: ``create``, ``update``, …
        host: The machine's name.
        pid: The process on it.
        since: UTC, ISO 8601.
        token: Names what the operation puts beside and into the repository.
    """

    operation: str
    host: str
    pid: int
    since: str
    token: str

    def __str__(self) -> str:
        return f"{self.operation} by process {self.pid} on {self.host}, begun {self.since}"


@dataclass(frozen=True, slots=True)
class Change:
    """What an operation is about to do; enough for another process to finish it or to undo it.

    Attributes:
        operation: ``create``, ``adopt``, ``update``, ``rollback`` or ``delete``.
        token: Of the operation that does it; names its workspace.
        by: Who does it.
        new: The id of the deployment that is to be there afterwards; ``None`` for a deletion.
        was_ready: Whether the server served the old deployment.
        server_was_ready: Whether the server as a whole called itself ready.
        to_be_tested: Whether the new model is to pass a test that nobody but that operation can make.
    """

    operation: str
    token: str
    by: str
    new: str | None
    was_ready: bool
    server_was_ready: bool
    to_be_tested: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """What a claim's file tells those who do not hold it.

    Attributes:
        name: The deployment's.
        holder: Who wrote it last; ``None``: nobody has yet, or it is not readable.
        change: One that was begun and neither committed nor undone.
        held: Whether its process lives.
    """

    name: str
    holder: Holder | None
    change: Change | None
    held: bool

    def __str__(self) -> str:
        return str(self.holder or "an operation that has not said yet what it is")


class Claim:
    """A name that this process holds; made by `claim`.

    Attributes:
        name: The deployment's.
        operation: What it is held for.
        token: 32 hexadecimal digits, for the names of what the operation makes.
        interrupted: The change that a process which died had begun, until it is `settled`.
    """

    def __init__(self, name: str, path: Path, descriptor: int, operation: str) -> None:
        self.name = name
        self.operation = operation
        self.token = uuid.uuid4().hex
        self._path = path
        self._descriptor = descriptor
        self._holder = Holder(operation, socket.gethostname(), os.getpid(), _now(), self.token)
        self._is_read = False
        self.interrupted: Change | None = None
        self._pending: Change | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether this operation's own change has begun and not ended."""
        return self._pending is not None and self._pending is not self.interrupted

    def take_over(self) -> None:
        """Read what a process that died may have left, and say in the file who holds the name."""
        _, self.interrupted = _parse(_read(self._descriptor))
        self._pending = self.interrupted
        self._is_read = True
        _share(self._descriptor, self._path.parent)
        self._announce()

    def settled(self) -> None:
        """Forget the interrupted change: it has been finished or undone."""
        self.interrupted = self._pending = None
        self._announce()
        os.fsync(self._descriptor)

    def begin(
        self, new: str | None, *, was_ready: bool, server_was_ready: bool, to_be_tested: bool = False
    ) -> Change:
        """Write down, for good, that a change begins; it may be made when this has returned.

        Args:
            new: The id of the deployment that is to be there afterwards; ``None`` for a deletion.
            was_ready: Whether the server serves the present deployment.
            server_was_ready: Whether the server as a whole calls itself ready.
            to_be_tested: Whether the change stands only after a test of this operation's own.
        """
        change = Change(
            self.operation, self.token, str(self._holder), new, was_ready, server_was_ready, to_be_tested
        )
        self._append("change", change)
        os.fsync(self._descriptor)
        sync_directory(self._path.parent)
        self._pending = change  # if this was not reached, nothing has been begun, and the file goes
        return change

    def commit(self) -> None:
        """End the change: it stands from now on, whatever happens to this process."""
        sync_directory(self._path.parent)
        self._path.unlink()
        self._pending = None
        try:
            sync_directory(self._path.parent)
        except OSError as error:
            log.warning(
                "The change of %r stands, unless this machine loses power now (%s).", self.name, error
            )

    def undone(self) -> None:
        """End the change: all is as before."""
        self._pending = None

    def release(self) -> None:
        """Give the name up; a change that has not ended stays written down for the next one."""
        try:
            if self._is_read and self._pending is None and _is(self._descriptor, self._path):
                self._path.unlink()
        except OSError as error:
            log.warning("%s could not be removed (%s); it does no harm.", self._path, error.strerror)
        finally:
            with _between_forks:
                os.close(self._descriptor)
                _held.discard(self._descriptor)

    def _announce(self) -> None:
        if self._pending is None:
            os.ftruncate(self._descriptor, 0)
        self._append("holder", self._holder)

    def _append(self, kind: str, entry: Holder | Change) -> None:
        line = f"{json.dumps({kind: asdict(entry)})}\n".encode()
        # A line counts when its end is there, so that a write cut short is none.
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


@contextmanager
def claim(repository: Path, name: str, operation: str, *, timeout: float) -> Iterator[Claim]:
    """Hold a deployment's name, which no other process and no other thread can hold meanwhile.

    Args:
        repository: The model repository.
        name: The deployment's, checked.
        operation: What for, for others to read.
        timeout: Seconds to wait for whoever holds it.

    Raises:
        DeploymentBusy: It was still held when the time was over.
        RepositoryError: The file cannot be made or written, or its filesystem has no locks.
    """
    path = _path(repository, name)
    deadline = time.monotonic() + timeout
    pause = 0.01
    while (descriptor := _take(path)) is None:
        if time.monotonic() > deadline:
            raise DeploymentBusy(
                f"{name!r} is held by {_notice(path, name) or 'another operation'}, and was not free within "
                f"{timeout:g} s. Nothing was changed. Try again, or wait longer: -C lock_timeout=SECONDS. If that "
                "process hangs, end it: the next operation finishes or undoes what it leaves."
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    held = Claim(name, path, descriptor, operation)
    try:
        try:
            held.take_over()
        except OSError as error:
            raise RepositoryError(_unusable(path, error)) from None
        yield held
    finally:
        held.release()


def notices(repository: Path) -> list[Notice]:
    """Read every claim in a repository, held or left behind, by name."""
    found = []
    for path in list(repository.iterdir()):
        if match := _NAME.fullmatch(path.name):
            notice = _notice(path, match[1])
            if notice is not None:
                found.append(notice)
    return sorted(found, key=lambda notice: notice.name)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where its filesystem can be told to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def _path(repository: Path, name: str) -> Path:
    return repository / f"{PREFIX}{name}{SUFFIX}"


def _take(path: Path) -> int | None:
    """Open and lock the file, unseen by a fork in between; ``None``: somebody has it."""
    with _between_forks:
        descriptor = _try(path)
        if descriptor is not None:
            _held.add(descriptor)
        return descriptor


def _try(path: Path) -> int | None:
    """Open and lock the file; ``None``: somebody has it."""
    try:
        descriptor = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
        )
    except OSError as error:
        raise RepositoryError(_unusable(path, error)) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EEXIST, "It is not a plain file")  # noqa: TRY301 - handled as the others
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed it since it was opened here.
        if _is(descriptor, path):
            return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno in _BUSY:
            return None
        raise RepositoryError(_unusable(path, error)) from None
    os.close(descriptor)
    return _try(path)


def _share(descriptor: int, directory: Path) -> None:
    """Let everybody who may write the repository settle what this process may leave."""
    mode = directory.stat().st_mode & 0o666
    with suppress(PermissionError):  # the file is that of another user, who has done so
        os.fchmod(descriptor, mode | 0o600)


def _is(descriptor: int, path: Path) -> bool:
    """Say whether an open file is still the one under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _notice(path: Path, name: str) -> Notice | None:
    """Read a claim; ``None``: it is none, or is gone meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return Notice(name, None, None, held=True)  # for all that is known
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                raise RepositoryError(_unusable(path, error)) from None
            held = True
        if not held and not _is(descriptor, path):
            return None
        return Notice(name, *_parse(_read(descriptor)), held)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, _LONGEST, 0)


def _parse(text: bytes) -> tuple[Holder | None, Change | None]:
    """Return the last holder and the change; what is not one of ours, or is cut short, is passed over."""
    holder: Holder | None = None
    change: Change | None = None
    for line in text.split(b"\n")[:-1]:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(document, dict):
            continue
        holder = _entry(Holder, document.get("holder")) or holder
        change = _entry(Change, document.get("change")) or change
    return holder, change


def _entry(kind: type[Any], document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    # What has a default may be missing: an earlier version did not write it.
    values = {field.name: document.get(field.name, field.default) for field in fields(kind)}
    if not all(_VALID.get(name, _is_text)(value) for name, value in values.items()):
        return None
    return kind(**values)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_VALID: Final[dict[str, Callable[[object], bool]]] = {
    "token": lambda value: (
        isinstance(value, str) and bool(_TOKEN.fullmatch(value))
    ),  # becomes a part of paths
    "new": lambda value: value is None or _is_text(value),
    "pid": lambda value: type(value) is int,
    "was_ready": _is_bool,
    "server_was_ready": _is_bool,
    "to_be_tested": _is_bool,
}


def _unusable(path: Path, error: OSError) -> str:
    if error.errno in _UNSUPPORTED:
        return (
            f"The filesystem of {path.parent} cannot lock files ({error.strerror}), without which two deployments at "
            "once could mix. Nothing was changed. Mount it with locks (NFS: without nolock)."
        )
    return f"The model repository {path.parent} cannot be written: {error.strerror} ({path.name}). Nothing was changed."


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


_held: set[int] = set()
#: A descriptor is open if and only if it is among those held, for whoever has this.
_between_forks = threading.RLock()


def _forget() -> None:
    """Close a forked process's copies, which would hold the names beyond their owner's end."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
    _between_forks.release()


os.register_at_fork(
    before=_between_forks.acquire, after_in_parent=_between_forks.release, after_in_child=_forget
)
